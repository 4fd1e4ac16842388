"""Numbers a manifest may state: a hostile one must not ask for a terabyte or divide by nothing.

Contract  The limits are far above any model of this kind and far below what hurts. A number that passes may
          still differ from its graph: the runtime compares shapes when it opens that.
Elsewhere the manifest: manifest.py; the graphs: graph_check.py.
Source    docs/bundle.md#limits
"""

from dataclasses import fields, is_dataclass
from typing import Any

MOST = 1 << 24  # of any count or width: vocabularies have 2 ** 18, positions 2 ** 17
MOST_LAYERS = 1024
MOST_PIXELS = 1 << 28
MOST_SIDE_PX = 1 << 14
LARGER = {"max_pixels": MOST_PIXELS, "min_pixels": MOST_PIXELS}
SMALLER = {
    "layers": MOST_LAYERS, "patch": MOST_SIDE_PX, "window": MOST_SIDE_PX, "merge": 64, "temporal_patch": 64,
    "shortest_px": MOST_SIDE_PX, "longest_px": MOST_SIDE_PX, "least_px": MOST_SIDE_PX,
}  # fmt: skip
MAY_BE_ZERO = ("mrope_section",)


def unfit_number(geometry: object, where: str) -> str | None:
    """What is wrong with the numbers of a geometry dataclass, or None.

    Integers must lie in 1 to a limit, floats be positive; a tuple stands for its members.
    """
    assert is_dataclass(geometry)
    for field in fields(geometry):
        values = getattr(geometry, field.name)
        for value in values if isinstance(values, tuple) else (values,):
            if (problem := _unfit(field.name, value)) is not None:
                return f"{where}.{field.name} is {value}, {problem} is needed"
    return None


def _unfit(name: str, value: Any) -> str | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        least, most = int(name not in MAY_BE_ZERO), LARGER.get(name, SMALLER.get(name, MOST))
        return None if least <= value <= most else f"{least} to {most:,}"
    if isinstance(value, float) and name not in ("mean", "box_threshold"):
        return None if 0 < value < 1e12 else "a positive number"
    return None
