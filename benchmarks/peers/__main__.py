"""`python -m rexthinker_edge.benchmarks.peers`: the one command.

Layout    Makes what files are missing, opens the peers named, times them in alternation, prints a Markdown
          table and, as the last line, one JSON object (schema rexthinker-edge/peers/1).
Contract  All peers are open at once, so the machine needs the memory of all: name fewer with --peers, or
          fewer --layers. A peer whose interpreter was not given runs in this one. No round begins that is
          expected to end after --minutes; --out is written after every round.
Elsewhere the table again from --out: table.py; figures and how to install the peers: docs/peers.md.
"""

import argparse
import datetime
import json
import os
import platform
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rexthinker_edge.benchmarks.peers import models
from rexthinker_edge.benchmarks.peers.genai_model import genai
from rexthinker_edge.benchmarks.peers.host import Entry, Host
from rexthinker_edge.benchmarks.peers.measure import Alternation
from rexthinker_edge.benchmarks.peers.report import OURS, result
from rexthinker_edge.benchmarks.peers.shape import SHAPES, SLICE_LAYERS, Shape, choose_shape
from rexthinker_edge.benchmarks.peers.table import markdown
from rexthinker_edge.benchmarks.peers.work import STEPS, Work, random_work, workbench_work
from rexthinker_edge.runtime.errors import OptionError, RexThinkerError

PEERS = (
    OURS, "llama.cpp", "onnxruntime-genai", "openvino-genai", "openvino-genai-lookup", "transformers-bf16",
    "transformers-fp32",
)  # fmt: skip
MAX_LENGTH = 8192
OPEN_LIMIT_S = 900.0


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m rexthinker_edge.benchmarks.peers", description="The same work beside other runtimes."
    )
    parser.add_argument("--work", type=Path, required=True, help="directory for files of random weights")
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--layers", type=int, default=SLICE_LAYERS, help="of the shape's; 0: all")
    parser.add_argument("--head-bits", type=int, choices=(4, 8), default=4, help="of our output layer")
    parser.add_argument("--prompt", type=int, default=384, help="tokens up to the question")
    parser.add_argument("--answer", type=int, default=32, help="tokens of an answer")
    parser.add_argument("--tokens", type=int, default=16, help="decoded where one token is timed")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=15, help="for warm-up and rounds; 1 round at least")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--steps", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument(
        "--python", action="append", default=[], metavar="PEER=INTERPRETER", help="a peer's own"
    )
    parser.add_argument("--tokenizer", type=Path, help="Qwen2.5-VL's tokenizer.json; else ids are random")
    parser.add_argument("--limit", type=float, default=60, help="seconds after which a step is given up")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    return parser.parse_args(given)


def interpreters(pairs: list[str]) -> dict[str, str]:
    """PEER=INTERPRETER pairs by peer.

    Raises:
        OptionError: a pair is none, or names no peer.
    """
    found = {}
    for pair in pairs:
        name, sign, python = pair.partition("=")
        if not sign or name not in PEERS or not python:
            raise OptionError(f"--python {pair}: needed PEER=INTERPRETER, PEER one of {', '.join(PEERS)}.")
        found[name] = python
    return found


class Maker:
    """Makes an entry for a peer's name, files first."""

    def __init__(self, options: argparse.Namespace, shape: Shape, work: Work) -> None:
        self.options, self.shape, self.work = options, shape, work
        self.python = interpreters(options.python)
        self.place = options.work / f"{shape.name}-{shape.layers}"

    def entry(self, name: str) -> Entry:
        """The entry; OptionError where its files cannot be made."""
        options, shape = self.options, self.shape
        common: dict[str, Any] = {
            "threads": options.threads, "shape": asdict(shape), "work": self.work.plain(),
        }  # fmt: skip
        python, tokenizer = self.python.get(name, sys.executable), options.tokenizer
        weights, context = shape.matrix_parameters, len(self.work.prefix)
        kv_numbers = 2 * shape.layers * shape.kv_width * context
        if name == OURS:
            path = models.rexthinker(self.place, shape, options.head_bits, tokenizer)
            layers = shape.layers * shape.layer_parameters
            per_block = (32 + 4) / 128  # bits of scale and zero point a number
            bits = layers * (4 + per_block) + shape.vocab * shape.hidden * (options.head_bits + per_block)
            more = {"path": str(path), "tokenizer": None if tokenizer is None else str(tokenizer)}
            return Entry(name, "peer_rexthinker.py", python, common | more, bits / 8 + kv_numbers * 4)
        if name == "llama.cpp":
            path = models.gguf(self.place, shape, tokenizer)
            size = weights * 18 / 32 + kv_numbers * 2
            return Entry(name, "peer_llama_cpp.py", python, common | {"path": str(path)}, size)
        if name.startswith("transformers"):
            kind, width = ("bfloat16", 2) if name.endswith("bf16") else ("float32", 4)
            size = (weights + kv_numbers) * width
            return Entry(name, "peer_transformers.py", python, common | {"dtype": kind}, size)
        if tokenizer is None:
            raise OptionError(f"{name}: its files need a tokenizer. Give --tokenizer.")
        if name == "onnxruntime-genai":
            path = genai(self.place, shape, tokenizer, python, sys.executable)
            return Entry(name, "peer_onnxruntime_genai.py", python, common | {"path": str(path)})
        path = models.openvino(self.place, shape, tokenizer, python)
        chosen = {"path": str(path), "prompt_lookup": name.endswith("lookup")}
        return Entry(name, "peer_openvino_genai.py", python, common | chosen)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure; the JSON object."""
    for name in ("rounds", "threads"):
        if getattr(options, name) < 1:
            raise OptionError(f"--{name} {getattr(options, name)}: nothing would be timed. Give 1 or more.")
    shape = choose_shape(options.shape, options.layers, MAX_LENGTH)
    sizes = (options.prompt, options.answer, options.tokens)
    if options.tokenizer is None:
        work = random_work(shape.vocab, *sizes)
    else:
        work = workbench_work(options.tokenizer, *sizes)
    maker, broken = Maker(options, shape, work), dict[str, dict[str, Any]]()
    entries = list[Entry]()
    for name in options.peers:
        try:
            entries.append(maker.entry(name))
        except OptionError as error:
            if name == OURS:
                raise
            broken[name] = {"ok": False, "error": str(error)}
    facts = {
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"), "machine": machine_facts(),
        "shape": asdict(shape), "threads": options.threads,
        "sizes": dict(zip(("prompt", "answer", "tokens"), sizes, strict=True)), "replay": work.replay,
        "head_bits": options.head_bits,
    }  # fmt: skip
    return timed(options, entries, broken, facts)


def timed(
    options: argparse.Namespace, entries: list[Entry], broken: dict[str, dict[str, Any]],
    facts: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Open the peers and time them until the rounds or the minutes are over; the JSON object."""
    machine = Entry("machine", "peer_machine.py", sys.executable, {"threads": options.threads})
    with ExitStack() as stack:
        hosts = [
            stack.enter_context(Host(entry, OPEN_LIMIT_S, options.limit, options.threads))
            for entry in [machine, *entries]
        ]
        opened = {host.entry.name: host.open() for host in hosts} | broken
        for name, value in opened.items():
            _tell(f"{name}: {value.get('versions', value.get('error'))}")
        alternation = Alternation(hosts[1:], options.steps, hosts[0], _tell)
        begun = time.monotonic()
        alternation.warm_up()
        found = dict[str, Any]()
        for _ in range(options.rounds):
            alternation.round()
            seconds = time.monotonic() - begun
            told = facts | {"rounds": alternation.rounds, "minutes": round(seconds / 60, 1)}
            found = result(alternation.samples, alternation.refusals, entries, opened, told)
            _keep(options.out, found)
            if seconds + alternation.expected_s() > 60 * options.minutes:
                break
    return found


def _keep(path: Path | None, found: dict[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(found) + "\n", "utf-8")


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def machine_facts() -> dict[str, Any]:
    """What ran it, and how busy it was."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [
            line.partition(":")[2].strip()
            for line in cpuinfo.read_text().splitlines()
            if "model name" in line
        ]
        model = names[0] if names else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "load": list(os.getloadavg()),
        "python": platform.python_version(),
    }


def main(given: list[str] | None = None) -> int:
    """Run, print, maybe write."""
    options = arguments(given)
    try:
        found = run(options)
    except RexThinkerError as error:
        _tell(f"{type(error).__name__}: {error}")
        return 1
    print(markdown(found))
    print(json.dumps({key: value for key, value in found.items() if key != "samples"}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
