"""Opens calibration data by one word: `workbench:LEVEL`, `humanref-cot:DIR` or `humanref:DIR`.

Contract  Records are read in a bounded number, drawn over the whole file by the seed; pictures only when they
          are needed. What was chosen is told by its ids and one SHA-256 over everything that was read.
Elsewhere the choice: selection.py; the files: openers.py; prompts: samples.py.
"""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.calibration.dataset import Example
from rexthinker_edge.calibration.openers import open_dataset
from rexthinker_edge.calibration.records import Problem, Record
from rexthinker_edge.calibration.selection import Traits, choose
from rexthinker_edge.calibration.workbench.items import Item, item_record, item_trace, make_item
from rexthinker_edge.calibration.workbench.render import render
from rexthinker_edge.calibration.workbench.world import Level
from rexthinker_edge.runtime.boxes import Size
from rexthinker_edge.runtime.errors import DataError, OptionError
from rexthinker_edge.runtime.image import read_picture

POOL_PER_SAMPLE = 8  # records looked at for each one chosen
WORKBENCH_SEED = 900_000  # training seeds lie below, evaluation seeds above
KINDS = "workbench:easy, workbench:full, humanref-cot:DIRECTORY or humanref:DIRECTORY"


@dataclass(frozen=True)
class Situation:
    """One question on one picture, not yet a prompt.

    Attributes:
        id: unique in its source.
        record: boxes in original pixels; its trace is None where the data has none.
        pixels: reads the picture, (H, W, 3) uint8 RGB.
        turn: the assistant's whole turn for a picture resized to (width, height), where the source writes it
            itself; None: from the record's trace.
    """

    id: str
    record: Record
    pixels: Callable[[], NDArray[np.uint8]] = field(repr=False)
    turn: Callable[[Size], str] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Choice:
    """The chosen situations and how they are told to others."""

    source: str
    seed: int
    situations: tuple[Situation, ...]
    problems: tuple[Problem, ...]

    def sha256(self) -> str:
        """Over ids, expressions, boxes, traces and every pixel."""
        total = hashlib.sha256()
        for situation in self.situations:
            record = situation.record
            said = [situation.id, record.category, record.referring, record.trace]
            boxes = [record.candidate_boxes, record.answer_boxes]
            total.update(json.dumps([said, boxes], ensure_ascii=False).encode())
            total.update(np.ascontiguousarray(situation.pixels()).tobytes())
        return total.hexdigest()

    def domains(self) -> dict[str, int]:
        """How many samples each domain gave."""
        return dict(sorted(Counter(s.record.domain or "unnamed" for s in self.situations).items()))


def choose_calibration(source: str, count: int, seed: int = 0) -> Choice:
    """Open a source and choose `count` samples of it.

    Args:
        source: one of `KINDS`.

    Raises:
        OptionError: `source` is nothing of that kind.
        DataError: its files are missing, or hold too few readable records.
    """
    kind, _, place = source.partition(":")
    problems: list[Problem] = []
    pool_size = POOL_PER_SAMPLE * count
    if kind == "workbench" and place in set(Level):
        pool = _workbench(Level(place), pool_size, seed)
    elif kind in ("humanref-cot", "humanref") and place:
        pool = _from_files(source, pool_size, seed, problems)
    else:
        raise OptionError(f"calibration: {source!r}, needed {KINDS}. Name the data so.")
    by_id = {situation.id: situation for situation in pool}
    if len(by_id) != len(pool):
        raise DataError(f"{source}: two records share an id, ids must differ. Remove the copy.")
    chosen = choose([_traits(situation) for situation in pool], count, seed)
    return Choice(source, seed, tuple(by_id[traits.id] for traits in chosen), tuple(problems))


def _traits(situation: Situation) -> Traits:
    record = situation.record
    domain = record.domain or ("answered" if record.answer_boxes else "rejection")
    length = len(record.referring) + len(record.trace or "")
    return Traits(situation.id, domain, len(record.candidate_boxes), length)


def _workbench(level: Level, count: int, seed: int) -> list[Situation]:
    if not 0 <= seed < 100_000:
        raise OptionError(f"calibration_seed: {seed}, needed 0 to 99,999. Evaluation has the seeds above.")
    items = [make_item(level, WORKBENCH_SEED + seed, index) for index in range(count)]
    return [workbench_situation(item, index) for index, item in enumerate(items)]


def workbench_situation(item: Item, index: int) -> Situation:
    """A workbench item; `index` becomes its record's id."""
    return Situation(
        item.name,
        item_record(item, index),
        lambda: render(item.scene),
        lambda resized: item_trace(item, resized, item.scene.index),
    )


def _from_files(source: str, count: int, seed: int, problems: list[Problem]) -> list[Situation]:
    """Situations of a dataset's files, drawn over all of it.

    A record is left out, and told, where its picture or its boxes cannot be used as they are: a trace counts
    the candidates it was written for, and an answer copies boxes of the hint.
    """
    kind, found = source.partition(":")[0], []
    with open_dataset(source) as dataset:
        whole = range(len(dataset))
        drawn = sorted(random.Random(f"{seed}:{kind}").sample(whole, min(count, len(whole))))
        for example in dataset.examples(problems, drawn):
            if (record := _as_asked(example)) is None:
                what = "an answer is no candidate, or a candidate cannot be asked about"
                problems.append(Problem(*dataset.place(example.number), what))
                continue
            file = example.picture if isinstance(example.picture, Path) else None
            found.append(
                Situation(f"{kind}:{example.number}", record, _Picture(source, example.number, file))
            )
    return found


def _as_asked(example: Example) -> Record | None:
    """The record with the boxes that the prompt will hold; None where they are not the record's own."""
    answers = example.answers()
    if answers is None or len(example.candidates) != len(example.record.candidate_boxes):
        return None
    answered = tuple(box for k, box in enumerate(example.candidates) if k in answers)
    return replace(example.record, candidate_boxes=example.candidates, answer_boxes=answered)


@dataclass(frozen=True)
class _Picture:
    """Reads one picture of a dataset when it is asked for; `file` is its own, where it has one."""

    source: str
    number: int
    file: Path | None

    def __call__(self) -> NDArray[np.uint8]:
        if self.file is not None:
            return read_picture(self.file).pixels_HWC
        with open_dataset(self.source) as dataset:
            return read_picture(dataset.picture(self.number, dataset.record(self.number))).pixels_HWC
