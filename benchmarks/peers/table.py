"""`python -m rexthinker_edge.benchmarks.peers.table peers.json`: a run in Markdown, for docs/peers.md.

Layout    What ran; systems by steps, each in its best way; what was aimed at; every way; what could not be
          done; what the slice says of the whole model.
Contract  Reads the object that report.py made and measures nothing. A ratio above 1 says that ours is faster.
          "3.1x (2.9–3.4)" is the ratio of medians, and behind it the smallest and largest of single rounds.
Elsewhere the object: report.py; where it is kept: docs/peers.md.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rexthinker_edge.benchmarks.peers.measure import Row, Sample, best, ratio
from rexthinker_edge.benchmarks.peers.report import OURS
from rexthinker_edge.benchmarks.peers.shape import Shape
from rexthinker_edge.benchmarks.peers.work import STEPS

LLAMA, TORCH = "llama.cpp", "transformers-fp32"


@dataclass(frozen=True)
class Run:
    """One object, by one clock."""

    found: dict[str, Any]
    clock: str
    rows: list[Row]
    samples: list[Sample]

    def best(self, peer: str, step: str) -> Row | None:
        """A peer's quickest way."""
        return best(self.rows, peer, step, self.clock)

    def seconds(self, peer: str, step: str) -> float | None:
        """Of the quickest way; of one token where one token is the step."""
        row = self.best(peer, step)
        return None if row is None else row.seconds(self.clock)

    def times(self, peer: str, step: str) -> str:
        """How many times as long as ours, and its range over rounds; empty where one of both is missing."""
        whole = ratio(self.rows, peer, OURS, step, self.clock)
        theirs, ours = (self._rounds(name, step) for name in (peer, OURS))
        single = [theirs[number] / ours[number] for number in theirs.keys() & ours.keys()]
        if whole is None:
            return ""
        return f"{whole:.2f}x ({min(single):.2f}–{max(single):.2f})" if len(single) > 1 else f"{whole:.2f}x"

    def _rounds(self, peer: str, step: str) -> dict[int, float]:
        """Seconds of the best way by round."""
        row = self.best(peer, step)
        return {
            sample.round: sample.wall_s if self.clock == "wall" else sample.cpu_s
            for sample in self.samples
            if row is not None and (sample.peer, sample.step, sample.way) == (peer, step, row.way)
        }


def read_run(found: dict[str, Any], clock: str = "wall") -> Run:
    """The object's rows and samples in their own types."""
    samples = [Sample(**sample) for sample in found.get("samples", [])]
    return Run(found, clock, [Row(**row) for row in found["rows"]], samples)


def markdown(found: dict[str, Any], clock: str = "wall") -> str:
    """The whole text; `clock` is "wall", or "cpu" for a machine that others use."""
    run = read_run(found, clock)
    parts = [[_head(found, clock)], _systems(run), _aims(run), _ways(run), _refused(run), _whole(run)]
    return "\n\n".join("\n".join(part) for part in parts if part)


def _head(found: dict[str, Any], clock: str) -> str:
    """What ran, where, when."""
    shape, sizes, machine = found["shape"], found["sizes"], found["machine"]
    text = "traces replayed" if found["replay"] else "random words"
    kind = "wall clock" if clock == "wall" else "processor time of all threads"
    return (
        f"{found['when']}, {machine['cpu']}, {machine['cores']} cores (load {machine['load'][0]:.1f} before "
        f"it), {found['threads']} threads, {found['rounds']} rounds; {shape['layers']} of "
        f"{shape['whole_layers']} layers of the {shape['name']} shape, output layer of "
        f"{found['head_bits']} bits; prompt of {sizes['prompt']}, answers of {sizes['answer']} "
        f"tokens, {text}. Medians, {kind}."
    )


def _systems(run: Run) -> list[str]:
    """A line per system, each in its best way."""
    shown = [step for step in STEPS if any(row.step == step for row in run.rows)]
    lines = ["| system | " + " | ".join(shown) + " |", "|" + " --- |" * (len(shown) + 1)]
    for peer in dict.fromkeys([OURS, *run.found["peers"]]):
        cells = []
        for step in shown:
            seconds = run.seconds(peer, step)
            times = "" if peer == OURS else f", {run.times(peer, step)}"
            cells.append("-" if seconds is None else f"{_seconds(seconds)}{times}")
        if any(cell != "-" for cell in cells):
            lines.append(f"| {peer} | " + " | ".join(cells) + " |")
    return lines


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.3g} ms"


def _aims(run: Run) -> list[str]:
    """What was aimed at beside what was reached."""
    ours = {step: run.seconds(OURS, step) for step in STEPS}
    lines = ["| aim | reached |", "| --- | --- |"]
    token = run.best(OURS, "token")
    share = {} if token is None else run.found["token_share"].get(f"{OURS}: {token.way}", {})
    if run.clock in share:
        lines.append(f"| one token at 90 % of the memory's rate or more | {share[run.clock]:.0%} |")
    lines += [
        f"| {text} | {reached} |"
        for text, peer, step in (
            ("one token no slower than llama.cpp's", LLAMA, "token"),
            ("prefill 1.15x as fast as llama.cpp's", LLAMA, "prefill"),
            ("eight questions 10x as fast as transformers in float32", TORCH, "eight"),
        )
        if (reached := run.times(peer, step))
    ]
    others = [peer for peer in run.found["peers"] if peer not in (OURS, "machine")]
    timed = {peer: value for peer in others if (value := run.seconds(peer, "eight")) is not None}
    if timed and ours["eight"] is not None:
        quickest = min(timed, key=lambda peer: timed[peer])
        times = run.times(quickest, "eight")
        lines.append(f"| eight questions 3x as fast as the best other | {times}, {quickest} |")
    if ours["eight"] is not None and ours["one"] is not None:
        lines.append(f"| eight questions in 3x the time of one | {ours['eight'] / ours['one']:.2f}x |")
    if ours["second"] is not None and ours["prefill"] is not None:
        part = ours["second"] / (ours["prefill"] + ours["second"])
        lines.append(f"| a second question's first token in 5 % of the first's, no picture | {part:.1%} |")
    return lines if len(lines) > 2 else []


def _ways(run: Run) -> list[str]:
    """Every way of every step."""
    lines = ["| step | system | way | rounds | wall | CPU | times ours, wall (CPU) | |", "|" + " --- |" * 8]
    for step in STEPS:
        for row in (row for row in run.rows if row.step == step):
            texts = [step, row.peer, row.way, str(row.rounds), _seconds(row.wall_s), _seconds(row.cpu_s)]
            lines.append("| " + " | ".join([*texts, _beside(run, row), _detail(run, row)]) + " |")
    return lines


def _beside(run: Run, row: Row) -> str:
    """A way's times by both clocks, beside our best way's."""
    ours = {clock: best(run.rows, OURS, row.step, clock) for clock in ("wall", "cpu")}
    if ours["wall"] is None or ours["cpu"] is None:
        return "-"
    return f"{row.wall_s / ours['wall'].wall_s:.2f} ({row.cpu_s / ours['cpu'].cpu_s:.2f})"


def _detail(run: Run, row: Row) -> str:
    """What else is known of a way."""
    words = []
    if row.detail.get("passes"):
        words.append(f"{row.detail['tokens'] / row.detail['passes']:.1f} tokens a pass")
    share = run.found["token_share"].get(f"{row.peer}: {row.way}") if row.step == "token" else None
    if share is not None:
        words.append(f"{share['bytes'] / 1e6:.0f} MB, {share[run.clock]:.0%} of the memory's rate")
    if "aside" in row.detail:
        words.append(f"not compared: {row.detail['aside']}")
    return "; ".join(words)


def _refused(run: Run) -> list[str]:
    """What could not be done, a line for each system and reason."""
    told: dict[tuple[str, str], list[str]] = {
        (name, opened["error"]): ["did not open"]
        for name, opened in run.found["peers"].items()
        if not opened["ok"]
    }
    for refusal in run.found["could_not"]:
        steps = told.setdefault((refusal["peer"], refusal["error"]), [])
        if steps != ["did not open"]:
            way = "" if refusal["way"] == "-" else f" ({refusal['way']})"
            steps.append(refusal["step"] + way)
    lines = [f"- {name}: {', '.join(steps)}: {error}" for (name, error), steps in told.items()]
    return ["Could not be done:", "", *lines] if lines else []


def _whole(run: Run) -> list[str]:
    """How weights grow from the slice to the whole model."""
    rates = " and ".join(
        f"{rate} GB/s by the {clock} clock" for clock, rate in run.found["read_gb_s"].items()
    )
    lines = [f"Memory was read at {rates}."] if rates else []
    shape = Shape(**run.found["shape"])
    if shape.layers < shape.whole_layers:
        head = shape.vocab * shape.hidden
        grown = (shape.whole_layers * shape.layer_parameters + head) / shape.matrix_parameters
        lines.append(
            f"The whole model's {shape.whole_layers} layers have {grown:.2f} times the slice's weights with "
            f"the output layer (a token, an answer), and {shape.whole_layers / shape.layers:.0f} times them "
            f"without it (prefill). By that, computed and not measured, a token of ours takes "
            f"{_whole_token(run, grown)} there."
        )
    return lines


def _whole_token(run: Run, grown: float) -> str:
    seconds = run.seconds(OURS, "token")
    return "-" if seconds is None else _seconds(seconds * grown)


def main(given: Sequence[str] | None = None) -> int:
    """Print the Markdown of one file."""
    parser = argparse.ArgumentParser(prog="python -m rexthinker_edge.benchmarks.peers.table")
    parser.add_argument("run", type=Path, help="what --out wrote")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: on a shared machine")
    options = parser.parse_args(given)
    print(markdown(json.loads(options.run.read_text("utf-8")), options.clock))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
