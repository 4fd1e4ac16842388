"""Datasets by name: `open_dataset("humanref:DIR")` and its siblings.

Contract  A name is KIND:PLACE. An unknown kind, an unknown level or a number that is none is an error that
          lists what there is.
Elsewhere what a dataset is: dataset.py; the kinds: humanref.py, humanref_cot.py, refcoco.py, coco.py,
          workbench/dataset.py.
"""

from pathlib import Path

from rexthinker_edge.calibration.coco import CocoDetection
from rexthinker_edge.calibration.dataset import Dataset
from rexthinker_edge.calibration.humanref import HumanRef
from rexthinker_edge.calibration.humanref_cot import HumanRefCot
from rexthinker_edge.calibration.refcoco import RefCoco
from rexthinker_edge.calibration.workbench.dataset import EVALUATION_COUNT, EVALUATION_SEED, Workbench
from rexthinker_edge.calibration.workbench.world import Level
from rexthinker_edge.runtime.errors import DataError, OptionError

FORMS = "humanref:DIR, humanref-cot:DIR, refcoco:FILE, coco:FILE, workbench:easy|full[:SEED[:COUNT]]"


def open_dataset(spec: str, images: Path | str | None = None) -> Dataset:
    """Open a dataset.

    Args:
        spec: one of `FORMS`.
        images: where the pictures are, when they are not beside the file.

    Raises:
        OptionError: the name is none of the forms.
        DataError: the files are missing or none of the kind.
        MissingExtraError: parquet without pyarrow.
    """
    kind, colon, place = spec.partition(":")
    if not colon or not place:
        raise _unknown(spec, "no KIND:PLACE")
    folder = None if images is None else Path(images)
    if folder is not None and not folder.is_dir():
        raise DataError(f"{folder}: no such folder of pictures. Name the one that holds them.")
    if kind == "humanref":
        return HumanRef(place, folder)
    if kind == "humanref-cot":
        return HumanRefCot(place)
    if kind == "refcoco":
        return RefCoco(Path(place), folder)
    if kind == "coco":
        return CocoDetection(Path(place), folder)
    if kind == "workbench":
        return _workbench(spec, place)
    raise _unknown(spec, f"kind {kind!r}")


def _workbench(spec: str, place: str) -> Workbench:
    level, *numbers = place.split(":")
    if level not in list(Level) or len(numbers) > 2 or not all(n.isascii() and n.isdigit() for n in numbers):
        raise _unknown(spec, f"workbench {place!r}")
    seed, count = [*map(int, numbers), *(EVALUATION_SEED, EVALUATION_COUNT)[len(numbers) :]]
    return Workbench(Level(level), seed, count)


def _unknown(spec: str, seen: str) -> OptionError:
    return OptionError(f"dataset {spec!r}: {seen}, one of {FORMS} is needed. Write it so.")
