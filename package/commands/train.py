"""`rexthinker-edge train`: the recipes of the bundled small models.

Contract  A run writes to its own folder, logs one JSON line every 25 steps and can be stopped at any time:
          `--resume` goes on from its last state.
Elsewhere recipes: training/vlm_config.py, training/detector_config.py;
          loops: training/sft.py, training/detector.py.
"""

from pathlib import Path

import click

from rexthinker_edge.commands.train_detector import detector

OUT = click.Path(path_type=Path, file_okay=False)


@click.group("train")
def train() -> None:
    """Train the models. Needs the extra `rexthinker-edge[training]`."""


train.add_command(detector)


@train.command("tokenizer")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--seed", default=3, show_default=True, help="Of the workbench texts it is learnt from.")
@click.option("--count", default=2500, show_default=True, help="Questions of each level.")
@click.option("--words", default=900, show_default=True, help="Pieces beside specials, bytes and numbers.")
def tokenizer(file: Path, seed: int, count: int, words: int) -> None:
    """Learn the small language model's tokenizer and write it to FILE."""
    from rexthinker_edge.training.tokenizer import train_tokenizer, workbench_texts  # noqa: PLC0415

    learnt = train_tokenizer(workbench_texts(seed, count), words)
    learnt.save(str(file))
    click.echo(f"{file}: {learnt.get_vocab_size()} pieces")


@train.command("sft")
@click.argument("out", type=OUT)
@click.option(
    "--tokenizer",
    "tokenizer_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    required=True,
    help="The tokenizer.json that `train tokenizer` wrote.",
)
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1), help="Of the model.")
@click.option("--resume", is_flag=True, help="Go on from OUT/state.pt.")
@click.option(
    "--from",
    "start",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Begin with this checkpoint's weights, not with random ones.",
)
def sft(out: Path, tokenizer_file: Path, threads: int, resume: bool, start: Path | None) -> None:
    """Train the small language model into OUT: state.pt, log.jsonl and checkpoint/."""
    from rexthinker_edge.runtime.errors import OptionError  # noqa: PLC0415
    from rexthinker_edge.training.sft import train as run  # noqa: PLC0415
    from rexthinker_edge.training.vlm_config import Recipe  # noqa: PLC0415

    stands = (out / "state.pt").exists()
    if stands and not resume:
        raise OptionError(
            f"{out}: a run stands here, an empty folder is needed. Add --resume to go on with it."
        )
    if resume and not stands:
        raise OptionError(
            f"{out}/state.pt: no such file, --resume goes on from it. Leave --resume out to begin."
        )
    if resume and start:
        raise OptionError("--from: given with --resume, which has weights of its own. Leave one of them out.")
    run(Recipe(), tokenizer_file, out, resume=resume, threads=threads, start=start)
