"""Which sizes an engine must serve: optimisation profiles, one per bucket of picture sizes.

What      TensorRT tunes an engine for ranges of shapes. Landscape and portrait pictures, freak ribbons, and
          small and large numbers of patches are apart, so that a common picture is near what was tuned for.
Contract  Every picture that preprocessing lets through has a profile: tests/export/test_tensorrt.py. Ranges
          are taken from real inputs, made as the runtime makes them, at a bucket's corners.
Elsewhere the inputs: runtime/vision.py, runtime/detector_tables.py; building: tensorrt.py.
Source    docs/tensorrt.md
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from rexthinker_edge.runtime.detector import DetectorGeometry
from rexthinker_edge.runtime.detector_tables import make_tables
from rexthinker_edge.runtime.engine_card import InputRange
from rexthinker_edge.runtime.errors import ConfigError
from rexthinker_edge.runtime.manifest import PromptSettings
from rexthinker_edge.runtime.qwen_pixels import MAX_ASPECT
from rexthinker_edge.runtime.vision import VisionGeometry

Feeds = dict[str, NDArray[Any]]
Corners = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]  # (height, width): least, usual, most
SHORTEST_CAPTION, USUAL_CAPTION = 3, 5  # tokens: [CLS] word [SEP]; a word and a full stop more
VISION_BUCKETS = 3


@dataclass(frozen=True)
class Profile:
    """Real inputs at the corners of one bucket: shapes for all, and values where a value is a shape."""

    name: str
    least: Feeds
    usual: Feeds
    most: Feeds

    def ranges(self) -> dict[str, InputRange]:
        """The shapes, for the engine's card."""
        return {
            name: InputRange(self.least[name].shape, self.usual[name].shape, self.most[name].shape)
            for name in self.least
        }


def symbols(model: onnx.ModelProto) -> dict[str, list[str | int]]:
    """Each input's axes: a number, or the name of a free one."""
    return {
        value.name: [dim.dim_param or int(dim.dim_value) for dim in value.type.tensor_type.shape.dim]
        for value in model.graph.input
    }


def of_sizes(inputs: Mapping[str, Sequence[str | int]], sizes: Mapping[str, int]) -> Feeds:
    """Zeros for each input with its free axes as given; ConfigError when one is not given."""
    made: Feeds = {}
    for name, axes in inputs.items():
        for axis in axes:
            if isinstance(axis, str) and axis not in sizes:
                raise ConfigError(
                    f"input {name}: its free axis {axis!r} is not known, profiles need the range of each. "
                    "Export the bundle with this version."
                )
        shape = [axis if isinstance(axis, int) else sizes[axis] for axis in axes]
        made[name] = np.broadcast_to(np.zeros((), np.float32), shape)
    return made


def vision_profiles(
    geometry: VisionGeometry, prompt: PromptSettings, inputs: Mapping[str, Sequence[str | int]]
) -> list[Profile]:
    """By the number of patches: up to a quarter of `max_pixels`, to a half, to all of it; and thin pictures,
    whose rounding to whole merged patches leads beyond it.

    Args:
        inputs: the graph's, from `symbols`.
    """
    grids = vision_grids(geometry, prompt)
    full = prompt.max_pixels // geometry.patch**2
    bounds = [*(full // 2**power for power in reversed(range(VISION_BUCKETS))), geometry.max_patches]
    profiles, low = [], 0
    for high in bounds:
        inside = [sizes for sizes in grids if low < sizes["patches"] <= high]
        low = high
        if inside:
            corner = {key: (min(s[key] for s in inside), max(s[key] for s in inside)) for key in inside[0]}
            square = max(inside, key=lambda s: (s["patches"], -s["windows"]))
            least, most = ({key: pair[end] for key, pair in corner.items()} for end in (0, 1))
            feeds = [of_sizes(inputs, sizes) for sizes in (least, square, most)]
            profiles.append(Profile(f"patches up to {most['patches']}", feeds[0], feeds[1], feeds[2]))
    return profiles


def vision_grids(geometry: VisionGeometry, prompt: PromptSettings) -> list[dict[str, int]]:
    """Patches, windows and slots of every grid that preprocessing can give."""
    unit, side = geometry.merge, geometry.window // geometry.patch
    fewest = max(prompt.min_pixels // geometry.patch**2, unit**2)
    found = []
    for height in range(unit, geometry.max_patches // unit + 1, unit):
        # smart_resize refuses longer pictures; rounding to whole merged patches adds at most one to each side
        longest = min(geometry.max_patches // height, (height + unit) * MAX_ASPECT + unit)
        for width in range(unit, longest + 1, unit):
            if height <= (width + unit) * MAX_ASPECT + unit and height * width >= fewest:
                windows = math.ceil(height / side) * math.ceil(width / side)
                slots = min(height, side) * min(width, side)
                found.append({"patches": height * width, "windows": windows, "slots": slots})
    return found


def detector_profiles(geometry: DetectorGeometry, inputs: Mapping[str, Sequence[str | int]]) -> list[Profile]:
    """By form: wide and tall pictures, and ribbons whose short side had to be widened."""
    short, long, least = geometry.shortest_px, geometry.longest_px, geometry.least_px
    # A very thin picture keeps a long side that rounds to `longest_px` only roughly: see `dino_size`.
    slack = math.ceil(long / (1 - 0.5 / (least + 1)))
    usual = min(round(short * 4 / 3), long)
    wide = ((least, short), (short, usual), (short, slack))
    thin = ((least, math.floor(long / 1.5)), (least, long), (least, 2 * long))
    buckets = {"wide": wide, "ribbon": thin}
    buckets |= {"tall": _turned(wide), "ribbon, tall": _turned(thin)}
    captions = (SHORTEST_CAPTION, USUAL_CAPTION, geometry.max_text_len)
    return [
        Profile(
            name,
            *(
                _detector_feeds(geometry, inputs, *size, tokens)
                for size, tokens in zip(sizes, captions, strict=True)
            ),
        )
        for name, sizes in buckets.items()
    ]


def _turned(sizes: Corners) -> Corners:
    (a, b), (c, d), (e, f) = sizes
    return (b, a), (d, c), (f, e)


def _detector_feeds(
    geometry: DetectorGeometry,
    inputs: Mapping[str, Sequence[str | int]],
    height: int,
    width: int,
    tokens: int,
) -> Feeds:
    """The inputs at one picture size: tables as the runtime makes them, the rest as zeros."""
    tables: Feeds = {}
    if geometry.tables is not None:
        height, width = (side + -side % geometry.tables.patch for side in (height, width))
        tables = {k: v for k, v in make_tables(height, width, geometry.tables).items() if k in inputs}
    rest = {name: axes for name, axes in inputs.items() if name not in tables}
    return tables | of_sizes(rest, {"height": height, "width": width, "tokens": tokens})
