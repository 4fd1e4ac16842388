"""A HumanRef-CoT set of 5,000 workbench records with corrupted bytes, read to its end.

Run       python tests/slow/corrupted_tsv.py DIR    (200 MB on disk in DIR)
What      100 workbench items are written 50 times each, every record with a picture of its own. Twice: one
          record in a hundred is hit by bytes that are neither UTF-8 nor base64 (then exactly these must be
          named, and every other must read as written); and one byte in a hundred of all files but the indices
          is replaced at random (then nearly every record is hit: nothing may end the reading, and what reads
          must be one of the records). Resident memory is taken after 500 records and at the end.
Last      106 MiB: 5,000 records read, none named; one record in a hundred: 48 hit, the same 48 named, all
          others as written; one byte in a hundred: all 5,000 named. Resident memory grew by 4 to 6 MiB from
          record 500 to the end, for the records this script keeps; two busy AVX2 cores, 2 to 36 s a reading.
"""

import resource
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from rexthinker_edge.calibration.cot_pair import PAIR, REJECTION_PAIR
from rexthinker_edge.calibration.humanref_cot import write_humanref_cot
from rexthinker_edge.calibration.openers import open_dataset
from rexthinker_edge.calibration.records import Problem, Record
from rexthinker_edge.calibration.workbench.items import item_record, make_item
from rexthinker_edge.calibration.workbench.render import render

ITEMS, COPIES = 100, 50


def items() -> Iterator[tuple[Record, np.ndarray]]:
    """Every item `COPIES` times, each under a name of its own."""
    made = [make_item("easy", 1_000_000, index) for index in range(ITEMS)]
    pictures = [render(item.scene) for item in made]
    for copy in range(COPIES):
        for index, item in enumerate(made):
            record = item_record(item, index)
            yield replace(record, image_name=f"{copy}-{record.image_name}"), pictures[index]


def resident() -> int:
    """Most bytes this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def read(folder: Path) -> tuple[dict[str, Record], list[Problem]]:
    """Everything that can be read, by picture; prints the memory."""
    problems, kept, begun, early = list[Problem](), dict[str, Record](), time.monotonic(), 0
    with open_dataset(f"humanref-cot:{folder}") as dataset:
        for number in range(len(dataset)):
            example = dataset.example(number, problems)
            if example is not None:
                kept[example.record.image_name] = example.record
            if number == 500:
                early = resident()
        total = len(dataset)
    grown = (resident() - early) / 2**20
    spent = time.monotonic() - begun
    print(f"{total:,} records, {len(kept):,} read, {len(problems):,} problems, {spent:.0f} s; ", end="")
    print(f"resident memory grew by {grown:.1f} MiB after the first 500")
    return kept, problems


def hit_records(folder: Path, rng: np.random.Generator) -> set[str]:
    """Spoil one record in a hundred in its annotation or its picture; returns their pictures' names."""
    names = set[str]()
    for pair in (PAIR, REJECTION_PAIR):
        for part in ("annotations", "images"):
            path = folder / f"{pair}.{part}.tsv"
            starts = [
                *map(int, path.with_name(path.name + ".lineidx").read_text().split()),
                path.stat().st_size,
            ]
            chosen = rng.choice(len(starts) - 1, max(1, (len(starts) - 1) // 200), replace=False)
            with path.open("r+b") as stream, (folder / f"{pair}.images.tsv").open("rb") as images:
                for number in map(int, chosen):
                    images.seek(image_start(path, folder, pair, part, number, starts))
                    names.add(images.readline(200).partition(b"\t")[0].decode())
                    places = rng.integers(starts[number] + 60, starts[number + 1] - 1, 3)
                    for place in places:
                        stream.seek(int(place))
                        stream.write(b"\xff")
    return names


def image_start(path: Path, folder: Path, pair: str, part: str, number: int, starts: list[int]) -> int:
    """Where the picture of a line begins."""
    if part == "images":
        return starts[number]
    with path.open("rb") as stream:
        stream.seek(starts[number])
        return int(stream.readline().partition(b"\t")[0])


def spoil_bytes(folder: Path, rng: np.random.Generator) -> None:
    """Replace one byte in a hundred at random."""
    for path in folder.glob("*.tsv"):
        raw = bytearray(path.read_bytes())
        places = rng.choice(len(raw), len(raw) // 100, replace=False)
        for place, value in zip(places.tolist(), rng.integers(0, 256, len(places)).tolist(), strict=True):
            raw[place] = value
        path.write_bytes(raw)


def main(place: Path) -> None:
    """Write, spoil, read, compare; twice."""
    rng = np.random.default_rng(6)
    whole = place / "whole"
    shutil.rmtree(place, ignore_errors=True)
    written = write_humanref_cot(whole, items())
    print(f"{written:,} records, {sum(p.stat().st_size for p in whole.iterdir()) / 2**20:.0f} MiB")
    wanted, none = read(whole)
    assert none == []
    once = shutil.copytree(whole, place / "records")
    hit = hit_records(once, rng)
    kept, problems = read(once)
    assert {name: r for name, r in wanted.items() if name not in hit} == kept
    print(f"one record in a hundred: {len(hit)} hit, {len(problems)} named, every other as written")
    assert len(problems) == len(hit)
    spoil_bytes(once, rng)
    kept, problems = read(once)
    assert set(kept) <= set(wanted), "a record that was never written"
    assert len(kept) + len({(p.file, p.line) for p in problems if not p.kept}) == len(wanted)
    shutil.rmtree(place)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
