"""The comparison in words: a Markdown table per run, and what the targets say.

Contract  Numbers come from measure.py; nothing is computed twice. A step that a peer could not do stands in
          the table with its reason.
Elsewhere figures kept: docs/peers.md.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rexthinker_edge.benchmarks.peers.host import Entry
from rexthinker_edge.benchmarks.peers.measure import Refusal, Row, Sample, best, ratio, read_rate, summarise
from rexthinker_edge.benchmarks.peers.work import STEPS

OURS = "rexthinker-edge"
SCHEMA = "rexthinker-edge/peers/1"


def result(
    samples: Sequence[Sample], refusals: Sequence[Refusal], entries: Sequence[Entry],
    opened: dict[str, dict[str, Any]], facts: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """One JSON object: medians, ratios to ours, shares of the memory's rate, refusals and every sample."""
    rows, rate = summarise(samples), read_rate(samples)
    peers = [entry.name for entry in entries]
    ratios = {
        clock: {
            step: {
                peer: round(found, 3) for peer in peers
                if peer != OURS and (found := ratio(rows, peer, OURS, step, clock)) is not None
            } for step in STEPS
        } for clock in ("wall", "cpu")
    }  # fmt: skip
    return {
        "schema": SCHEMA, **facts,
        "read_gb_s": {clock: round(value / 1e9, 2) for clock, value in rate.items()},
        "peers": {name: _without(value, "ways") for name, value in opened.items()},
        "rows": [asdict(row) for row in rows], "times_ours": ratios,
        "token_share": shares(rows, entries, rate), "could_not": [asdict(refusal) for refusal in refusals],
        "samples": [asdict(sample) for sample in samples],
    }  # fmt: skip


def _without(value: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: item for name, item in value.items() if name != key}


def shares(
    rows: Sequence[Row], entries: Sequence[Entry], rate: dict[str, float]
) -> dict[str, dict[str, float]]:
    """For each way of one token: bytes it must read, and the share of the memory's rate, by clock."""
    found: dict[str, dict[str, float]] = {}
    sizes = {entry.name: entry.token_bytes for entry in entries}
    for row in rows:
        size = sizes.get(row.peer)
        if row.step == "token" and size is not None:
            reached = {clock: round(size / row.seconds(clock) / rate[clock], 3) for clock in rate}
            found[f"{row.peer}: {row.way}"] = {"bytes": size, **reached}
    return found


def markdown(found: dict[str, Any]) -> str:
    """Tables: every way of every step; ratios; what could not be done."""
    rows = [Row(**row) for row in found["rows"] if row["step"] in STEPS]
    lines = ["| step | system | way | wall s | CPU s | times ours, wall (CPU) | |", "|" + " --- |" * 7]
    for step in STEPS:
        for row in (row for row in rows if row.step == step):
            lines.append(f"| {step} | {row.peer} | {row.way} | {_line(row, rows)} | {_detail(row)} |")
    for refusal in found["could_not"]:
        error = refusal["error"].replace("|", "/")
        lines.append(
            f"| {refusal['step']} | {refusal['peer']} | {refusal['way']} | could not: {error} | | | |"
        )
    for clock, rate in found["read_gb_s"].items():
        lines += ["", f"Memory read at {rate} GB/s by the {clock} clock. Of that, one token:", ""]
        for name, share in found["token_share"].items():
            lines.append(f"- {name}: {share['bytes'] / 1e6:.0f} MB, {share[clock]:.0%}")
    return "\n".join(lines)


def _line(row: Row, rows: Sequence[Row]) -> str:
    """Times of one way, and their ratio to our best."""
    ours = {clock: best(rows, OURS, row.step, clock) for clock in ("wall", "cpu")}
    texts = [f"{row.wall_s:.4g}", f"{row.cpu_s:.4g}"]
    if ours["wall"] is None or ours["cpu"] is None:
        return " | ".join([*texts, "-"])
    wall, cpu = row.wall_s / ours["wall"].wall_s, row.cpu_s / ours["cpu"].cpu_s
    return " | ".join([*texts, f"{wall:.2f} ({cpu:.2f})"])


def _detail(row: Row) -> str:
    if "passes" in row.detail:
        return f"{row.detail['tokens'] / row.detail['passes']:.1f} tokens a pass"
    return ""
