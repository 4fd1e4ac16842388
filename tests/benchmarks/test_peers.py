"""The comparison's bookkeeping: order, medians, ratios and refusals, without any peer installed."""

import json
import struct
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rexthinker_edge.benchmarks.peers import __main__ as command
from rexthinker_edge.benchmarks.peers import models, worker
from rexthinker_edge.benchmarks.peers.gguf_file import encode_value, random_tensor, tensors, write_gguf
from rexthinker_edge.benchmarks.peers.host import TOO_SLOW, Entry, Host
from rexthinker_edge.benchmarks.peers.measure import (
    Alternation,
    Sample,
    best,
    measure,
    ratio,
    read_rate,
    summarise,
)
from rexthinker_edge.benchmarks.peers.report import OURS, result
from rexthinker_edge.benchmarks.peers.shape import Shape, choose_shape
from rexthinker_edge.benchmarks.peers.table import main as print_table
from rexthinker_edge.benchmarks.peers.table import markdown
from rexthinker_edge.benchmarks.peers.work import QUESTIONS, random_work
from rexthinker_edge.kernels.matmul_nbits import dequantize
from rexthinker_edge.runtime.errors import OptionError

SMALL = Shape("small", 1, 1, 64, 2, 1, 96, 640, 1e-6, 1e6, 256)
ADAPTER = """
class Peer:
    ways = {"prefill": ["fast", "broken"]}
    def __init__(self, settings):
        if settings.get("refuse"):
            raise ValueError("no such\\nmodel")
        self.prepared = 0
    def versions(self):
        return {"stand-in": "1"}
    def prepare(self, step, way):
        self.prepared += 1
        print("a library talks on standard output")
    def run(self, step, way):
        if way == "broken":
            raise RuntimeError("cannot rewind")
        if way == "dead":
            import os, sys
            sys.stderr.write("last words")
            sys.stderr.flush()
            os._exit(7)
        if way == "slow":
            import time
            time.sleep(30)
        return self.prepared
def open_peer(settings):
    return Peer(settings)
"""


class Scripted:
    """A host that takes as long as it is told and remembers the order of asking."""

    def __init__(self, name: str, ways: dict[str, list[str]], log: list[str], seconds: float = 1.0) -> None:
        self.entry = Entry(name, "", "", {}, 1e9)
        self.opened: dict[str, Any] = {"ok": True, "ways": ways, "versions": {}}
        self.log, self.seconds = log, seconds
        self.by_way: dict[str, float] = {}
        self.asides: set[str] = set()

    def time(self, step: str, way: str) -> dict[str, Any]:
        self.log.append(f"{self.entry.name}:{step}:{way}")
        if way == "broken":
            return {"ok": False, "error": "RuntimeError: cannot"}
        if way == "late":
            return {"ok": False, "error": f"{TOO_SLOW} 3 s"}
        units = 4 if step == "token" else 1
        detail: dict[str, Any] = {"bytes_per_s": 2e9} if step == "read" else {}
        if way in self.asides:
            detail["aside"] = "not so used"
        units = 10**9 if step == "read" else units  # bytes, in half a second of processor time: 2 GB/s too
        cpu_s = 0.5 * self.by_way.get(way, 1.0)
        return {
            "ok": True, "wall_s": self.by_way.get(way, self.seconds), "cpu_s": cpu_s, "units": units,
            "detail": detail,
        }  # fmt: skip


def test_rounds_alternate_and_what_failed_is_not_asked_again() -> None:
    log: list[str] = []
    hosts = [Scripted("a", {"token": ["x", "broken"]}, log), Scripted("b", {"token": ["y"]}, log)]
    machine = Scripted("machine", {"read": ["dot products"]}, log)
    samples, refusals = measure(hosts, ["token"], 2, machine)
    assert log == [
        "machine:read:dot products", "a:token:x", "a:token:broken", "b:token:y",
        "machine:read:dot products", "b:token:y", "a:token:x",
    ]  # fmt: skip
    assert [(r.peer, r.way, r.error) for r in refusals] == [("a", "broken", "RuntimeError: cannot")]
    assert [s.round for s in samples if s.peer == "a"] == [0, 1]


def test_a_peer_that_was_not_opened_or_lacks_a_step_is_refused_once() -> None:
    log: list[str] = []
    closed, lacking = Scripted("closed", {}, log), Scripted("lacking", {}, log)
    closed.opened = {"ok": False, "error": "ImportError: no"}
    samples, refusals = measure([closed, lacking], ["eight"], 3)
    assert not samples
    assert [(r.peer, r.error) for r in refusals] == [
        ("closed", "ImportError: no"), ("lacking", "has no such step")
    ]  # fmt: skip
    assert not log


def test_ratios_are_of_medians_and_of_each_peers_best_way() -> None:
    def sample(peer: str, way: str, wall: float, cpu: float) -> Sample:
        return Sample(peer, "one", way, 0, wall, cpu, 1)

    rows = summarise(
        [
            sample(OURS, "slow", 9, 9),
            *(sample(OURS, "quick", wall, 2) for wall in (1, 2, 100)),
            sample("other", "a", 6, 7),
            sample("other", "b", 8, 5),
        ]
    )
    assert [(row.way, row.wall_s, row.rounds) for row in rows[:2]] == [("slow", 9, 1), ("quick", 2, 3)]
    assert ratio(rows, "other", OURS, "one", "wall") == 3.0
    assert ratio(rows, "other", OURS, "one", "cpu") == 2.5
    assert ratio(rows, "missing", OURS, "one", "wall") is None
    found = best(rows, "other", "one", "cpu")
    assert found is not None
    assert found.way == "b"
    assert read_rate([]) == {}


def test_a_way_much_slower_than_its_peers_best_is_timed_once() -> None:
    log: list[str] = []
    host = Scripted("a", {"token": ["quick", "slow", "near"]}, log)
    host.by_way = {"quick": 1.0, "slow": 1.6, "near": 1.4}
    first = Alternation([host], ["token"])
    first.round()
    assert first.expected_s() == pytest.approx(1.3 * (1.0 + 1.4))  # a round without the slow way
    samples, _ = measure([host], ["token"], 3)
    assert [sum(sample.way == way for sample in samples) for way in ("quick", "slow", "near")] == [3, 1, 3]


def test_a_step_is_not_asked_where_a_part_of_it_took_too_long() -> None:
    log: list[str] = []
    host = Scripted("a", {step: ["late"] for step in ("second", "one", "eight")}, log)
    samples, refusals = measure([host], ["second", "one", "eight"], 2)
    assert log == ["a:second:late"]
    assert not samples
    late = f"{TOO_SLOW} 3 s"
    assert [r.error for r in refusals][:2] == [late, f"not asked, for second is a part of it: {late}"]
    assert [r.step for r in refusals] == ["second", "one", "eight"]


def test_the_warm_up_is_not_counted() -> None:
    log: list[str] = []
    alternation = Alternation([Scripted("a", {"prefill": ["x"], "token": ["y", "z"]}, log)], ["prefill"])
    alternation.warm_up()
    assert (log, alternation.samples, alternation.rounds) == (["a:token:y"], [], 0)


def _reported() -> dict[str, Any]:
    """Two systems, one token: ours takes 1 s for 4, llama.cpp 3 s; one of its ways is broken."""
    log: list[str] = []
    ours = Scripted(OURS, {"token": ["as used", "one row"], "eight": ["together"], "one": ["plain"]}, log)
    ours.by_way = {"one row": 0.1}
    ours.asides = {"one row"}
    other = Scripted("llama.cpp", {"token": ["one row", "broken"], "eight": ["together"]}, log, 3.0)
    machine = Scripted("machine", {}, log)
    samples, refusals = measure([ours, other], ["token", "one", "eight"], 2, machine)
    opened = {host.entry.name: host.opened for host in (machine, ours, other)}
    opened["gone"] = {"ok": False, "error": "not installed"}
    facts = {
        "when": "then", "machine": {"cpu": "abacus", "cores": 1, "load": [0.0, 0.0, 0.0]}, "threads": 1,
        "shape": vars(choose_shape("7b", 4, 8192)), "rounds": 2, "replay": True, "head_bits": 4,
        "sizes": {"prompt": 384, "answer": 32, "tokens": 16},
    }  # fmt: skip
    return result(samples, refusals, [ours.entry, other.entry], opened, facts)


def test_the_report_states_ratios_and_shares() -> None:
    found = _reported()
    assert found["times_ours"]["wall"]["token"] == {"llama.cpp": 3.0}  # not 30: "one row" stands aside
    # 1 GB in a quarter of a second where memory gives 2 GB/s; the other takes three times as long
    assert found["token_share"][f"{OURS}: as used"]["wall"] == 2.0
    assert found["token_share"]["llama.cpp: one row"]["wall"] == pytest.approx(2 / 3, abs=1e-3)
    assert found["token_share"]["llama.cpp: one row"]["cpu"] == 4.0  # 1 GB in an eighth of a second


def test_the_table_says_it_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "peers.json"
    path.write_text(json.dumps(_reported()))
    assert print_table([str(path)]) == 0
    text = capsys.readouterr().out
    assert text == markdown(_reported()) + "\n"
    assert "4 of 28 layers of the 7b shape" in text
    assert "| rexthinker-edge | 250 ms | 1.00 s | 1.00 s |" in text
    assert "| llama.cpp | 750 ms, 3.00x (3.00–3.00) | - | 3.00 s, 3.00x (3.00–3.00) |" in text
    assert "| one token no slower than llama.cpp's | 3.00x (3.00–3.00) |" in text
    assert "| eight questions 3x as fast as the best other | 3.00x (3.00–3.00), llama.cpp |" in text
    assert "| eight questions in 3x the time of one | 1.00x |" in text
    assert "| token | llama.cpp | one row | 2 | 750 ms | 125 ms | 3.00 (1.00) | 1000 MB, 67%" in text
    assert "not compared: not so used" in text
    assert "- llama.cpp: token (broken): RuntimeError: cannot" in text
    assert "- gone: did not open: not installed" in text
    assert "4.79 times the slice's weights" in text


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    path = tmp_path / "adapter.py"
    path.write_text(ADAPTER)
    return path


def _host(adapter: Path, settings: dict[str, Any] | None = None, limit_s: float = 60) -> Host:
    return Host(Entry("stand-in", str(adapter), sys.executable, settings or {}), 60, limit_s, 1)


def test_a_process_answers_in_json_whatever_its_library_prints(adapter: Path) -> None:
    with _host(adapter) as host:
        assert host.open()["versions"] == {"stand-in": "1"}
        assert [host.time("prefill", "fast")["units"] for _ in range(2)] == [1, 2]
        assert host.time("prefill", "broken")["error"] == "RuntimeError: cannot rewind"
        assert host.time("prefill", "fast")["peak_bytes"] > 0
        dead = host.time("prefill", "dead")
        assert dead["error"].startswith("ended with 7: ")
        assert dead["error"].endswith("last words")
        assert host.time("prefill", "fast")["units"] == 1  # a new process


def test_slow_missing_and_unwilling_peers_are_recorded(adapter: Path) -> None:
    with _host(adapter, limit_s=0.5) as host:
        host.open()
        assert host.time("prefill", "slow") == {"ok": False, "error": "not done after 0.5 s"}
    with _host(adapter, {"refuse": True}) as host:
        assert host.open()["error"] == "ValueError: no such model"
    with Host(Entry("gone", str(adapter), str(adapter.parent / "python")), 5, 5, 1) as gone:
        assert gone.open()["error"].endswith("No such file or directory")
        assert gone.time("prefill", "fast") == gone.opened


def test_the_worker_times_the_step_and_not_its_preparation(adapter: Path) -> None:
    answers = StringIO()
    asked = [
        {"do": "open", "settings": {}},
        {"do": "time", "step": "prefill", "way": "fast"},
        {"do": "close"},
    ]
    worker.serve(
        worker.load_adapter(adapter), StringIO("".join(json.dumps(a) + "\n" for a in asked)), answers
    )
    opened, timed = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert opened["ways"] == {"prefill": ["fast", "broken"]}
    assert timed["units"] == 1
    assert 0 <= timed["wall_s"] < 1


def test_gguf_values_are_as_the_format_writes_them() -> None:
    assert encode_value(True) == struct.pack("<I?", 7, True)
    assert encode_value(3) == bytes([4, 0, 0, 0, 3, 0, 0, 0])
    assert encode_value("ab") == struct.pack("<IQ", 8, 2) + b"ab"
    assert encode_value(["a"]) == struct.pack("<IIQQ", 9, 8, 1, 1) + b"a"
    assert encode_value(0.5) == struct.pack("<If", 6, 0.5)


def test_a_gguf_file_is_as_long_as_it_says_and_its_weights_are_sane(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", SMALL)
    stored = (tmp_path / "m.gguf").read_bytes()
    assert stored[:8] == b"GGUF\x03\x00\x00\x00"
    assert struct.unpack("<Q", stored[8:16])[0] == len(list(tensors(SMALL))) == 3 + 12
    matrices = SMALL.matrix_parameters + SMALL.vocab * SMALL.hidden  # and the token table
    assert len(stored) % 32 == 0
    assert len(stored) > matrices // 32 * 18
    blocks = random_tensor("blk.0.ffn_up.weight", (96, 64)).reshape(-1, 18)
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float64)
    codes = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1).astype(np.float64) - 8
    assert np.std(codes * scale) == pytest.approx(64**-0.5, rel=0.05)
    assert random_tensor("blk.0.attn_norm.weight", (64,)).view(np.float32).mean() == pytest.approx(
        1, abs=0.02
    )


def test_shapes_are_the_published_ones_and_slices_of_them() -> None:
    seven = choose_shape("7b", 4, 8192)
    assert (seven.hidden, seven.intermediate, seven.heads, seven.kv_heads) == (3584, 18944, 28, 4)
    assert (seven.layers, seven.whole_layers, seven.vocab) == (4, 28, 152064)
    assert seven.layer_parameters == 3584 * (2 * 3584 + 2 * 512) + 3 * 3584 * 18944
    assert choose_shape("7b", 0, 8192).layers == 28
    with pytest.raises(OptionError, match=r"--layers 29: the 7b shape has 28\. Give 1 to 28"):
        choose_shape("7b", 29, 8192)
    with pytest.raises(OptionError, match="--shape 9b: not known"):
        choose_shape("9b", 0, 8192)


def test_random_work_has_the_lengths_asked_for() -> None:
    work = random_work(10_000, 40, 6, 3)
    assert (len(work.prefix), len(work.questions), work.replay) == (40, QUESTIONS, False)
    assert {len(answer) for answer in work.answers} == {6}
    assert json.loads(json.dumps(work.plain()))["tokens"] == 3


def test_random_integers_have_products_of_deviation_one() -> None:
    recipe = models.IntegerRecipe(block=32)
    weight = models.RandomIntegers(recipe).linear("layer", (64, 96)).weight
    assert np.std(dequantize(weight)) == pytest.approx(96**-0.5, rel=0.05)
    assert models.RandomIntegers(recipe).linear("lm_head", (64, 96), head=True).weight.bits == 8


def test_files_are_made_once_and_whole(tmp_path: Path) -> None:
    asked: list[Path] = []

    def broken(out: Path) -> None:
        asked.append(out)
        out.mkdir()
        raise OptionError("no")

    with pytest.raises(OptionError):
        models.made(tmp_path / "m", broken)
    assert not (tmp_path / "m").exists()
    assert models.made(tmp_path / "m", lambda out: out.mkdir()) == tmp_path / "m"
    models.made(tmp_path / "m", broken)
    assert len(asked) == 1


def test_interpreters_and_peers_are_named_or_refused(tmp_path: Path) -> None:
    assert command.interpreters(["llama.cpp=/venv/python"]) == {"llama.cpp": "/venv/python"}
    with pytest.raises(OptionError, match="--python vllm=x: needed PEER=INTERPRETER"):
        command.interpreters(["vllm=x"])
    options = command.arguments(["--work", str(tmp_path), "--layers", "1", "--shape", "tiny"])
    maker = command.Maker(options, SMALL, random_work(640, 8, 4, 2))
    with pytest.raises(OptionError, match=r"openvino-genai: its files need a tokenizer\. Give --tokenizer\."):
        maker.entry("openvino-genai")


def test_our_own_peer_replays_what_it_is_told(tmp_path: Path) -> None:
    shape = replace(choose_shape("tiny", 1, 512), vocab=640)
    assert shape.layers == 1
    work = random_work(640, 20, 5, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "_sliced", lambda s: replace(models.text_config("tiny"), layers=1, vocab=640))
        place = models.rexthinker(tmp_path, shape, 4, None)
    settings = {"path": str(place), "threads": 1, "work": work.plain(), "tokenizer": None}
    peer = worker.load_adapter(Path(worker.__file__).with_name("peer_rexthinker.py")).open_peer(settings)
    for step, ways in peer.ways.items():
        for way in ways:
            assert worker.timed(peer, step, way)["wall_s"] > 0
    assert peer.detail == {"passes": 40, "tokens": 40}
    assert worker.timed(peer, "eight", "together")["detail"] == {"passes": 5, "tokens": 40}
