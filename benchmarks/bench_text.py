"""The report of `bench` as tables, for a terminal or in Markdown.

Contract  Both say the same. Nothing is left out in silence: what the machine did not tell has a line.
Elsewhere the report: bench.py.
"""

from collections.abc import Callable, Sequence
from typing import Any

Rows = list[list[str]]
Made = tuple[str, list[str], Rows]  # title, head, rows

QUIET = 0.05  # of all cores' time; an idle machine's own housekeeping takes less
STAGES = {"detect": "detector", "vision": "vision tower", "prefill": "prompt", "token": "one token"}


def as_table(report: dict[str, Any]) -> str:
    """For a terminal."""
    return _written(report, _columns, lambda text: text)


def as_markdown(report: dict[str, Any]) -> str:
    """For a document."""
    return _written(report, _pipes, lambda text: f"- {text}")


def _written(
    report: dict[str, Any], table: Callable[[list[str], Rows], list[str]], line: Callable[[str], str]
) -> str:
    lines = [line(text) for text in _head(report)]
    for title, head, rows in (_ceilings(report), _stages(report), _expressions(report)):
        lines += ["", title, "", *table(head, rows)]
    return "\n".join([*lines, "", *(line(text) for text in _foot(report))])


def faults(report: dict[str, Any]) -> list[str]:
    """What must not be: answers that depend on how they were asked for."""
    found = []
    if not report["drafting"]["identical"]:
        found.append(
            "drafting: an answer has other tokens than without it, the same are needed. Load with "
            "drafting=False, and report the bundle and this machine."
        )
    if not report["bundle"]["together_identical"]:
        found.append(
            "together: an answer has other tokens than alone, or none, the same are needed. Ask one by one, "
            "and report the bundle and this machine."
        )
    return found


def _head(report: dict[str, Any]) -> list[str]:
    machine, bundle = report["machine"], report["bundle"]
    versions = machine["versions"]
    runtime = versions["onnxruntime"] or versions["onnxruntime-gpu"]
    made = ", random numbers: times are true, answers mean nothing" if bundle["random"] else ""
    board = f"{machine['board']}, " if machine["board"] else ""
    return [
        f"{bundle['name']} ({bundle['bytes'] / 1e6:,.0f} MB, digest {bundle['digest'][:12]}){made}",
        f"{board}{machine['processor']}, {machine['threads']} threads of {machine['cores']}, "
        f"{machine['device']}; rexthinker-edge {versions['rexthinker-edge']}, ONNX Runtime {runtime}, "
        f"Python {versions['python']}",
        f"{bundle['pictures']} pictures of {bundle['picture']}, {bundle['candidates']} candidates"
        f"{' given' if bundle['boxes_given'] else ''}, a prompt of {bundle['prompt_tokens']:,} tokens "
        f"({bundle['prefilled_tokens']:,} computed), an answer of {bundle['answer_tokens']:,}",
    ]


def _ceilings(report: dict[str, Any]) -> Made:
    found = report["ceilings"]
    rows = [
        ["memory read", f"{found['read_gb_s']:,.1f} GB/s"],
        ["int8 products", f"{found['int8_gflop_s']:,.0f} GFLOP/s"],
        ["fp32 products", f"{found['fp32_gflop_s']:,.0f} GFLOP/s"],
    ]
    return "What this machine can do", ["", "measured now"], rows


def _stages(report: dict[str, Any]) -> Made:
    rows = []
    for name, stage in report["stages"].items():
        work = report["bundle"]["work"][name]
        operations = (work["int8_ops"] + work["fp32_ops"]) / 1e9
        rows.append(
            [
                STAGES[name], f"{stage['p50_ms']:,.2f}", f"{stage['p95_ms']:,.2f}",
                f"{work['bytes'] / 1e6:,.1f}", f"{operations:,.2f}", f"{stage['ceiling_ms']:,.2f}",
                f"{100 * stage['share']:.0f} %",
            ]
        )  # fmt: skip
    head = ["stage", "p50 ms", "p95 ms", "MB", "GFLOP", "ceiling ms", "of ceiling"]
    return "Stages", head, rows


def _expressions(report: dict[str, Any]) -> Made:
    first, second, drafted = report["first"], report["second"], report["drafting"]
    late, off = report["bundle"]["p95_ms"], {"ttft_ms": None, "total_ms": drafted["off_ms"]}

    def row(name: str, ms: dict[str, Any], slow: dict[str, float], said: str) -> list[str]:
        cells = [(ms[one], slow[one]) for one in ("ttft_ms", "total_ms")]
        shown = [(f"{half:,.1f}", f"{most:,.1f}") if half is not None else ("", "") for half, most in cells]
        return [name, *shown[0], *shown[1], said]

    rows = [
        row("first", first, late["first"], "picture and all"),
        row("second", second, late["second"],
            f"{second['reused']:,} of {second['prompt']:,} prompt tokens reused"),
        row("undrafted", off, late["undrafted"],
            f"drafted {drafted['tokens_per_pass']:.2f} tokens a pass, {drafted['on_ms']:,.1f} ms, "
            + ("the same tokens" if drafted["identical"] else "DIFFERENT TOKENS")),
    ]  # fmt: skip
    one = report["together"].get("1")
    alike = "the same tokens" if report["bundle"]["together_identical"] else "DIFFERENT TOKENS"
    for count, ms in report["together"].items():
        told, slow = f"{ms / one:.2f} times one, {alike}", late["together"][count]
        told += f", mixed on {report['bundle']['mixed'][count]} pictures" if count != "1" else ""
        rows.append([f"{count} together", "", "", f"{ms:,.1f}", f"{slow:,.1f}", told])
    return "Expressions", ["", "first token p50 ms", "p95", "whole p50 ms", "p95", ""], rows


def _foot(report: dict[str, Any]) -> list[str]:
    machine, bundle, load = report["machine"], report["bundle"], report["load"]
    statuses = ", ".join(f"{count} {name}" for name, count in bundle["statuses"].items())
    peak = "since loading" if machine["peak_since_load"] else "the bench's own arrays included"
    return [
        *_shared(machine),
        f"{1000 / report['stages']['token']['p50_ms']:,.1f} tokens/s one by one; answers: {statuses}",
        f"load {load['cold_ms']:,.0f} ms cold, {load['warm_ms']:,.0f} ms warm; packed after "
        f"{bundle['ready_ms']['cold']:,.0f} and {bundle['ready_ms']['warm']:,.0f} ms; {_cold(machine)}",
        f"peak memory {report['peak_bytes'] / 2**20:,.0f} MiB, {peak}",
        _energy(machine["energy"]),
        _heat(machine["throttling"]),
    ]


def _shared(machine: dict[str, Any]) -> list[str]:
    """A warning where other programs had the cores; threads of our own that wait for each other are none."""
    share, waited = machine["others_share"], machine["waited_share"]
    if share is None or share < QUIET:
        return []
    waiting = "" if waited is None else f", threads waited for one {100 * waited:.0f} % of their time"
    return [
        f"NOT A QUIET MACHINE: other programs had {100 * share:.0f} % of its cores{waiting}; times are too "
        "long, and no ceiling is the machine's own"
    ]


def _cold(machine: dict[str, Any]) -> str:
    told, share = machine["cold_load"], machine["cold_load"]["cached_share"]
    if not told["dropped"]:
        return f"not cold: {told['why']}"
    if share is None:
        return "files were dropped from memory, the system does not tell how far"
    return f"{100 * share:.0f} % of the files stayed in memory for the cold one"


def _energy(told: dict[str, Any]) -> str:
    if not told["available"]:
        return f"energy: not told ({told['why']})"
    parts = [
        f"{name} {told['watts'][name]:.1f} W, {joules:.2f} J an expression"
        for name, joules in told["joules_per_expression"].items()
    ]
    return f"energy: {'; '.join(parts)}"


def _heat(told: dict[str, Any]) -> str:
    warm = [] if told["hottest_c"] is None else [f"{told['hottest_c']:.0f} °C at the hottest"]
    if told["clock_share"] is not None:
        warm.append(f"clock at {100 * told['clock_share']:.0f} % of its most")
    if told["throttled"] is None:
        said = f"throttling: not told ({told['why']})"
    else:
        said = f"throttled: {sum(told['events'].values())} events" if told["throttled"] else "not throttled"
    return "; ".join([said, *warm])


def _columns(head: list[str], rows: Rows) -> list[str]:
    """Aligned with spaces, numbers to the right."""
    widths = [max(len(row[place]) for row in [head, *rows]) for place in range(len(head))]
    right = _numeric_columns(rows)

    def line(row: Sequence[str]) -> str:
        cells = zip(row, widths, right, strict=True)
        return "  ".join(cell.rjust(width) if to else cell.ljust(width) for cell, width, to in cells).rstrip()

    return [line(head), *(line(row) for row in rows)]


def _pipes(head: list[str], rows: Rows) -> list[str]:
    """A Markdown table, numbers to the right."""
    rule = ["---:" if to else "---" for to in _numeric_columns(rows)]
    return ["| " + " | ".join(row) + " |" for row in [head, rule, *rows]]


def _numeric_columns(rows: Rows) -> list[bool]:
    """Which columns hold numbers, with their unit, or nothing."""
    return [all(_numeric(cell) for cell in column) for column in zip(*rows, strict=True)]


def _numeric(cell: str) -> bool:
    number, _, unit = cell.partition(" ")
    return not cell or (number.replace(",", "").replace(".", "").isdecimal() and " " not in unit)
