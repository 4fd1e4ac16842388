"""`evaluate --predictions`: a file of boxes against a dataset; nothing is asked, no picture is opened.

Elsewhere the verb: evaluate.py; the metric: benchmarks/humanref_metric.py; files: benchmarks/predictions.py.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rexthinker_edge.commands.judging import tell_problems
from rexthinker_edge.runtime.errors import DataError

if TYPE_CHECKING:
    from rexthinker_edge.calibration.dataset import Dataset


def score(
    dataset: "Dataset", path: Path, as_published: bool, numbers: range
) -> tuple[dict[str, Any], dict[str, Any]]:
    """HumanRef's tables of a prediction file, and the same with intervals, gaps and problems.

    Raises:
        DataError: the file's predictions are of other items, all of them.
    """
    from rexthinker_edge.benchmarks import figures  # noqa: PLC0415
    from rexthinker_edge.benchmarks.humanref_metric import is_rejection, tabulate  # noqa: PLC0415
    from rexthinker_edge.benchmarks.predictions import read_predictions, unknown_ids  # noqa: PLC0415
    from rexthinker_edge.calibration.records import Problem  # noqa: PLC0415

    problems = list[Problem]()
    predictions = read_predictions(path, problems)
    records = [record for _, record in dataset.records(problems, numbers)]
    every = records if len(numbers) == len(dataset) else [r for _, r in dataset.records([])]
    problems += unknown_ids(path, predictions, every)
    judged = figures.judge_predictions(records, predictions)
    contract = figures.tables(tabulate(judged, as_published=as_published))
    tell_problems(problems)
    if not any(record.id in predictions for record in every):
        raise DataError(
            f"{path}: no prediction of any of the {len(every):,} readable records of {dataset.spec}, ids "
            f"such as {[record.id for record in every[:3]]} are needed as JSON has them. "
            "Give the file of this dataset."
        )
    whole = {"dataset": dataset.spec, "predictions": str(path), "as_published": as_published, **contract}
    answerable = [r for r in records if not is_rejection(r.domain, len(r.answer_boxes))]
    return contract, whole | {
        "records": [numbers.start, numbers.stop],
        "unpredicted": sum(record.id not in predictions for record in records),
        "grounding": figures.grounding((predictions.get(r.id, ()), r.answer_boxes) for r in answerable),
        "intervals": figures.metric_intervals(judged),
        "problems": list(map(str, problems)),
    }
