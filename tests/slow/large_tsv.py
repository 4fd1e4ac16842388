"""A HumanRef-CoT pair of 10 GB, read to its end in the address space of a small machine.

Run       python tests/slow/large_tsv.py DIR    (11 GB in DIR as `ls` tells it, 1.1 GB on disk)
What      5,000 workbench records as tests/slow/corrupted_tsv.py makes them; behind each picture's line stands
          another that no record names, of 2 MB of nothing (a hole in the file, so that no disk is filled).
          Annotations are padded to 1 GB in the same way, inside their JSON's blanks. A second process, which
          may map 2 GB and no more, opens the set with its indices and reads every record and the beginning
          of every picture; a third does so without indices, so that the annotations are read through first.
Last      11.1 GB by `ls`; all 5,000 records read, none named. With indices: opened in 0.02 s, read in 19 s,
          42 MiB at most, 40 of them Python, NumPy and Pillow; without: opened in 1.4 s, read in 17 s, 72 MiB
          (a piece of 16 MiB and where its newlines are). One of two busy AVX2 cores, files in the page cache.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from corrupted_tsv import items

from rexthinker_edge.calibration.humanref_cot import write_humanref_cot
from rexthinker_edge.calibration.openers import open_dataset
from rexthinker_edge.calibration.records import Problem

HOLE, PADDING = 2_000_000, 200_000
ALLOWED = 2 * 2**30


def enlarge(folder: Path) -> None:
    """Pull the lines of every pair apart, pictures by holes and annotations by blanks; new indices."""
    for images in sorted(folder.glob("*.images.tsv")):
        moved = _spread_pictures(images)
        annotations = images.with_name(images.name.replace("images", "annotations"))
        with annotations.with_suffix(".new").open("wb") as stream, _index(annotations).open("w") as index:
            for line in annotations.read_bytes().splitlines():
                offset, _, text = line.partition(b"\t")
                index.write(f"{stream.tell()}\n")
                stream.write(b"%d\t" % moved[int(offset)] + text[:-1] + b" " * PADDING + b"}\n")
        annotations.with_suffix(".new").replace(annotations)


def _index(path: Path) -> Path:
    return path.with_name(path.name + ".lineidx")


def _spread_pictures(images: Path) -> dict[int, int]:
    """Where each line begins now, by where it began."""
    moved, old = dict[int, int](), 0
    with images.with_suffix(".new").open("wb") as stream, _index(images).open("w") as index:
        for line in images.read_bytes().splitlines(keepends=True):
            moved[old], old = stream.tell(), old + len(line)
            index.write(f"{stream.tell()}\n")
            stream.write(line)
            index.write(f"{stream.tell()}\n")
            stream.seek(HOLE, 1)
            stream.write(b"\n")
    images.with_suffix(".new").replace(images)
    return moved


def read(folder: str) -> None:
    """In a process of its own: prints seconds and the most memory as JSON."""
    resource.setrlimit(resource.RLIMIT_AS, (ALLOWED, ALLOWED))
    before, begun = _peak(), time.monotonic()
    problems = list[Problem]()
    with open_dataset(f"humanref-cot:{folder}") as dataset:
        opened, after = time.monotonic() - begun, _peak()
        found = sum(1 for _ in dataset.examples(problems))
        told = {
            "records": len(dataset), "read": found, "problems": len(problems), "opening_s": round(opened, 2),
            "reading_s": round(time.monotonic() - begun - opened, 1), "imported_mib": round(before / 2**20),
            "opened_mib": round(after / 2**20), "peak_mib": round(_peak() / 2**20),
        }  # fmt: skip
    print(json.dumps(told))


def _peak() -> int:
    """The most this program held: of a process that became this one by `exec`, `getrusage` tells more."""
    told = Path("/proc/self/status").read_text("ascii").partition("VmHWM:")[2]
    return int(told.split()[0]) * 1024


def main(folder: Path) -> None:
    """Write, enlarge, read twice."""
    print(f"{write_humanref_cot(folder, items()):,} records")
    enlarge(folder)
    files = sorted(folder.iterdir())
    told, held = sum(f.stat().st_size for f in files), sum(f.stat().st_blocks * 512 for f in files)
    print(f"{told / 1e9:.1f} GB, {held / 1e6:.0f} MB on disk")
    for kept in (True, False):
        if not kept:
            for index in folder.glob("*.lineidx"):
                index.unlink()
        print("with indices:" if kept else "without:", flush=True)
        subprocess.run([sys.executable, __file__, "--read", str(folder)], check=True)


if __name__ == "__main__":
    read(sys.argv[2]) if sys.argv[1] == "--read" else main(Path(sys.argv[1]))
