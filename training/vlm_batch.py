"""Samples and batches for the language model: what they hold, and how samples are padded together.

Layout    A sample is a prefix (without the system turn, which is the same for all and computed once a
          batch) and its turns, question and answer. A batch is (B, S) prefixes padded on the right, and all
          their turns, sorted by length, in groups.
Contract  Turns see the prefix and themselves, never a sibling; their positions start where the prefix ended,
          as in the runtime. Only the assistant's tokens are predicted: all other targets are `IGNORE`.
Elsewhere making samples: vlm_data.py; the losses: trainee.py; looks: looks.py.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rexthinker_edge.runtime.qwen_pixels import VisionInput

IGNORE = -100

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
