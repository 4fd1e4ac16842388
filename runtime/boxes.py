"""Candidate boxes: their two coordinate systems, their overlap, and what a caller's boxes must be.

Layout    (N, 4), each row (x0, y0, x1, y1), x1/y1 exclusive. `original_px` are pixels of the upright
          original picture; `resized_px` are pixels of the picture the language model sees. N may be 0.
Contract  `to_resized_px` is the training formula, `int(x / original_width * resized_width)`, to the last bit.
Elsewhere the model's resize: qwen_pixels.py; boxes in the prompt: prompt.py; boxes in the answer: answer.py.
Source    docs/sources.md#box-hints
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rexthinker_edge.runtime.errors import BoxError

Boxes = NDArray[np.floating[Any]]
Size = tuple[int, int]  # (width, height)

MAX_BOXES = 200  # a hint of 200 boxes is about 4,500 tokens, beyond every trace the model was trained on
EDGE_SLACK_PX = 1.0  # annotation tools write width + rounding; further out is a mistake


def to_resized_px(boxes: Boxes, original: Size, resized: Size) -> NDArray[np.int64]:
    """Express boxes in the pixels the model sees.

    Args:
        boxes: (N, 4) float, (x0, y0, x1, y1) in pixels of the upright original; N may be 0.
        original, resized: (width, height) before and after the model's resize.

    Returns:
        (N, 4) int64 in [0, resized - 1], truncated toward zero as in training.

    Raises:
        BoxError: a box is not finite, or its corners are swapped.

    Source: docs/sources.md#box-hints
    """
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    _check_finite(boxes)
    _check_order(boxes)
    scaled = boxes / _sides(original) * _sides(resized)
    return np.clip(scaled.astype(np.int64), 0, np.array([*resized, *resized]) - 1)


def to_thousandths(boxes: ArrayLike, size: Size) -> NDArray[np.int64]:
    """Express boxes in thousandths of a picture's sides, as grounded thoughts do.

    Args:
        boxes: (N, 4) numbers, (x0, y0, x1, y1) in pixels; N may be 0.
        size: (width, height) of that picture.

    Returns:
        (N, 4) int64 in [0, 1000], rounded.
    """
    array = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    return np.clip(np.rint(array / _sides(size) * 1000), 0, 1000).astype(np.int64)


def iou(first: ArrayLike, second: ArrayLike) -> NDArray[np.float64]:
    """Intersection over union of every pair.

    Args:
        first: (N, 4), second: (M, 4), in one coordinate system; either may be empty.

    Returns:
        (N, M) float64 in [0, 1]; 0 where the union has no area.
    """
    a = np.asarray(first, dtype=np.float64).reshape(-1, 4)
    b = np.asarray(second, dtype=np.float64).reshape(-1, 4)
    corner = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    shared = np.clip(corner, 0, None).prod(axis=2)
    union = area(a)[:, None] + area(b)[None, :] - shared
    overlap: NDArray[np.float64] = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return overlap


def area(boxes: Boxes) -> NDArray[np.float64]:
    """(N,) float64 areas of (N, 4) boxes; a swapped box has area 0."""
    return np.asarray(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1), dtype=np.float64)


def check_boxes(boxes: ArrayLike | Sequence[Sequence[float]], size: Size) -> NDArray[np.float64]:
    """Accept a caller's candidates, or say which one is wrong.

    Args:
        boxes: N rows (x0, y0, x1, y1) in pixels of the upright original; N from 0 to `MAX_BOXES`.
        size: (width, height) of that picture.

    Returns:
        (N, 4) float64 within the picture, in the caller's order. A box that reaches over the edge by at most
        `EDGE_SLACK_PX` is clamped to it.

    Raises:
        BoxError: rows are not four numbers, not finite, swapped, without area, outside, equal, or too many.
    """
    array = _as_rows(boxes)
    if len(array) > MAX_BOXES:
        raise BoxError(
            f"candidate boxes: {len(array)} of them, at most {MAX_BOXES} are allowed. "
            "Keep the ones with the highest scores."
        )
    _check_finite(array)
    _check_order(array)
    clamped = np.clip(array, 0, _sides(size))
    for index in np.flatnonzero(np.abs(clamped - array).max(axis=1, initial=0) > EDGE_SLACK_PX):
        raise BoxError(
            f"candidate box {index}: {_show(array[index])} lies outside the picture of "
            f"{size[0]} x {size[1]} px. Boxes are in pixels of the upright picture "
            "(EXIF orientation applied): convert or clip it."
        )
    for index in np.flatnonzero(area(clamped) <= 0):
        raise BoxError(
            f"candidate box {index}: {_show(array[index])} has no area, "
            "x0 < x1 and y0 < y1 are needed. Remove it."
        )
    _check_distinct(clamped)
    return clamped


def _as_rows(boxes: ArrayLike) -> NDArray[np.float64]:
    try:
        array = np.asarray(boxes, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise BoxError(
            f"candidate boxes: not rows of numbers ({error}). Give a list of [x0, y0, x1, y1] in pixels."
        ) from error
    if array.size == 0:
        return np.zeros((0, 4))
    if array.ndim != 2 or array.shape[1] != 4:
        raise BoxError(
            f"candidate boxes: an array of shape {array.shape}, (N, 4) is needed. "
            "Give a list of [x0, y0, x1, y1] in pixels."
        )
    return array


def _check_finite(boxes: NDArray[np.float64]) -> None:
    for index in np.flatnonzero(~np.isfinite(boxes).all(axis=1)):
        raise BoxError(
            f"candidate box {index}: {_show(boxes[index])} is not finite, "
            "four pixel numbers are needed. Remove it."
        )


def _check_order(boxes: NDArray[np.float64]) -> None:
    for index in np.flatnonzero((boxes[:, 2:] < boxes[:, :2]).any(axis=1)):
        raise BoxError(
            f"candidate box {index}: {_show(boxes[index])} has its corners swapped, "
            "x0 <= x1 and y0 <= y1 are needed. Give (x0, y0, x1, y1), not (x, y, width, height)."
        )


def _check_distinct(boxes: NDArray[np.float64]) -> None:
    seen: dict[tuple[float, ...], int] = {}
    for index, box in enumerate(boxes):
        first = seen.setdefault(tuple(box.tolist()), index)
        if first != index:
            raise BoxError(
                f"candidate box {index}: {_show(box)} is the same as box {first}, "
                "each candidate must be a different thing. Remove one of them."
            )


def _sides(size: Size) -> NDArray[np.float64]:
    width, height = size
    return np.array([width, height, width, height], dtype=np.float64)


def _show(box: NDArray[np.float64]) -> str:
    return "[" + ", ".join(f"{value:g}" for value in box) + "]"
