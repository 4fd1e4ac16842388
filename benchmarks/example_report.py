"""The example report under docs/: the small model in fp32, int8 and int4: rounded, by GPTQ, tuned.

Run       python -m rexthinker_edge.benchmarks.example_report [--count 1000] [--out docs/example-report]
What      Bundles are exported from a checkpoint, with the options of `SETTINGS`; all answer the same held-out
          workbench items of the full level, seed 1,000,000, with their true candidates. The report is written
          as .html, .md and .json.
Contract  Bundles and runs lie under `--work`, by the digest of the weights and options they came of: stopped,
          the script goes on where it was; with other weights it begins anew.
Elsewhere the report: report.py; the same for any bundles: `rexthinker-edge compare --report`.
"""

import argparse
import hashlib
import re
from dataclasses import asdict, replace
from pathlib import Path

from rexthinker_edge.benchmarks.gate import Gate
from rexthinker_edge.benchmarks.report import compared, write_report
from rexthinker_edge.benchmarks.trials import Trial, hold
from rexthinker_edge.calibration.openers import open_dataset
from rexthinker_edge.calibration.workbench.dataset import EVALUATION_SEED
from rexthinker_edge.export.calibrate import CalibrationOptions
from rexthinker_edge.export.options import ExportOptions
from rexthinker_edge.export.pipeline import export_bundle
from rexthinker_edge.export.quantize import Precision

CHECKPOINTS = Path("checkpoints/small")
GATE = Gate(max_drop=0.5, max_flips=0.02)
MOST_BYTES = 4_000_000
DRAFTS = "workbench"
SETTINGS = {
    "fp32": ExportOptions(draft_traces=DRAFTS),
    "int8": ExportOptions(precision=Precision.INT8, draft_traces=DRAFTS),
    "int4 rounded": ExportOptions(precision=Precision.INT4, draft_traces=DRAFTS),
    "int4 GPTQ": ExportOptions(
        precision=Precision.INT4, draft_traces=DRAFTS, calibration=CalibrationOptions("workbench:full")
    ),
    "int4 tuned": ExportOptions(
        precision=Precision.INT4,
        int8_layers=("k_proj", "v_proj"),
        draft_traces=DRAFTS,
        calibration=CalibrationOptions("workbench:full", tune=300),
    ),
}


def make_bundles(checkpoints: Path, work: Path) -> tuple[list[Path], str]:
    """Export every setting that is not there yet; the bundles in order, and a digest of what they came of."""
    weights = hashlib.sha256()
    for part in ("vlm", "detector"):
        weights.update((checkpoints / part / "model.safetensors").read_bytes())
    places, whole = [], hashlib.sha256(weights.digest())
    for name, chosen in SETTINGS.items():
        options = replace(chosen, name=name, golden_questions=1, resume=False)
        said = repr(sorted(asdict(options).items()))
        digest = hashlib.sha256(f"{weights.hexdigest()} {said}".encode()).hexdigest()[:12]
        whole.update(digest.encode())
        place = work / f"{re.sub('[^a-z0-9]+', '-', name.lower())}-{digest}"
        if not (place / "manifest.json").is_file():
            print(f"exporting {name} to {place}", flush=True)
            export_bundle(checkpoints / "vlm", checkpoints / "detector", place, options)
        places.append(place)
    return places, whole.hexdigest()[:12]


def main() -> None:
    """Export, ask, write."""
    parser = argparse.ArgumentParser(description="Make the example report.")
    parser.add_argument("--checkpoints", type=Path, default=CHECKPOINTS, help="holds vlm/ and detector/")
    parser.add_argument("--work", type=Path, default=Path("runs/example"), help="for bundles and runs")
    parser.add_argument("--out", type=Path, default=Path("docs/example-report"), help="without its ending")
    parser.add_argument("--count", type=int, default=1000, help="items")
    parser.add_argument("--workers", type=int, default=1, help="processes; more than 1 blurs the times")
    parser.add_argument("--orders", type=int, default=1, help="times each item is asked again, shuffled")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    places, digest = make_bundles(arguments.checkpoints, arguments.work)
    spec = f"workbench:full:{EVALUATION_SEED}:{arguments.count}"
    trial = Trial(spec, None, range(arguments.count), workers=arguments.workers, orders=arguments.orders)
    runs, problems = hold([str(place) for place in places], trial, arguments.work / f"runs-{digest}")
    with open_dataset(spec) as dataset:
        report = compared(runs, dataset, trial, GATE, problems)
        for ending in (".html", ".md", ".json"):
            path = arguments.out.with_name(arguments.out.name + ending)
            write_report(path, report, dataset)
            print(f"{path}: {path.stat().st_size:,} bytes")
            assert path.stat().st_size < MOST_BYTES, f"{path} is meant to be committed: show fewer flips"
    for failure in report["gate"]["failures"]:
        print(f"gate: {failure}")


if __name__ == "__main__":
    main()
