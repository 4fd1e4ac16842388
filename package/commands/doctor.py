"""`rexthinker-edge doctor`: whether this machine really runs a bundle.

Contract  Every check ends ok, failed or skipped, never in a stack trace; a failed one has exactly one remedy.
          Exit code 0 when none failed, else 1. `--json` prints one object, schema rexthinker-edge/doctor/1.
Elsewhere kernels: runtime/kernel_checks.py; the golden self-test: runtime/self_test.py; checks of the
          machine: machine_checks.py.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import click

from rexthinker_edge.commands.machine_checks import Check, attempt, machine_checks
from rexthinker_edge.progress import phase

SCHEMA = "rexthinker-edge/doctor/1"
REINSTALL = "Install a released wheel of it: pip install --force-reinstall 'onnxruntime>=1.29'."


@click.command()
@click.option("--bundle", type=click.Path(path_type=Path), help="The small bundled model when left out.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(bundle: Path | None, as_json: bool) -> int:
    """Check Python, packages, kernels, a bundle's self-test, camera and disk; one remedy per failure."""
    checks: list[Check] = []
    for check in chain(machine_checks(_directory(bundle)), kernel_checks(), bundle_checks(bundle)):
        checks.append(check)
        if not as_json:
            _show(check)
    failed = [check for check in checks if check.status == "failed"]
    if as_json:
        value = {"schema": SCHEMA, "ok": not failed, "checks": [asdict(check) for check in checks]}
        click.echo(json.dumps(value, ensure_ascii=False))
    else:
        passed = sum(check.status == "ok" for check in checks)
        click.echo(f"{passed} ok, {len(failed)} failed, {len(checks) - passed - len(failed)} skipped")
    return 1 if failed else 0


def _show(check: Check) -> None:
    click.echo(f"{check.status:<8}{check.name}: {check.seen}")
    if check.remedy:
        click.echo(f"{'':<8}→ {check.remedy}")


def _directory(bundle: Path | None) -> Path:
    if bundle is not None:
        return bundle
    try:
        from rexthinker_edge.runtime.thinker import small_bundle  # noqa: PLC0415
    except ImportError:  # told by the checks of the packages
        return Path(".")
    return small_bundle()


def kernel_checks() -> Iterator[Check]:
    """One real kernel of each kind, on the CPU."""
    try:
        from rexthinker_edge.kernels.native_operators import trouble  # noqa: PLC0415
        from rexthinker_edge.runtime.detector_kernel_checks import detector_kernels  # noqa: PLC0415
        from rexthinker_edge.runtime.kernel_checks import kernels, run_kernel  # noqa: PLC0415
    except ImportError as error:
        yield Check(
            "kernels", "failed", str(error), "Install the package again: pip install rexthinker-edge."
        )
        return

    def of(kernel: Any) -> Callable[[], Check]:
        def check() -> Check:
            off = run_kernel(kernel, ["CPUExecutionProvider"])
            told = f"differs from its definition by {off:.1e}, {kernel.tolerance:.0e} allowed"
            good = off <= kernel.tolerance
            return Check(f"kernel {kernel.name}", "ok" if good else "failed", told, "" if good else REINSTALL)

        return check

    for kernel in (*kernels(), *detector_kernels()):
        yield attempt(f"kernel {kernel.name}", of(kernel), REINSTALL)
    if reason := trouble():
        yield Check("kernel MatMulNBits of our own", "skipped", f"{reason}; ONNX Runtime's is used")


def bundle_checks(bundle: Path | None) -> Iterator[Check]:
    """Whether the bundle opens and answers as recorded, and whether its engines belong here."""
    path, remedy = _directory(bundle), "Copy the bundle again, or export it again."
    kept: dict[str, Any] = {}

    def opens() -> Check:
        from rexthinker_edge.runtime.bundle import open_bundle  # noqa: PLC0415

        kept["opened"] = opened = open_bundle(path)
        size = sum(entry.bytes for entry in opened.manifest.files.values())
        return Check(
            "bundle", "ok", f"{opened.manifest.name}, {size / 1e6:,.1f} MB, digest {opened.digest[:12]}…"
        )

    yield attempt("bundle", opens, remedy)
    if "opened" not in kept:
        yield Check("self-test", "skipped", "the bundle does not open")
        return
    yield attempt("self-test", lambda: _self_test(kept["opened"]), remedy)
    yield attempt("engines", lambda: _engines(kept["opened"]), "Remove the engines' directory.")


def _self_test(opened: Any) -> Check:
    from rexthinker_edge.runtime.self_test import replay  # noqa: PLC0415
    from rexthinker_edge.runtime.thinker import load  # noqa: PLC0415

    if not opened.manifest.golden:
        return Check("self-test", "skipped", "the bundle has none")
    with phase("asking the bundle its recorded questions"):
        replays = replay(opened, load(opened.path))
    wrong = [f"{one.picture}: {'; '.join(one.differences)}" for one in replays if one.differences]
    if wrong:
        remedy = (
            "Run `rexthinker-edge verify`; if it is intact, install another onnxruntime and run this again."
        )
        return Check("self-test", "failed", " | ".join(wrong), remedy)
    return Check(
        "self-test", "ok", f"{len(replays)} recorded answers come out token by token, boxes as recorded"
    )


def _engines(opened: Any) -> Check:
    from rexthinker_edge.runtime.engine import open_engine  # noqa: PLC0415
    from rexthinker_edge.runtime.engine_card import engines_directory  # noqa: PLC0415

    directory = engines_directory(opened.path)
    cards = sorted(directory.glob("*.json"))
    if not cards:
        return Check("engines", "skipped", "no TensorRT engines were built for this bundle")
    for card in cards:
        open_engine(opened, f"{card.stem}.onnx")
    return Check("engines", "ok", f"{len(cards)} TensorRT engines load")
