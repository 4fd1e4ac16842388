"""Runs each of several subjects over the same items, one after another, each in a process of its own.

Contract  One subject is in memory at a time, so its peak is its own and a large reference leaves before the
          next comes. The first is the reference: its answers and their likeliest tokens lead the others.
          Every run is a file that goes on where it was stopped.
Elsewhere one run: runs.py; what comes of them: comparison.py.
"""

import resource
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rexthinker_edge.benchmarks.comparison import Subjected
from rexthinker_edge.benchmarks.crew import Crew, Order, end_with_parent
from rexthinker_edge.benchmarks.meter import Meter
from rexthinker_edge.benchmarks.run_file import read_run
from rexthinker_edge.benchmarks.runs import Plan, Reference, run
from rexthinker_edge.benchmarks.subjects import check_subject, open_subject
from rexthinker_edge.calibration.openers import open_dataset
from rexthinker_edge.calibration.records import Problem
from rexthinker_edge.runtime.errors import DeviceError

KEPT = 64  # likeliest tokens kept of the reference, per token


@dataclass(frozen=True)
class Trial:
    """What all subjects are asked, and how."""

    dataset: str
    images: str | None
    numbers: range
    boxes: str = "given"
    workers: int = 1
    threads: int | None = None
    orders: int = 0
    device: str = "cpu"


@dataclass(frozen=True)
class Told:
    """What a subject's process tells about itself."""

    name: str
    identity: dict[str, Any]
    details: dict[str, Any]
    peak_bytes: int | None
    device_peak_bytes: int | None
    problems: tuple[Problem, ...]


def hold(specs: Sequence[str], trial: Trial, folder: Path) -> tuple[list[Subjected], list[Problem]]:
    """Run every subject; the first is the reference.

    Args:
        folder: for the runs; made when it is not there.

    Raises:
        OptionError, BundleError, DeviceError, MissingExtraError: a subject cannot be opened; said before the
            first is asked.
        DeviceError: a subject's process was killed, most likely for memory.
    """
    for spec in specs:
        check_subject(spec, trial.device)
    folder.mkdir(parents=True, exist_ok=True)
    subjects, problems = list[Subjected](), dict[Problem, None]()
    for place, spec in enumerate(specs):
        path = folder / f"{place}.jsonl"
        plan = Plan(
            boxes=trial.boxes,
            orders=trial.orders,
            keep_top=KEPT if place == 0 and trial.boxes == "given" else 0,
        )
        leads = place > 0 and trial.boxes == "given"
        order = Order(
            spec, trial.dataset, trial.images, plan, folder / "0.jsonl" if leads else None, trial.device
        )
        told = _in_process(order, trial, path)
        wanted = set(trial.numbers)
        items = [item for item in read_run(path)[1] if item.number in wanted]
        name = unlike(told.name, spec, [subject.name for subject in subjects])
        given = trial.boxes == "given"
        subjects.append(
            Subjected(
                name, told.identity, told.details, items, told.peak_bytes, given, told.device_peak_bytes
            )
        )
        problems |= dict.fromkeys(told.problems)
    return subjects, list(problems)


def unlike(name: str, spec: str, taken: Sequence[str]) -> str:
    """A subject's name; with its directory's, or at last a number, where another has the same."""
    wanted = (name, f"{name} ({Path(spec).name})", *(f"{name} ({k})" for k in range(2, len(taken) + 3)))
    return next(one for one in wanted if one not in taken)


def _in_process(order: Order, trial: Trial, path: Path) -> Told:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=end_with_parent) as pool:
        try:
            return pool.submit(_hold_one, order, trial, path).result()
        except BrokenProcessPool as error:
            raise DeviceError(
                f"{order.subject}: its process was killed, most likely for memory. "
                "Free some, or use a larger machine; the run goes on where it was."
            ) from error


def _hold_one(order: Order, trial: Trial, path: Path) -> Told:
    """In the subject's own process."""
    with ExitStack() as stack:
        dataset = stack.enter_context(open_dataset(trial.dataset, trial.images))
        threads = 1 if trial.workers > 1 else trial.threads
        subject = open_subject(order.subject, threads=threads, device=order.device)
        reference = Reference(order.reference) if order.reference else None
        crew = stack.enter_context(Crew(order, trial.workers)) if trial.workers > 1 else None
        meter = stack.enter_context(Meter(subject.name, len(trial.numbers)))
        before = lines_of(path)
        finished = run(subject, dataset, trial.numbers, path, order.plan, meter, reference, crew)
        beyond = None if crew else subject.device_peak_bytes()
        details = {**subject.details, "workers": trial.workers}
        problems = tuple(finished.problems)
    peak = peak_of_run(path, before, trial.workers)
    return Told(subject.name, subject.identity, details, peak, beyond, problems)


def peak_of_run(path: Path, before: int, workers: int) -> int | None:
    """The most memory of any one process that asked for a run, now or when it was begun; None: unknown.

    Args:
        before: lines that the run had when this process, or its workers, went on with it.
    """
    now = _peak_bytes(resource.RUSAGE_CHILDREN if workers > 1 else resource.RUSAGE_SELF)
    return _kept_peak(path, now if lines_of(path) > before else None)


def lines_of(path: Path) -> int:
    """Lines of a run so far."""
    if not path.is_file():
        return 0
    with path.open("rb") as stream:
        return sum(1 for _ in stream)


def _kept_peak(path: Path, now: int | None) -> int | None:
    """The most memory of any one process that held this run; `now` None: this one asked nothing."""
    beside = path.with_name(path.name + ".peak")
    known = int(beside.read_text("ascii")) if beside.is_file() else None
    if now is not None:
        known = max(known or 0, now)
        beside.write_text(str(known), "ascii")
    return known


def _peak_bytes(whose: int) -> int:
    """The most resident memory of this process, or of the largest of those that it waited for."""
    peak = resource.getrusage(whose).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
