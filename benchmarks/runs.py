"""Asks a subject every item of a dataset, and keeps what it said.

Layout    `Plan` is what to ask and how; `answer` asks one item; `run` goes over a dataset into a `RunFile`.
Contract  Items already in the file are not asked again; records that cannot be read or asked are named, not
          skipped in silence. With several workers each is a process with a subject of its own; items arrive
          in any order and are told apart by number, so the file means the same.
          Boxes of a found answer are the record's own: a clipped candidate is scored as the file has it.
Elsewhere subjects: subjects.py; the file: run_file.py; figures: figures.py.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.benchmarks.run_file import Again, Forced, Item, RunFile, Top, read_run, read_top
from rexthinker_edge.benchmarks.subjects import Question, Reply, Subject
from rexthinker_edge.calibration.dataset import Dataset, Example
from rexthinker_edge.calibration.records import Problem
from rexthinker_edge.runtime.errors import BoxError, ImageError, TextError

UNASKABLE = (BoxError, ImageError, TextError)
Told = Callable[[int, int], None]  # items done, items in all
Asker = Callable[[Sequence[int]], "Iterable[Answered]"]


@dataclass(frozen=True)
class Plan:
    """How every item is asked.

    Attributes:
        boxes: "given", the record's candidates; "detector", the subject's own.
        orders: how many times more each item is asked, its hints shuffled.
        keep_top: log-probabilities kept per token, for `compare`; 0: none.
    """

    boxes: str = "given"
    orders: int = 0
    keep_top: int = 0


@dataclass(frozen=True)
class Answered:
    """One item with its likeliest tokens; or none, and what was wrong with the record."""

    number: int
    item: Item | None
    top: Top | None = None
    problems: tuple[Problem, ...] = ()


def answer(
    subject: Subject, dataset: Dataset, number: int, plan: Plan, reference: "tuple[Item, Top] | None" = None
) -> Answered:
    """Ask one item.

    Args:
        reference: another run's item and its likeliest tokens; this subject is then led through its answer.
    """
    problems: list[Problem] = []
    example = dataset.example(number, problems)
    if example is None:
        return Answered(number, None, problems=tuple(problems))
    boxes = example.candidates if plan.boxes == "given" else None
    question = Question(example.picture, example.record.category, example.record.referring, boxes)
    try:
        reply = subject.ask(question)
        again = tuple(_again(subject, question, number, k) for k in range(plan.orders)) if boxes else ()
        forced = _forced(subject, question, reference) if reference is not None else None
        top = _own_top(subject, question, reply, plan.keep_top) if plan.keep_top and boxes else None
    except UNASKABLE as error:
        problems.append(Problem(*dataset.place(number), f"it cannot be asked: {error}"))
        return Answered(number, _item(example, None, error=str(error), problems=tuple(problems)))
    more: dict[str, Any] = {"again": again, "forced": forced, "problems": tuple(problems)}
    return Answered(number, _item(example, reply, given=boxes is not None, **more), top)


def _item(
    example: Example, reply: Reply | None, *, given: bool = True, error: str | None = None, **more: Any
) -> Item:
    record, truth = example.record, example.answers() if given else None
    said: dict[str, Any] = {"status": None}
    if reply is not None:
        own = [record.candidate_boxes[k] for k in example.origin] if given else list(reply.candidates)
        said = {key: value for key, value in asdict(reply).items() if key != "candidates"}
        said |= {"status": reply.status.value, "boxes": tuple(own[i] for i in reply.indices)}
    return Item(
        number=example.number,
        id=record.id,
        image_name=record.image_name,
        referring=record.referring,
        domain=record.domain,
        sub_domain=record.sub_domain,
        category=record.category,
        candidates=len(record.candidate_boxes),
        truth=None if truth is None else tuple(sorted(truth)),
        answers=record.answer_boxes,
        error=error,
        **said,
        **more,
    )


def _again(subject: Subject, question: Question, number: int, turn: int) -> Again:
    """The same question, hints in another order; indices in the first order."""
    assert question.boxes is not None
    order = np.random.default_rng([number, turn]).permutation(len(question.boxes)).tolist()
    shuffled = Question(
        question.picture, question.category, question.expression, tuple(question.boxes[k] for k in order)
    )
    reply = subject.ask(shuffled)
    return Again(tuple(order), reply.status.value, tuple(sorted(order[i] for i in reply.indices)))


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """(n, vocab) natural logarithms of probabilities."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _own_top(subject: Subject, question: Question, reply: Reply, keep: int) -> Top | None:
    """The likeliest tokens at each position of the subject's own answer."""
    if not reply.token_ids:
        return None
    ids, values = [], []
    for logits in subject.force(question, reply.token_ids):
        k = min(keep, logits.shape[1])
        chosen = np.argpartition(logits, -k, axis=1)[:, -k:]
        order = np.argsort(-np.take_along_axis(logits, chosen, 1), axis=1, kind="stable")
        chosen = np.take_along_axis(chosen, order, 1)
        ids.append(chosen)
        values.append(np.take_along_axis(log_softmax(logits), chosen, 1))
    return np.concatenate(ids).astype(np.int32), np.concatenate(values).astype(np.float32)


def _forced(subject: Subject, question: Question, reference: tuple[Item, Top]) -> Forced | None:
    """The reference's answer under this subject's eyes."""
    item, (ids, values) = reference
    if not item.token_ids or not question.boxes:
        return None
    divergence, same, start = list[float](), list[bool](), 0
    for logits in subject.force(question, item.token_ids):
        rows = slice(start, start + len(logits))
        theirs = np.take_along_axis(log_softmax(logits), ids[rows].astype(np.int64), 1)
        divergence += kl_of_top(values[rows].astype(np.float64), theirs).tolist()
        same += (logits.argmax(axis=1) == ids[rows, 0]).tolist()
        start += len(logits)
    return Forced(tuple(round(value, 9) for value in divergence), tuple(same))


def kl_of_top(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """KL divergence over some tokens and all the others as one.

    Args:
        first, second: (n, k) log-probabilities of the same tokens under two distributions.

    Returns:
        (n,) nats; never above the divergence over all tokens (data processing), never below 0.
    """
    p, q = np.exp(first), np.exp(second)
    rest_p, rest_q = (np.clip(1 - values.sum(axis=1), 1e-12, 1.0) for values in (p, q))
    inner = (p * (first - second)).sum(axis=1) + rest_p * np.log(rest_p / rest_q)
    return np.asarray(np.clip(inner, 0.0, None))


@dataclass(frozen=True)
class Finished:
    """A run as it stands: items by number, and the problems met on the way."""

    header: dict[str, Any]
    items: list[Item]
    problems: list[Problem]


def header_of(subject: Subject, dataset: Dataset, plan: Plan, reference: str | None) -> dict[str, Any]:
    """What a run must have in common with its file; a file's workbench count does not bind it."""
    spec = ":".join(dataset.spec.split(":")[:3]) if dataset.spec.startswith("workbench:") else dataset.spec
    return {
        "dataset": spec,
        "subject": subject.identity,
        "plan": asdict(plan),
        "reference": reference,
    }


def run(
    subject: Subject,
    dataset: Dataset,
    numbers: Sequence[int],
    path: Path,
    plan: Plan,
    told: Told = lambda done, total: None,
    reference: "Reference | None" = None,
    asker: "Asker | None" = None,
) -> Finished:
    """Ask `numbers` of a dataset, as far as `path` has not got them yet.

    Args:
        told: called as items are done.
        reference: a run whose answers this subject is led through.
        asker: who asks; this process when None.
    """
    header = header_of(subject, dataset, plan, reference.digest if reference else None)
    with RunFile(path, header) as file:
        missing = [number for number in numbers if number not in file.items]
        done = len(numbers) - len(missing)
        told(done, len(numbers))
        answers = asker(missing) if asker else _here(subject, dataset, missing, plan, reference)
        left_out: dict[int, tuple[Problem, ...]] = {}
        for answered in answers:
            if answered.item is None:
                left_out[answered.number] = answered.problems
            else:
                file.add(answered.item, answered.top)
            done += 1
            told(done, len(numbers))
        items = [file.items[number] for number in numbers if number in file.items]
        told_of = left_out | {item.number: item.problems for item in items}
        problems = [problem for number in sorted(told_of) for problem in told_of[number]]
        return Finished(file.header, items, [*dataset.file_problems, *problems])


def _here(
    subject: Subject, dataset: Dataset, numbers: Iterable[int], plan: Plan, reference: "Reference | None"
) -> Iterator[Answered]:
    for number in numbers:
        yield answer(subject, dataset, number, plan, reference.of(number) if reference else None)


class Reference:
    """A finished run with its likeliest tokens, read item by item."""

    def __init__(self, path: Path) -> None:
        """Read `path`; raises DataError when it is no run."""
        self.path = path
        header, items = read_run(path)
        self.digest: str = header["subject"]["digest"]
        self.items = {item.number: item for item in items}

    def of(self, number: int) -> tuple[Item, Top] | None:
        """An item and its likeliest tokens; None where it has none."""
        item = self.items.get(number)
        top = None if item is None else read_top(self.path, item)
        return None if item is None or top is None else (item, top)
