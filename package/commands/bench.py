"""`rexthinker-edge bench`: where the time goes, as a table and one JSON object as the last line.

Elsewhere what is measured: benchmarks/speed.py.
"""

import json
from pathlib import Path
from typing import Any

import click


@click.command("bench")
@click.option("--bundle", type=click.Path(path_type=Path), help="The small bundled model when left out.")
@click.option("--threads", type=click.IntRange(min=1), help="Cores one model uses; all when left out.")
@click.option("--count", type=click.IntRange(min=2), default=20, show_default=True, help="Pictures measured.")
def bench(bundle: Path | None, threads: int | None, count: int) -> None:
    """Measure a bundle on this machine: stages, tokens per second, first and later expressions."""
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import Progress  # noqa: PLC0415

    from rexthinker_edge.benchmarks.speed import bench as measure  # noqa: PLC0415

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("pictures", total=count + 1)
        report = measure(bundle, threads, count, lambda done: progress.update(task, completed=done))
    _show(report)
    click.echo(json.dumps(report))


def _show(report: dict[str, Any]) -> None:
    machine, first, second = report["machine"], report["first"], report["second"]
    click.echo(
        f"{report['bundle']['name']} on {machine['processor']}, {machine['threads']} threads,", nl=False
    )
    click.echo(f" ONNX Runtime {machine['onnxruntime']}, {report['pictures']} pictures")
    click.echo(f"{'stage':<10}{'p50 ms':>10}{'p95 ms':>10}")
    for name, value in report["stages"].items():
        click.echo(f"{name:<10}{value['p50_ms']:>10.2f}{value['p95_ms']:>10.2f}")
    click.echo(f"{report['tokens_per_second']:.0f} tokens/s one by one")
    drafted = report["drafting"]
    same = "the same tokens" if drafted["identical"] else "DIFFERENT TOKENS"
    click.echo(
        f"drafting: {drafted['tokens_per_pass']:.1f} tokens a pass, an answer in {drafted['on_ms']:.0f} ms "
        f"for {drafted['off_ms']:.0f}, {same}"
    )
    click.echo(f"{'expression':<12}{'first token ms':>15}{'whole ms':>10}")
    click.echo(f"{'first':<12}{first['ttft_ms']:>15.1f}{first['total_ms']:>10.1f}")
    click.echo(f"{'second':<12}{second['ttft_ms']:>15.1f}{second['total_ms']:>10.1f}", nl=False)
    click.echo(f"   {second['reused']} of {second['prompt']} prompt tokens reused")
    load = report["load"]
    click.echo(f"load {load['cold_ms']:.0f} ms, again {load['warm_ms']:.0f} ms; ", nl=False)
    click.echo(f"peak memory {report['peak_bytes'] / 2**20:.0f} MiB")
