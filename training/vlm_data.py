"""Batches for the language model: pictures and hints once, then all their turns over them.

Layout    A sample is a prefix (without the system turn, which is the same for all and computed once a
          batch) and its turns, question and answer. Turns see the prefix and themselves, never a sibling;
          their positions start where the prefix ended, as in the runtime. Only the assistant's tokens are
          predicted.
Contract  Sample k of a seed is the same whatever the batch. Prompts come from runtime/prompt.py, pixels
          and positions from runtime/: what is trained is what runs.
Elsewhere pictures and traces: calibration/workbench; the loop: sft.py.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from rexthinker_edge.calibration.workbench import items as workbench
from rexthinker_edge.calibration.workbench import layout, render
from rexthinker_edge.calibration.workbench.predicates import relations_of
from rexthinker_edge.calibration.workbench.traces import write_trace
from rexthinker_edge.calibration.workbench.world import CATEGORIES, COLORS, LETTERS, PATTERNS, Level, Scene
from rexthinker_edge.runtime import prompt
from rexthinker_edge.runtime.boxes import Size
from rexthinker_edge.runtime.positions import mrope_positions
from rexthinker_edge.runtime.qwen_pixels import PixelLimits, VisionInput, qwen_pixels
from rexthinker_edge.runtime.tokens import TextTokenizer
from rexthinker_edge.training.dense_turns import arranged, ask, described
from rexthinker_edge.training.letter_pictures import letter_scene
from rexthinker_edge.training.looks import Truth, find_looks
from rexthinker_edge.training.tokenizer import number_ids
from rexthinker_edge.training.vlm_config import Stage

IGNORE = -100
FIELDS: dict[str, tuple[str, ...]] = {
    "category": CATEGORIES,
    "color": COLORS,
    "pattern": PATTERNS,
    "size": ("small", "large"),
    "letter": tuple(LETTERS),
    "relation": ("alone", "touching", "inside", "on top of", "has inside", "has on top"),
    "partner_color": COLORS,
    "partner_category": CATEGORIES,
}
OWN_FIELDS = 5  # the first ones are the thing's own, the others tell what it stands in contact with
CELL_PX = 28  # side of a picture token, in resized pixels
CELL_BINS = 32
FIRST_EVALUATION_SEED = 1_000_000


Turn = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True)
class Sample:
    """One picture with its hint and turns; S prefix tokens, T picture tokens, B hint boxes.

    Attributes:
        ids: (S,) int64 prefix after the system turn.
        positions: (3, S) int64 M-RoPE positions of the prefix; turns start at `next_position`.
        turns: per turn (ids, targets, looks): ids and targets (L,) int64, IGNORE where nothing is to be
            predicted; looks (M, 4) int64, rows of (place in the turn, source, kind, own): see looks.py.
        vision: the picture's patches and grid.
        cell_things: (T,) int64, the thing under each picture token, -1 for none.
        box_ends: (B,) int64, the prefix token at which each hint box is complete.
        box_things: (B,) int64, the thing of each hint box.
        box_cells: (B, 2) int64, row and column of the picture token under each box's centre.
        boxes: (B, 4) int64 of the hint, resized pixels.
        thing_fields: (things, fields) int64 class per FIELDS, IGNORE where it does not apply.
    """

    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    next_position: int
    turns: tuple[Turn, ...]
    vision: VisionInput
    cell_things: NDArray[np.int64]
    box_ends: NDArray[np.int64]
    box_things: NDArray[np.int64]
    box_cells: NDArray[np.int64]
    boxes: NDArray[np.int64]
    thing_fields: NDArray[np.int64]


@dataclass(frozen=True)
class Turns:
    """Turns of similar length, (R, L), and the row of the prefix batch each belongs to, (R,)."""

    ids: Tensor
    targets: Tensor
    positions: Tensor  # (3, R, L)
    rows: Tensor
    mask_RHQK: Tensor  # (R, 1, L, system + S + L) bool
    looks: Tensor  # (M, 4): row, place, source among all tokens the row sees, kind


@dataclass(frozen=True)
class Pictures:
    """Pictures for the vision tower alone: patches, grids, and FIELDS of every picture token."""

    patches: Tensor
    grids: Tensor
    fields: Tensor  # (tokens, fields)


@dataclass(frozen=True)
class Batch:
    """Prefixes padded on the right, (B, S), and their turns in groups."""

    system_ids: Tensor  # (1, system)
    ids: Tensor
    positions: Tensor  # (3, B, S)
    mask_BHQK: Tensor  # (B, 1, S, system + S) bool
    patches: Tensor  # (sum of patches, 1176)
    grids: Tensor  # (B, 3)
    turns: tuple[Turns, ...]
    samples: tuple[Sample, ...]
    pictures: Pictures | None


class Sampler:
    """Makes packed training samples; sample `index` of a seed is the same whatever the batch."""

    def __init__(self, tokenizer_path: Path, limits: PixelLimits, seed: int) -> None:
        """`seed` lies below `FIRST_EVALUATION_SEED`, so that no evaluation item is ever trained on."""
        assert seed < FIRST_EVALUATION_SEED
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
            cell_fields(_thing_fields(s), _things_under_cells(s, v))
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
                scene, candidates, boxes, category, _centres(scene, vision.resized), rng
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
        cell_things = _things_under_cells(scene, vision)
        truth = Truth(
            scene, category, candidates, boxes, ends, cell_things,
            first_cell=prefix.index(self._image_pad) - system,
            columns=vision.grid_thw[2] // 2,
            centres=_centres(scene, vision.resized),
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
            thing_fields=_thing_fields(scene),
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


def _centres(scene: Scene, resized: Size) -> NDArray[np.float64]:
    """(things, 2) float64 centres of the things' boxes in resized pixels."""
    boxes = np.array([thing.box for thing in scene.things], np.float64).reshape(-1, 2, 2)
    scale = np.array([resized[0] / scene.width, resized[1] / scene.height])
    middles: NDArray[np.float64] = boxes.mean(axis=1) * scale
    return middles


def cell_fields(thing_fields: NDArray[np.int64], cell_things: NDArray[np.int64]) -> Tensor:
    """(T, fields) class of each picture token; the class after the last where there is nothing."""
    nothing = torch.tensor([len(values) for values in FIELDS.values()])
    fields, under = torch.from_numpy(thing_fields), torch.from_numpy(cell_things)
    return torch.where((under < 0)[:, None], nothing, fields[under.clamp(min=0)])


def _things_under_cells(scene: Scene, vision: VisionInput) -> NDArray[np.int64]:
    """(T,) index of the topmost thing whose box covers the centre of each picture token, else -1."""
    _, grid_h, grid_w = vision.grid_thw
    rows, columns = grid_h // 2, grid_w // 2
    x = (np.arange(columns) + 0.5) * scene.width / columns
    y = (np.arange(rows) + 0.5) * scene.height / rows
    cells = np.full((rows, columns), -1, np.int64)
    for number, thing in enumerate(scene.things):
        x0, y0, x1, y1 = thing.box
        cells[np.ix_((y >= y0) & (y < y1), (x >= x0) & (x < x1))] = number
    return cells.reshape(-1)


def _thing_fields(scene: Scene) -> NDArray[np.int64]:
    rows = []
    for index, thing in enumerate(scene.things):
        own = {name: getattr(thing, name) for name in list(FIELDS)[:OWN_FIELDS]}
        told = own | _contact(scene, index)
        rows.append([IGNORE if v is None else FIELDS[name].index(v) for name, v in told.items()])
    return np.array(rows, np.int64).reshape(-1, len(FIELDS))


def _contact(scene: Scene, index: int) -> dict[str, str | None]:
    """What a thing touches, holds or lies in; the world ties each thing to one other at most."""
    for kind, other, inverse in relations_of(scene, index):
        relation = f"has {kind.value.removesuffix(' of')}" if inverse else kind.value
        partner = scene.things[other]
        return dict(zip(list(FIELDS)[OWN_FIELDS:], (relation, partner.color, partner.category), strict=True))
    return dict(zip(list(FIELDS)[OWN_FIELDS:], ("alone", None, None), strict=True))


def collate(
    samples: list[Sample],
    system_ids: list[int],
    pad_id: int,
    pictures: Pictures | None = None,
    group: int = 16,
) -> Batch:
    """Pad prefixes to one length, and turns, sorted by length, to one length per `group`."""
    system, longest = len(system_ids), max(len(s.ids) for s in samples)
    lengths = torch.tensor([len(s.ids) for s in samples])
    shown = torch.cat(
        [torch.ones(len(samples), system, dtype=torch.bool), torch.arange(longest) < lengths[:, None]], 1
    )
    turns = [(row, *turn) for row, s in enumerate(samples) for turn in s.turns]
    turns.sort(key=lambda turn: len(turn[1]))
    starts = np.array([s.next_position for s in samples])
    groups = [
        _turns(turns[k : k + group], starts, shown, pad_id, system) for k in range(0, len(turns), group)
    ]
    return Batch(
        system_ids=torch.tensor([system_ids]),
        ids=_stack([s.ids for s in samples], pad_id),
        positions=_stack([s.positions for s in samples], 0).transpose(0, 1),
        mask_BHQK=_causal(longest, shown[:, :system]),
        patches=torch.from_numpy(np.concatenate([s.vision.patches for s in samples])),
        grids=torch.tensor([s.vision.grid_thw for s in samples]),
        turns=tuple(groups),
        samples=tuple(samples),
        pictures=pictures,
    )


def _turns(
    turns: list[tuple[int, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]],
    starts: NDArray[np.int64],
    shown: Tensor,
    pad_id: int,
    system: int,
) -> Turns:
    rows = torch.tensor([row for row, _, _, _ in turns])
    ids = _stack([ids for _, ids, _, _ in turns], pad_id)
    positions = torch.from_numpy(starts)[rows][:, None] + torch.arange(ids.shape[1])
    before = shown.shape[1]
    looks = []
    for row, (_, _, _, look) in enumerate(turns):
        places, sources, kinds, own = look.T
        sources = sources + np.where(own > 0, before, system)
        looks.append(np.stack([np.full_like(places, row), places, sources, kinds], 1))
    return Turns(
        ids=ids,
        targets=_stack([targets for _, _, targets, _ in turns], IGNORE),
        positions=positions.expand(3, -1, -1),
        rows=rows,
        mask_RHQK=_causal(ids.shape[1], shown[rows]),
        looks=torch.from_numpy(np.concatenate(looks)),
    )


def _stack(arrays: list[NDArray[np.int64]], fill: int) -> Tensor:
    longest = max(a.shape[-1] for a in arrays)
    widths = [[(0, 0)] * (a.ndim - 1) + [(0, longest - a.shape[-1])] for a in arrays]
    return torch.from_numpy(
        np.stack([np.pad(a, w, constant_values=fill) for a, w in zip(arrays, widths, strict=True)])
    )


def _causal(length: int, before: Tensor) -> Tensor:
    """(R, 1, length, before + length): every token sees what is shown `before` and its own past."""
    own = torch.tril(torch.ones(length, length, dtype=torch.bool))
    rows = before.shape[0]
    return torch.cat([before[:, None].expand(-1, length, -1), own.expand(rows, -1, -1)], dim=2)[:, None]
