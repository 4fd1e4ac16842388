"""What the small detector is trained on: boxes at every encoder cell, sets of boxes at every decoder layer.

What      encoder  each thing, asked for or not, claims the few cells nearest its centre on the level of its
                   size: box loss there; class loss everywhere, the nearest cell with the full target.
          decoder  per layer, one query per asked thing (Hungarian): class and box loss.
Contract  Boxes are normalised (cx, cy, w, h). Class targets are the IoU of box and thing at the asked
          word's token and 0 at every other token, so that a score says how well the box fits.
Elsewhere transformers' own loss is not used: it offsets labels by one picture's phrase count.
Source    Grounding DINO, arXiv 2303.05499; quality targets as VarifocalNet, arXiv 2008.13367;
          GIoU, arXiv 1902.09630.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from rexthinker_edge.training.detector_data import Batch

STRIDES = (8, 16, 32)
CLAIMED, REACH = 4, 9  # cells a thing claims, out of so many nearest ones
SMALL_CELLS = 5.0  # a thing of fewer stride-8 cells a side belongs to the finest level
LEAST_TARGET = 0.2  # a matched box is worth at least this, so that early, loose boxes still teach the class
L1_WEIGHT, GIOU_WEIGHT = 5.0, 2.0


@dataclass(frozen=True)
class LayerOutput:
    """Logits (Q, T) and boxes (Q, 4) of one layer for one picture."""

    logits: Tensor
    boxes: Tensor


def corners(boxes: Tensor) -> Tensor:
    """(..., 4) centre-size to (x0, y0, x1, y1)."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def iou_giou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and GIoU of boxes (..., 4) in corner form, broadcast against each other."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    common = (high - low).clamp(min=0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - common
    iou = common / union.clamp(min=1e-9)
    hull = (
        (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2]))
        .prod(-1)
        .clamp(min=1e-9)
    )
    return iou, iou - (hull - union) / hull


def class_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum of cross-entropies, those of negatives scaled by the square of their score.

    Args:
        logits, targets: of one shape; targets are 0 for negatives, the wanted score in (0, 1] for positives.
    """
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    weight = torch.where(targets > 0, torch.ones_like(targets), 0.75 * logits.detach().sigmoid().square())
    return (loss * weight).sum()


def box_loss(boxes: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted L1 plus GIoU, summed, and the IoU of each pair (N,), detached."""
    iou, giou = iou_giou(corners(boxes), corners(truth))
    total = L1_WEIGHT * (boxes - truth).abs().sum() + GIOU_WEIGHT * (1 - giou).sum()
    return total, iou.detach().clamp(0, 1)


def cell_grid(height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Centres (N, 2) normalised and level (N,) of all encoder cells of a picture of that many pixels."""
    rows, cols = -(-height // 4), -(-width // 4)
    centres, levels = [], []
    for level in range(len(STRIDES)):
        rows, cols = -(-rows // 2), -(-cols // 2)
        y, x = np.meshgrid((np.arange(rows) + 0.5) / rows, (np.arange(cols) + 0.5) / cols, indexing="ij")
        centres.append(np.stack([x.ravel(), y.ravel()], axis=1))
        levels.append(np.full(rows * cols, level))
    return np.concatenate(centres).astype(np.float32), np.concatenate(levels)


def claim_cells(
    boxes: NDArray[np.float32], height: int, width: int, grid: tuple[NDArray[np.float32], NDArray[np.int64]]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Give every thing its cells; smaller things choose first, no cell goes twice.

    Args:
        boxes: (n, 4) normalised centre-size.

    Returns:
        cell, thing and rank (0 is the nearest) of each claim.
    """
    centres, levels = grid
    size_px = np.array([width, height], dtype=np.float32)
    extent = np.sqrt(np.prod(boxes[:, 2:] * size_px, axis=1)) / STRIDES[0]
    taken: set[int] = set()
    claims: list[tuple[int, int, int]] = []
    for thing in np.argsort(extent):
        level = 0 if extent[thing] < SMALL_CELLS else 1
        own = np.flatnonzero(levels == level)
        distance = (((centres[own] - boxes[thing, :2]) * size_px) ** 2).sum(axis=1)
        nearest = own[np.argpartition(distance, REACH)[:REACH]] if len(own) > REACH else own
        nearest = nearest[np.argsort((((centres[nearest] - boxes[thing, :2]) * size_px) ** 2).sum(axis=1))]
        free = [int(c) for c in nearest if int(c) not in taken][:CLAIMED]
        taken.update(free)
        claims += [(cell, int(thing), rank) for rank, cell in enumerate(free)]
    cells, things, ranks = np.array(claims, dtype=np.int64).reshape(-1, 3).T
    return cells, things, ranks


def encoder_loss(logits: Tensor, box_logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Class and box loss at the encoder's cells, each per thing.

    Args:
        logits: (B, N, T); box_logits: (B, N, 4), before the sigmoid.
    """
    height, width = batch.pixels.shape[-2:]
    grid = cell_grid(height, width)
    assert len(grid[1]) == logits.shape[1], "the picture's cells do not add up to the encoder's"
    targets = torch.zeros_like(logits)
    picture, cell, truth, asked, share = [], [], [], [], []
    for n, boxes in enumerate(batch.boxes):
        cells, things, ranks = claim_cells(boxes.numpy(), height, width, grid)
        picture.append(np.full(len(cells), n))
        cell.append(cells)
        truth.append(boxes[things])
        asked.append(batch.asked[n][things])
        share.append(np.where(ranks == 0, 1.0, 0.6 - 0.1 * ranks))
    at = torch.from_numpy(np.concatenate(picture)), torch.from_numpy(np.concatenate(cell))
    boxes_loss, iou = box_loss(box_logits[at].sigmoid(), torch.cat(truth))
    token = torch.cat(asked)
    wanted = token >= 0
    score = iou.clamp(min=LEAST_TARGET) * torch.from_numpy(np.concatenate(share)).float()
    targets[at[0][wanted], at[1][wanted], token[wanted]] = score[wanted]
    things_asked = max(1, sum(int((a >= 0).sum()) for a in batch.asked))
    return class_loss(logits, targets) / things_asked, boxes_loss / max(1, len(token))


def match(output: LayerOutput, truth: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """One query per thing, at least cost in class, L1 and GIoU together.

    Args:
        truth: (n, 4); tokens: (n,) the position of each thing's word.

    Returns:
        queries and things, both (min(n, Q),).
    """
    with torch.no_grad():
        score = output.logits.sigmoid()[:, tokens]
        gain = -0.25 * (1 - score).square() * (score + 1e-8).log()
        spare = -0.75 * score.square() * (1 - score + 1e-8).log()
        _, giou = iou_giou(corners(output.boxes)[:, None], corners(truth)[None])
        distance = torch.cdist(output.boxes, truth, p=1)
        cost = 2 * (gain - spare) + L1_WEIGHT * distance - GIOU_WEIGHT * giou
        queries, things = linear_sum_assignment(cost.numpy())
    return torch.from_numpy(queries), torch.from_numpy(things)


def decoder_loss(logits: Tensor, boxes: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Class and box loss of one decoder layer, each per asked thing, and the matched boxes' mean IoU.

    Args:
        logits: (B, Q, T); boxes: (B, Q, 4) after the sigmoid.
    """
    targets = torch.zeros_like(logits)
    chosen, truth, tokens, picture = [], [], [], []
    for n, (all_boxes, asked) in enumerate(zip(batch.boxes, batch.asked, strict=True)):
        wanted = asked >= 0
        if not bool(wanted.any()):
            continue
        queries, things = match(LayerOutput(logits[n], boxes[n]), all_boxes[wanted], asked[wanted])
        chosen.append(queries)
        picture.append(torch.full_like(queries, n))
        truth.append(all_boxes[wanted][things])
        tokens.append(asked[wanted][things])
    if not chosen:
        return class_loss(logits, targets), boxes.sum() * 0, torch.zeros(())
    at = torch.cat(picture), torch.cat(chosen)
    boxes_loss, iou = box_loss(boxes[at], torch.cat(truth))
    targets[at[0], at[1], torch.cat(tokens)] = iou.clamp(min=LEAST_TARGET)
    count = len(at[0])
    return class_loss(logits, targets) / count, boxes_loss / count, iou.mean()


def total(parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Sum of class and box losses."""
    return torch.stack([cls + box for cls, box in parts]).sum()
