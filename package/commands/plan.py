"""`rexthinker-edge plan`: will it fit a device, and how fast should it be.

Contract  Exit code 0 whether it fits or not; `fits` in the JSON says it (schema rexthinker-edge/plan/1).
          Figures of a named device are forecasts from published numbers; on the CPU at hand rates are
          measured first, and with a bundle the forecast is compared with one real question.
Elsewhere what is told: plan_report.py; the formula: runtime/roofline.py; devices: runtime/devices.py.
"""

import json
from pathlib import Path
from typing import Any

import click

from rexthinker_edge.commands.plan_report import make_report
from rexthinker_edge.progress import phase

DEVICES = (
    "orin-nano-8gb", "orin-nx-16gb", "agx-orin-64gb", "agx-thor", "rtx-3060", "rtx-3090", "rtx-4070",
    "rtx-4090", "rtx-5090", "h100", "cpu",
)  # fmt: skip
RECIPE = ("precision", "head_bits", "embeddings", "vision", "detector_precision")


@click.command()
@click.option("--device", type=click.Choice(DEVICES), default="cpu", show_default=True)
@click.option("--bundle", type=click.Path(path_type=Path), help="The small bundled model when left out.")
@click.option(
    "--shape", type=click.Choice(["3b", "7b", "32b"]), help="A published shape instead of a bundle."
)
@click.option(
    "--precision", type=click.Choice(["int4", "int8"]), help="Of a --shape's decoder.  [default: int4]"
)
@click.option("--head-bits", type=click.Choice(["4", "8"]), help="Of its output layer.  [default: 8]")
@click.option(
    "--embeddings",
    type=click.Choice(["kept", "int8", "int4"]),
    help="Of its token table.  [default: int8]",
)
@click.option(
    "--vision",
    "--vision-precision",
    "vision",
    type=click.Choice(["fp32", "int8"]),
    help="Of its vision tower; half precision on a GPU instead of fp32.  [default: int8]",
)
@click.option(
    "--detector-precision",
    type=click.Choice(["fp32", "int8"]),
    help="Of its detector; half precision on a GPU instead of fp32.  [default: fp32]",
)
@click.option("--picture", default="1280x720", show_default=True, help="Width x height in pixels.")
@click.option("--candidates", type=click.IntRange(0, 200), default=9, show_default=True)
@click.option(
    "--answer-tokens", type=click.IntRange(1), default=560, show_default=True, help="Of one answer."
)
@click.option(
    "--tokens-per-pass",
    type=click.FloatRange(1, 16),
    default=1.0,
    show_default=True,
    help="What drafting wins; `bench` measures it.",
)
@click.option("--threads", type=click.IntRange(1), help="Cores of the CPU at hand; all when left out.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def plan(device: str, bundle: Path | None, shape: str | None, as_json: bool, **workload: Any) -> int:
    """Say whether a model fits DEVICE with its picture and answer, and forecast its times."""
    if bundle is not None and shape is not None:
        raise click.UsageError("--bundle and --shape exclude each other: give one.")
    recipe = {name: value for name in RECIPE if (value := workload.pop(name)) is not None}
    if recipe and shape is None:
        option = next(iter(recipe)).replace("_", "-")
        raise click.UsageError(f"--{option}: a bundle has its own, this goes with --shape. Give --shape.")
    threads = workload.pop("threads")
    if threads is not None and device != "cpu":
        raise click.UsageError("--threads: of the CPU at hand, and another device was named. Leave it out.")
    with phase("measuring this machine", quiet=device != "cpu"):
        report = make_report(device, bundle, shape, workload, recipe, threads)
    if as_json:
        click.echo(json.dumps(report, ensure_ascii=False))
    else:
        _show(report)
    return 0


def _show(report: dict[str, Any]) -> None:
    click.echo(f"{report['model']} on {report['device']['title']}")
    for name, size in report["memory"]["parts_bytes"].items():
        click.echo(f"  {name:<18}{size / 1e9:>8.2f} GB")
    spare, total = report["spare_bytes"] / 1e9, report["memory"]["available_bytes"] / 1e9
    verdict = (
        f"fits, {spare:.2f} GB to spare" if report["fits"] else f"does not fit, {-spare:.2f} GB too much"
    )
    click.echo(f"  {'of':<18}{total:>8.2f} GB: {verdict}")
    work, rates = report["workload"], report["rates"]
    click.echo(
        f"a prompt of {work['prompt_tokens']:,} tokens ({work['image_tokens']:,} of the picture), an answer "
        f"of {work['answer_tokens']:,}; {rates['weight_bytes'] / 1e9:,.1f} GB/s, "
        f"{rates['decoder_flops'] / 1e9:,.0f} GFLOP/s, {rates['dispatch_seconds'] * 1e6:,.1f} us an "
        f"operator, {rates['call_seconds'] * 1e6:,.0f} us a pass"
    )
    click.echo(f"  {'stage':<14}{'ms':>10}{'GB':>9}{'GFLOP':>10}  decided by")
    for stage in report["stages"]:
        click.echo(
            f"  {stage['name']:<14}{stage['seconds'] * 1e3:>10,.1f}{stage['bytes'] / 1e9:>9.3f}"
            f"{stage['flops'] / 1e9:>10,.1f}  {stage['bound']}"
        )
    times = report["forecast"]
    click.echo(
        f"forecast: first token {times['first_token_ms']:,.0f} ms, then "
        f"{times['tokens_per_second']:,.1f} tokens/s; "
        f"a further expression {times['expression_ms']:,.0f} ms"
    )
    if report["compared"] is not None:
        _show_compared(report["compared"])
    click.echo(report["formula"])


def _show_compared(compared: dict[str, Any]) -> None:
    """Forecast beside measured; where others use the machine, that is said."""
    click.echo(f"  {'one question':<14}{'forecast':>10}{'measured':>10}{'error':>9}")
    for name, pair in compared["stages"].items():
        words = name.removesuffix("_ms").replace("_", " ")
        error = "" if pair["error_percent"] is None else f"{pair['error_percent']:+8.0f} %"
        click.echo(f"  {words:<14}{pair['forecast']:>10,.2f}{pair['measured']:>10,.2f}{error}")
    if compared["load"] > 1:
        click.echo(
            f"{compared['load']:.1f} processes wanted each core meanwhile: what was measured is too slow, "
            "measure again on a quiet machine"
        )
