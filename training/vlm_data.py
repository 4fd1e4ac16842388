"""Samples for the language model: a picture and its hint once, then all the turns over them.

Layout    A turn is a question with its trace, or a dense one: all candidates described, or put in order.
Contract  Sample k of a seed is the same whatever the batch. Prompts come from runtime/prompt.py, pixels
          and positions from runtime/: what is trained is what runs.
Elsewhere pictures and traces: calibration/workbench; what a sample holds, and batches: vlm_batch.py; what
          stands under each picture token: cell_truth.py; the loop: sft.py.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from rexthinker_edge.calibration.workbench import items as workbench
from rexthinker_edge.calibration.workbench import layout, render
from rexthinker_edge.calibration.workbench.dataset import EVALUATION_SEED
from rexthinker_edge.calibration.workbench.traces import write_trace
from rexthinker_edge.calibration.workbench.world import Level, Scene
from rexthinker_edge.runtime import prompt
from rexthinker_edge.runtime.boxes import Size
from rexthinker_edge.runtime.positions import mrope_positions
from rexthinker_edge.runtime.qwen_pixels import PixelLimits, VisionInput, qwen_pixels
from rexthinker_edge.runtime.tokens import TextTokenizer
from rexthinker_edge.training.cell_truth import (
    OWN_FIELDS,
    cell_fields,
    centres,
    thing_fields,
    things_under_cells,
)
from rexthinker_edge.training.dense_turns import arranged, ask, described
from rexthinker_edge.training.letter_pictures import letter_scene
from rexthinker_edge.training.looks import Truth, find_looks
from rexthinker_edge.training.tokenizer import number_ids
from rexthinker_edge.training.vlm_batch import IGNORE, Pictures, Sample
from rexthinker_edge.training.vlm_config import Stage

CELL_PX = 28  # side of a picture token, in resized pixels


class Sampler:
    """Makes packed training samples; sample `index` of a seed is the same whatever the batch."""

    def __init__(self, tokenizer_path: Path, limits: PixelLimits, seed: int) -> None:
        """`seed` lies below `EVALUATION_SEED`, so that no evaluation item is ever trained on."""
        assert seed < EVALUATION_SEED
        self.tokenizer = TextTokenizer(tokenizer_path)
        self._limits = limits
        self._seed = seed
        self._numbers = np.array(sorted(number_ids(Tokenizer.from_file(str(tokenizer_path)))))
        self._image_pad = self.tokenizer.special_id("<|image_pad|>")
        self.system_ids = self.tokenizer.encode_parts(
            [prompt.IM_START, f"system\n{prompt.SYSTEM}", prompt.IM_END, "\n"]
        )

    def sample(self, stage: Stage, index: int) -> Sample:
        """A picture, its hint, traces, and dense labels of every candidate: they tie text to places."""
        rng = np.random.default_rng(np.random.SeedSequence([self._seed, index, 11]))
        level = Level.FULL if rng.random() < stage.full else Level.EASY
        describe = bool(rng.random() < stage.describe)
        scene, category, candidates, items = self._subject(level, describe, stage.expressions, rng, index)
        vision = qwen_pixels(render.render(scene), self._limits)
        boxes = _shaken(workbench.hint_boxes(scene, candidates, vision.resized), vision.resized, rng)
        turns = [
            (
                prompt.suffix(prompt.Wording.DETECT, item.question.expression),
                write_trace(item.question, scene, candidates, boxes, rng, resized=vision.resized),
            )
            for item in items
        ]
        turns += self._dense_turns(scene, category, candidates, boxes, vision, rng)
        parts = prompt.prefix(
            prompt.SYSTEM, prompt.Wording.DETECT, category, boxes.tolist(), vision.merged_tokens()
        )
        return self._pack(
            self.tokenizer.encode_parts(parts), turns, vision, (scene, category, candidates), boxes
        )

    def pictures(self, count: int, first: int) -> Pictures:
        """`count` pictures of crowded letters, one at least, and as many of things in contact."""
        scenes = [letter_scene(self._seed, first + k) for k in range(count)]
        scenes += [self._related_scene(first + k) for k in range(count)]
        visions = [qwen_pixels(render.render(scene), self._limits) for scene in scenes]
        fields = [
            cell_fields(thing_fields(s), things_under_cells(s, v))
            for s, v in zip(scenes, visions, strict=True)
        ]
        for crowded in fields[:count]:  # its things stand so close that contact is a matter of opinion
            crowded[:, OWN_FIELDS:] = IGNORE
        return Pictures(
            torch.from_numpy(np.concatenate([v.patches for v in visions])),
            torch.tensor([v.grid_thw for v in visions]),
            torch.cat(fields),
        )

    def _related_scene(self, index: int) -> Scene:
        """The first of 64 scenes, of a seed that has no traces, in which things touch or hold others."""
        scenes = (layout.make_scene(Level.FULL, self._seed + 1, index * 64 + k) for k in range(64))
        return next(scene for scene in scenes if scene.relations)

    @staticmethod
    def _dense_turns(
        scene: Scene,
        category: str,
        candidates: tuple[int, ...],
        boxes: NDArray[np.int64],
        vision: VisionInput,
        rng: np.random.Generator,
    ) -> list[tuple[list[prompt.Part], str]]:
        with_boxes = bool(rng.random() < 0.25)
        request = f"Please describe every {category} in the image" + (" with its box." if with_boxes else ".")
        turns = [(ask(request), described(scene, candidates, boxes, category, with_boxes))]
        if category != workbench.EVERYTHING:
            request, answer = arranged(
                scene, candidates, boxes, category, centres(scene, vision.resized), rng
            )
            turns.append((ask(request), answer))
        return turns

    def _subject(
        self, level: Level, describe: bool, count: int, rng: np.random.Generator, index: int
    ) -> tuple[Scene, str, tuple[int, ...], list[workbench.Item]]:
        """The first of 64 scenes that has something to ask about; half of `full` ones show contact."""
        related = level is Level.FULL and bool(rng.random() < 0.5)
        for attempt in range(64):
            scene = layout.make_scene(level, self._seed, index * 64 + attempt)
            if related and not scene.relations:
                continue
            if describe:
                category = workbench.EVERYTHING
                return scene, category, workbench.shuffled_candidates(scene, category, rng), []
            items = workbench.make_items_for_scene(scene, rng, count)
            if items:
                return scene, items[0].category, items[0].candidates, items
        raise AssertionError(f"no question for any of 64 scenes at {self._seed}/{index}")

    def _pack(
        self,
        prefix: list[int],
        turns: list[tuple[list[prompt.Part], str]],
        vision: VisionInput,
        subject: tuple[Scene, str, tuple[int, ...]],
        boxes: NDArray[np.int64],
    ) -> Sample:
        scene, category, candidates = subject
        positions, start = mrope_positions(np.array(prefix), self._image_pad, [vision.grid_thw])
        system = len(self.system_ids)
        assert prefix[:system] == self.system_ids
        ends = self._box_ends(prefix[system:], len(candidates))
        cell_things = things_under_cells(scene, vision)
        truth = Truth(
            scene, category, candidates, boxes, ends, cell_things,
            first_cell=prefix.index(self._image_pad) - system,
            columns=vision.grid_thw[2] // 2,
            centres=centres(scene, vision.resized),
        )  # fmt: skip
        packed = []
        for question, answer in turns:
            asked = self.tokenizer.encode_parts(question)
            said = self.tokenizer.encode_parts([answer, prompt.IM_END])
            looks = find_looks([self.tokenizer.token_bytes(token) for token in said], truth)
            looks += len(asked) * np.array([1, 0, 0, 0]) + len(asked) * looks[:, 3:] * np.array([0, 1, 0, 0])
            packed.append((np.array(asked + said), np.array([IGNORE] * len(asked) + said), looks))
        return Sample(
            ids=np.array(prefix[system:]),
            positions=positions[:, system:],
            next_position=start,
            turns=tuple(packed),
            vision=vision,
            cell_things=cell_things,
            box_ends=ends,
            box_things=np.array(candidates),
            box_cells=(boxes[:, [1, 0]] + boxes[:, [3, 2]]) // 2 // CELL_PX,
            boxes=boxes,
            thing_fields=thing_fields(scene),
        )

    def _box_ends(self, prefix: list[int], count: int) -> NDArray[np.int64]:
        """(B,) the last coordinate's token of each of the `count` boxes at the end of a prefix."""
        numbers = np.flatnonzero(np.isin(prefix, self._numbers))[-4 * count :]
        assert len(numbers) == 4 * count, (len(numbers), count)
        return numbers[3::4]


def _shaken(boxes: NDArray[np.int64], resized: Size, rng: np.random.Generator) -> NDArray[np.int64]:
    """Every other time, edges moved as a detector's are: by 3 % of the side, one standard deviation."""
    if rng.random() < 0.5:
        return boxes
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    moved = np.rint(boxes + 0.03 * sides * rng.standard_normal(boxes.shape)).astype(np.int64)
    return np.clip(moved, 0, np.array(resized * 2) - 1)
