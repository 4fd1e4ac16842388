"""Kills an export of the small model at random moments and checks what stands there; then resumes it.

Run       python tests/slow/kill_export.py DIR [KILLS]    (a few MB in DIR; seconds a kill on an idle core)
What      Every round starts an export over a bundle that stands there already, in a process of its own, kills
          that with SIGKILL after a random part of the time that a whole export takes, and opens what stands
          under the name: the old bundle, the new one, whole, or nothing with the old one beside it.
          Then an export with `resume` finishes it; the parts the journal had are not written again (their
          files keep inode and time), nothing is left beside it, and the result equals, file by file, an
          export that was never killed. The detector's graph is copied from the bundled model instead of
          traced, which would be nearly all of the time.
Last      docs/full-size.md#interruptions
"""

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from dataclasses import dataclass, field, replace
from pathlib import Path

from rexthinker_edge.export import parts, pipeline
from rexthinker_edge.export.embeddings import EmbeddingPrecision
from rexthinker_edge.export.options import ExportOptions
from rexthinker_edge.export.pipeline import export_bundle
from rexthinker_edge.export.quantize import Precision
from rexthinker_edge.runtime.bundle import open_bundle
from rexthinker_edge.runtime.detector import DetectorGeometry
from rexthinker_edge.runtime.thinker import small_bundle

SMALL = Path(__file__).resolve().parents[2] / "checkpoints" / "small"
OPTIONS = ExportOptions(
    precision=Precision.INT4, embeddings=EmbeddingPrecision.INT8, golden_questions=1, golden_tokens=4
)


# Of the time of a whole export: while parts are written, anywhere, about when the bundle is put into place.
SPANS = ((0.0, 0.3), (0.0, 1.05), (0.8, 1.2))


@dataclass
class Tally:
    """What the kills met."""

    old: int = 0
    new: int = 0
    none: int = 0
    resumed_parts: list[int] = field(default_factory=list)


def started(out: Path, options: ExportOptions) -> int:
    """The id of a process that exports the small checkpoints to `out`."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        export_bundle(SMALL / "vlm", SMALL / "detector", out, options)
        status = 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        os._exit(status)


def whole(out: Path, options: ExportOptions) -> None:
    """An export that is not killed."""
    _, status = os.waitpid(started(out, options), 0)
    assert status == 0, f"the export ended with {status}"


def copy_detector(folder: Path) -> None:
    """Let exports take the bundled detector, of which `folder` keeps a copy, instead of tracing one."""
    bundle = open_bundle(shutil.copytree(small_bundle(), folder / "small"))

    def write_detector(_: Path, out: Path, *__: object, **___: object) -> DetectorGeometry:
        for name in bundle.manifest.files:
            if name.startswith("detector") and ".onnx" in name:
                shutil.copyfile(bundle.file(name), out.parent / name)
        return bundle.manifest.detector

    parts.write_detector = write_detector
    pipeline.read_geometry = lambda _: bundle.manifest.detector


def files(directory: Path) -> dict[str, str]:
    """Hash of every file, as its manifest states it; raises where the bundle is not whole."""
    return {name: entry.sha256 for name, entry in open_bundle(directory, hashes=True).manifest.files.items()}


def journalled(out: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """Inode and time of change of the files of every part that the journal has."""
    journal = out.with_name(f".{out.name}.work") / "journal.json"
    if not journal.is_file():
        return {}
    partial = out.with_name(f".{out.name}.partial")
    return {
        name: {
            file: (status.st_ino, status.st_mtime_ns)
            for file in part["files"]
            if (partial / file).is_file() and (status := (partial / file).stat())
        }
        for name, part in json.loads(journal.read_text())["parts"].items()
    }


def one_kill(out: Path, wanted: dict[str, str], old: dict[str, str], seconds: float, tally: Tally) -> None:
    """Start, kill, look, resume, compare."""
    process = started(out, replace(OPTIONS, overwrite=True))
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    if out.exists():
        seen = files(out)
        assert seen in (old, wanted), "what stands there is neither the old bundle nor the new one"
        tally.old, tally.new = tally.old + (seen == old), tally.new + (seen == wanted)
    else:
        assert files(out.with_name(f".{out.name}.old")) == old, "nothing stands there, nor the old one beside"
        tally.none += 1
    before = journalled(out)
    tally.resumed_parts.append(len(before))
    whole(out, replace(OPTIONS, overwrite=True, resume=True))
    assert files(out) == wanted, "the resumed bundle differs"
    for name, part in before.items():
        for file, (inode, changed) in part.items():
            status = (out / file).stat()
            assert (status.st_ino, status.st_mtime_ns) == (inode, changed), f"{name}: {file} written again"
    left = sorted(path.name for path in out.parent.iterdir() if path.name.startswith(f".{out.name}."))
    assert not left, left


def run(folder: Path, kills: int, seed: int = 0) -> Tally:
    """`kills` rounds in `folder`, which must be empty."""
    folder.mkdir(parents=True, exist_ok=True)
    copy_detector(folder)
    out, keep, tally, choose = folder / "bundle", folder / "before", Tally(), random.Random(seed)
    whole(folder / "wanted", OPTIONS)
    begun = time.monotonic()
    whole(keep, replace(OPTIONS, embeddings=EmbeddingPrecision.KEPT))
    takes = time.monotonic() - begun
    wanted, old = files(folder / "wanted"), files(keep)
    assert wanted != old
    for number in range(kills):
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(keep, out)
        one_kill(out, wanted, old, choose.uniform(*SPANS[number % len(SPANS)]) * takes, tally)
        print(f"{number + 1}/{kills} ({takes:.1f} s an export): {tally}", flush=True)
    return tally


if __name__ == "__main__":
    print(run(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 50))
