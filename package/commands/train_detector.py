"""`rexthinker-edge train detector`: the small Grounding DINO, on workbench pictures.

Contract  A run writes to its own folder and can be stopped at any time: `--resume` goes on from its last
          state.
Elsewhere the recipe: training/detector_config.py; the loop: training/detector.py; the AP that steers it:
          benchmarks/detection.py.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rexthinker_edge.training.detector import Found


@click.command("detector")
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--tokenizer",
    "tokenizer_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    required=True,
    help="bert-base-uncased's tokenizer.json; its vocabulary is cut to what is needed.",
)
@click.option(
    "--recipe",
    "recipe_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="JSON that changes fields of the recipe.",
)
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1), help="Of the model.")
@click.option("--every", default=420.0, show_default=True, help="Seconds between checkpoints.")
@click.option("--resume", is_flag=True, help="Go on from OUT/run.pt.")
def detector(
    out: Path, tokenizer_file: Path, recipe_file: Path | None, threads: int, every: float, resume: bool
) -> None:
    """Train the small detector into OUT: pictures/, run.pt, log.jsonl and checkpoint/."""
    import torch  # noqa: PLC0415

    from rexthinker_edge.runtime.errors import OptionError  # noqa: PLC0415
    from rexthinker_edge.training.detector import train  # noqa: PLC0415
    from rexthinker_edge.training.detector_config import DetectorRecipe  # noqa: PLC0415

    if (out / "run.pt").exists() != resume:
        raise OptionError(
            f"{out}/run.pt: no such file, --resume goes on from it. Leave --resume out to begin."
            if resume
            else f"{out}: a run stands here, an empty folder is needed. Add --resume to go on with it."
        )
    torch.set_num_threads(threads)
    recipe = DetectorRecipe() if recipe_file is None else DetectorRecipe.read(recipe_file)
    train(recipe, out, json.loads(tokenizer_file.read_text()), figures, resume, every)


def figures(found: "list[Found]") -> dict[str, float]:
    """AP of the held-out pictures, by level."""
    from rexthinker_edge.benchmarks.detection import Judged, judge  # noqa: PLC0415

    told: dict[str, float] = {}
    for level in sorted({one.level for one in found}):
        of_level = [Judged(f.category, f.boxes, f.scores, f.truths) for f in found if f.level == level]
        seen = judge(of_level)
        told |= {f"{level}_ap50": seen.ap50, f"{level}_ap": seen.ap, f"{level}_iou": seen.hit_iou}
    return {name: round(value, 4) for name, value in told.items()}
