"""Several processes that ask one dataset: each opens the subject and the dataset for itself, on one thread.

Contract  A worker ends with the process that made it, however that one ended: kill -9 leaves no orphans.
          Where a worker is killed the others end too, and what was answered by then is handed over first.
          Worth it where a model is small beside the machine; a large one already uses all cores.
Elsewhere what a worker does: runs.py.
"""

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path

from rexthinker_edge.benchmarks.runs import Answered, Plan, Reference, answer
from rexthinker_edge.benchmarks.subjects import Subject, open_subject
from rexthinker_edge.calibration.dataset import Dataset
from rexthinker_edge.calibration.openers import open_dataset
from rexthinker_edge.runtime.errors import DeviceError


@dataclass(frozen=True)
class Order:
    """What a worker opens: plain values, for they cross a process boundary."""

    subject: str
    dataset: str
    images: str | None
    plan: Plan
    reference: Path | None = None
    device: str = "cpu"


class Crew:
    """Workers; a context manager, and what `runs.run` calls for answers."""

    def __init__(self, order: Order, count: int) -> None:
        assert count > 1, count
        self._pool = ProcessPoolExecutor(
            count, mp_context=get_context("spawn"), initializer=_Worker.begin, initargs=(order,)
        )

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __call__(self, numbers: Sequence[int]) -> Iterator[Answered]:
        """Answers as they are ready.

        Raises:
            DeviceError: a worker was killed; every answer that had come was told before.
        """
        broken: BrokenProcessPool | None = None
        waiting = list[Future[Answered]]()
        try:
            for number in numbers:
                waiting.append(self._pool.submit(_Worker.ask, number))
        except BrokenProcessPool as early:
            broken = early
        for future in as_completed(waiting):
            met = future.exception()
            if isinstance(met, BrokenProcessPool):
                broken = met
            else:
                yield future.result()
        if broken is not None:
            raise DeviceError(
                "a worker's process was killed, most likely because memory ran out, and what it was asked is "
                "not answered. Run the same command again, it goes on; fewer --workers need less memory."
            ) from broken


class _Worker:
    """One process's subject and dataset."""

    subject: Subject
    dataset: Dataset
    plan: Plan
    reference: Reference | None

    @classmethod
    def begin(cls, order: Order) -> None:
        end_with_parent()
        cls.subject = open_subject(order.subject, threads=1, device=order.device)
        cls.dataset = open_dataset(order.dataset, order.images)
        cls.plan = order.plan
        cls.reference = Reference(order.reference) if order.reference else None

    @classmethod
    def ask(cls, number: int) -> Answered:
        reference = cls.reference.of(number) if cls.reference else None
        return answer(cls.subject, cls.dataset, number, cls.plan, reference)


def end_with_parent() -> None:
    """From now on this process ends when the one that made it does."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
