"""Workbench pictures, rendered once and kept at the detector's size, and the captions asked of them.

Layout    pictures.bin: uint8 (h, w, 3) pictures one after the other; index.npz: offset, shape (h, w),
          level, boxes (N, 12, 4) normalised centre-size, labels (N, 12) into CATEGORIES, -1 for none.
          Aspect ratios are rounded to a few shapes, so that a batch holds one shape and no padding;
          that bends a picture by 6 % at most.
Contract  Picture i of a seed is the same whatever the count; levels alternate.
          A caption's phrases are categories, one token each, so that a batch has one token layout.
Elsewhere what a scene is: calibration/workbench; how the runtime resizes: runtime/dino_pixels.py.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from rexthinker_edge.calibration.workbench.layout import make_scene
from rexthinker_edge.calibration.workbench.render import render
from rexthinker_edge.calibration.workbench.world import CATEGORIES, COLORS, Level
from rexthinker_edge.training.detector_config import MEAN, STD, DetectorRecipe

MOST_THINGS = 12
CLS, SEP, DOT = 101, 102, 1012
LEVELS = (Level.EASY, Level.FULL)
KEPT_IDS = 2_048  # [CLS], [SEP], "." and "?" must keep the ids transformers' mask builder knows
OTHER_WORDS = (
    "cup", "table", "bench", "dog", "cat", "person", "car", "chair", "book", "bottle", "helmet", "tree",
    "plain", "striped", "dotted", "small", "large", "balls", "boxes", "cones", "stars", "rings",
)  # fmt: skip


@dataclass(frozen=True)
class Index:
    """Where each picture lies and what it shows."""

    offset: NDArray[np.int64]
    shape: NDArray[np.int64]
    level: NDArray[np.int64]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """One step's input and truth; `asked` says which token each thing answers to, -1 for none."""

    pixels: Tensor  # (B, 3, h, w) float32, normalised
    input_ids: Tensor  # (B, T)
    boxes: list[Tensor]  # (n, 4) normalised centre-size, every thing of the picture
    asked: list[Tensor]  # (n,) int64, position of the thing's word in the caption, or -1


def cut_vocabulary(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """bert-base-uncased cut to its first ids, all single letters, and the words of this world.

    Args:
        tokenizer: a `tokenizer.json` of bert-base-uncased.
    """
    vocabulary = tokenizer["model"]["vocab"]
    kept = {word: i for word, i in vocabulary.items() if i < KEPT_IDS}
    letters = [f"##{chr(c)}" for c in (*range(ord("a"), ord("z") + 1), *range(ord("0"), ord("9") + 1))]
    for word in (*CATEGORIES, *COLORS, *OTHER_WORDS, *letters):
        if word in vocabulary and word not in kept:
            kept[word] = len(kept)
    return {**tokenizer, "model": {**tokenizer["model"], "vocab": kept}}


def batch_shape(width: int, height: int, recipe: DetectorRecipe) -> tuple[int, int]:
    """(height, width) of the shape a picture is kept in: aspect rounded to a sixth of an octave."""
    aspect = 2.0 ** (round(6 * np.log2(width / height)) / 6)
    elongation = max(aspect, 1 / aspect)
    longest = min(recipe.longest_px, recipe.shortest_px * elongation)
    long, short = round(longest), round(longest / elongation)
    return (short, long) if aspect >= 1 else (long, short)


def render_pictures(folder: Path, recipe: DetectorRecipe, seed: int, count: int) -> None:
    """Render `count` pictures of `seed`, easy and full in turn, into `folder`. Rendered ones are kept."""
    told = {"seed": seed, "count": count, "sides": [recipe.shortest_px, recipe.longest_px]}
    done = folder / "pictures.json"
    if done.exists() and json.loads(done.read_text()) == told:
        return
    folder.mkdir(parents=True, exist_ok=True)
    offset, shapes, levels = np.zeros(count, np.int64), np.zeros((count, 2), np.int64), np.arange(count) % 2
    boxes = np.zeros((count, MOST_THINGS, 4), np.float32)
    labels = np.full((count, MOST_THINGS), -1, np.int64)
    with (folder / "pictures.bin").open("wb") as file:
        for i in range(count):
            scene = make_scene(LEVELS[i % 2], seed, i // 2)
            shapes[i] = batch_shape(scene.width, scene.height, recipe)
            size = (int(shapes[i, 1]), int(shapes[i, 0]))
            picture = Image.fromarray(render(scene)).resize(size, Image.Resampling.BILINEAR)
            offset[i] = file.tell()
            file.write(np.asarray(picture).tobytes())
            size_px = np.array([scene.width, scene.height] * 2)
            corners = np.array([thing.box for thing in scene.things]) / size_px
            boxes[i, : len(corners)] = np.concatenate(
                [(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], axis=1
            )
            labels[i, : len(corners)] = [CATEGORIES.index(t.category) for t in scene.things]
    np.savez(folder / "index.npz", offset=offset, shape=shapes, level=levels, boxes=boxes, labels=labels)
    done.write_text(json.dumps(told))


class Pictures:
    """A rendered folder, memory-mapped."""

    def __init__(self, folder: Path) -> None:
        with np.load(folder / "index.npz") as stored:
            self.index = Index(**{name: stored[name] for name in stored.files})
        self._bytes = np.memmap(folder / "pictures.bin", dtype=np.uint8, mode="r")

    def __len__(self) -> int:
        return len(self.index.offset)

    def picture(self, i: int) -> NDArray[np.uint8]:
        """Picture `i`, (h, w, 3)."""
        height, width = self.index.shape[i]
        start = self.index.offset[i]
        return np.asarray(self._bytes[start : start + height * width * 3]).reshape(height, width, 3)

    def groups(self) -> list[NDArray[np.int64]]:
        """Pictures of one shape together."""
        shapes = {tuple(s) for s in self.index.shape.tolist()}
        return [np.flatnonzero((self.index.shape == shape).all(axis=1)) for shape in sorted(shapes)]


def caption(rng: np.random.Generator, labels: NDArray[np.int64], phrases: int) -> list[int]:
    """Which categories to ask for: present ones first in line, one in eight phrases may be absent."""
    present = list(dict.fromkeys(rng.permutation(labels[labels >= 0]).tolist()))
    absent = [c for c in rng.permutation(len(CATEGORIES)).tolist() if c not in present]
    chosen: list[int] = []
    while len(chosen) < phrases:
        take_absent = not present or (absent and rng.random() < 1 / 8)
        chosen.append((absent if take_absent else present).pop())
    return [int(c) for c in rng.permutation(chosen)]


def caption_ids(categories: Sequence[int], words: Sequence[int]) -> list[int]:
    """[CLS] word . word . [SEP], with `words` the token id of each category."""
    middle = [token for c in categories for token in (words[c], DOT)]
    return [CLS, *middle, SEP]


def to_pixels(pictures_NHWC: NDArray[np.uint8], scale: float) -> Tensor:
    """Normalised float pictures (N, 3, h * scale, w * scale)."""
    pixels = torch.from_numpy(pictures_NHWC).permute(0, 3, 1, 2).float()
    pixels = pixels.sub_(255 * torch.tensor(MEAN).view(3, 1, 1)).div_(255 * torch.tensor(STD).view(3, 1, 1))
    if scale == 1.0:
        return pixels.contiguous()
    size = [round(side * scale) for side in pixels.shape[-2:]]
    return torch.nn.functional.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)


def make_batch(
    pictures: Pictures, which: NDArray[np.int64], asked: list[list[int]], words: Sequence[int], scale: float,
    rng: np.random.Generator | None,
) -> Batch:  # fmt: skip
    """Pictures of one shape with their captions; with `rng`, mirrored and recoloured at random."""
    stack = np.stack([pictures.picture(int(i)) for i in which])
    boxes = pictures.index.boxes[which].copy()
    if rng is not None:
        mirrored = rng.random(len(which)) < 0.5
        stack[mirrored] = stack[mirrored, :, ::-1]
        boxes[mirrored, :, 0] = 1 - boxes[mirrored, :, 0]
        for recoloured in np.flatnonzero(rng.random(len(which)) < 0.4):
            stack[recoloured] = stack[recoloured][..., rng.permutation(3)]
    labels = pictures.index.labels[which]
    place = np.full((len(which), len(CATEGORIES)), -1, np.int64)
    for n, categories in enumerate(asked):
        place[n, categories] = 1 + 2 * np.arange(len(categories))
    return Batch(
        pixels=to_pixels(stack, scale),
        input_ids=torch.tensor([caption_ids(categories, words) for categories in asked]),
        boxes=[torch.from_numpy(b[lab >= 0]) for b, lab in zip(boxes, labels, strict=True)],
        asked=[torch.from_numpy(p[lab[lab >= 0]]) for p, lab in zip(place, labels, strict=True)],
    )


def training_batches(
    pictures: Pictures, batch: int, rng: np.random.Generator
) -> Iterator[tuple[NDArray[np.int64], list[list[int]]]]:
    """Without end: which pictures, of one shape, and what to ask of each."""
    groups = pictures.groups()
    while True:
        chunks = [
            chunk
            for group in groups
            for chunk in np.array_split(rng.permutation(group), max(1, round(len(group) / batch)))
        ]
        for n in rng.permutation(len(chunks)).tolist():
            phrases = int(rng.choice((1, 2, 3, 4), p=(0.4, 0.25, 0.2, 0.15)))
            labels = pictures.index.labels[chunks[n]]
            yield chunks[n], [caption(rng, row, phrases) for row in labels]
