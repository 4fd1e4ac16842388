"""What a run found, as one JSON object (schema rexthinker-edge/peers/1).

Contract  Medians, ratios of medians and shares of the memory's rate, by both clocks, beside every sample they
          come from and what could not be done.
Elsewhere samples: measure.py; the object in words: table.py; figures kept: docs/peers.md.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rexthinker_edge.benchmarks.peers.host import Entry
from rexthinker_edge.benchmarks.peers.measure import Refusal, Row, Sample, ratio, read_rate, summarise
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
