"""Adapters of other runtimes against stand-ins of their libraries: what is asked of them, in which order."""

import ctypes
import sys
import weakref
from dataclasses import asdict
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from rexthinker_edge.benchmarks.peers import worker
from rexthinker_edge.benchmarks.peers.shape import Shape
from rexthinker_edge.benchmarks.peers.work import random_work

WORK = random_work(640, 600, 6, 3)
PREFIX = len(WORK.prefix)


def _open(name: str, **settings: Any) -> Any:
    adapter = worker.load_adapter(Path(worker.__file__).with_name(f"peer_{name}.py"))
    return adapter.open_peer({"threads": 1, "work": WORK.plain(), "path": "model", **settings})


class FakeLlama(ModuleType):
    """llama.cpp's C interface as far as the adapter uses it; `rows` has every (token, position, sequence)."""

    __version__ = "0"

    def __init__(self) -> None:
        super().__init__("llama_cpp")
        self.rows: list[list[tuple[int, int, int, bool]]] = []
        self.kept: dict[int, set[int]] = {}  # positions by sequence
        self.llama_backend_init = lambda: None
        self.llama_model_default_params = SimpleNamespace
        self.llama_context_default_params = SimpleNamespace
        self.llama_model_load_from_file = lambda path, options: "model"
        self.llama_init_from_model = lambda model, options: "context"
        self.llama_get_memory = lambda context: "memory"
        self.llama_print_system_info = lambda: b"AVX2"
        self.llama_log_callback = lambda heard: heard
        self.heard: Any = None
        self.logits = (ctypes.c_float * 640)()

    def llama_log_set(self, heard: Any, user: Any) -> None:
        self.heard = heard

    def llama_batch_init(self, tokens: int, embd: int, sequences: int) -> SimpleNamespace:
        zeros = [0] * tokens
        return SimpleNamespace(
            n_tokens=0, token=[*zeros], pos=[*zeros], n_seq_id=[*zeros], logits=[*zeros],
            seq_id=[[0] for _ in zeros],
        )  # fmt: skip

    def llama_decode(self, context: str, batch: SimpleNamespace) -> int:
        assert 0 < batch.n_tokens <= 512
        rows = [
            (batch.token[i], batch.pos[i], batch.seq_id[i][0], bool(batch.logits[i]))
            for i in range(batch.n_tokens)
        ]
        for _, position, sequence, _ in rows:
            kept = self.kept.setdefault(sequence, set())
            assert position == len(kept), "a sequence has gaps or is overwritten"
            kept.add(position)
        self.rows.append(rows)
        return 0

    def llama_get_logits_ith(self, context: str, row: int) -> Any:
        assert self.rows[-1][row][3], "logits were not asked for"
        return self.logits

    def llama_memory_clear(self, memory: str, data: bool) -> None:
        self.kept.clear()

    def llama_memory_seq_rm(self, memory: str, sequence: int, start: int, stop: int) -> bool:
        assert stop == -1
        self.kept[sequence] = {p for p in self.kept.get(sequence, set()) if p < start}
        return True

    def llama_memory_seq_cp(self, memory: str, source: int, target: int, start: int, stop: int) -> None:
        self.kept[target] = set(self.kept[source])


@pytest.fixture
def llama(monkeypatch: pytest.MonkeyPatch) -> FakeLlama:
    made = FakeLlama()
    monkeypatch.setitem(sys.modules, "llama_cpp", made)
    return made


def test_llama_reads_the_prefix_once_and_rewinds(llama: FakeLlama) -> None:
    peer = _open("llama_cpp", shape={"vocab": 640})
    assert worker.timed(peer, "prefill", "batches of 512")["units"] == PREFIX
    assert [len(rows) for rows in llama.rows] == [512, PREFIX - 512]
    assert [row[3] for row in llama.rows[-1]] == [False] * (PREFIX - 513) + [True]
    llama.rows.clear()
    worker.timed(peer, "second", "prefix rewound")
    worker.timed(peer, "token", "one row")
    question = WORK.questions[1]
    assert [row[:3] for row in llama.rows[0]] == [(t, PREFIX + i, 0) for i, t in enumerate(question)]
    assert [[row[1] for row in rows] for rows in llama.rows[1:]] == [[PREFIX], [PREFIX + 1], [PREFIX + 2]]


def test_llama_says_why_it_cannot_load(llama: FakeLlama) -> None:
    def load(path: bytes, options: Any) -> None:
        llama.heard(2, b"a warning\n", None)
        llama.heard(4, b"invalid gguf type\n", None)
        llama.heard(4, b"\n", None)

    llama.llama_model_load_from_file = load
    with pytest.raises(RuntimeError, match=r"model: llama\.cpp cannot load it: invalid gguf type"):
        _open("llama_cpp", shape={"vocab": 640})


def test_llama_answers_eight_sequences_over_one_prefix(llama: FakeLlama) -> None:
    peer = _open("llama_cpp", shape={"vocab": 640})
    got = worker.timed(peer, "eight", "together")
    assert got["detail"] == {"passes": 6, "tokens": 48}
    reads = llama.rows[2:]  # behind the prefix
    assert [len(rows) for rows in reads] == [sum(len(q) for q in WORK.questions)] + [8] * 5
    assert {row[2] for row in reads[0]} == set(range(1, 9))
    assert [row[0] for row in reads[1]] == [answer[0] for answer in WORK.answers]
    assert [row[1] for row in reads[5]] == [PREFIX + len(q) + 4 for q in WORK.questions]
    alone = worker.timed(peer, "eight", "one by one")
    assert alone["detail"] == {"passes": 48, "tokens": 48}


class Lookup:
    """Foresees three tokens of the first answer rightly and then one wrongly."""

    def __init__(self, **_: Any) -> None: ...

    def __call__(self, ids: NDArray[np.intc]) -> NDArray[np.intc]:
        written = len(ids) - PREFIX - len(WORK.questions[0])
        return np.array([*WORK.answers[0][written : written + 3], -1], np.intc)


def test_llama_keeps_what_a_draft_got_right(llama: FakeLlama, monkeypatch: pytest.MonkeyPatch) -> None:
    speculative = ModuleType("llama_cpp.llama_speculative")
    vars(speculative)["LlamaPromptLookupDecoding"] = Lookup
    monkeypatch.setitem(sys.modules, "llama_cpp.llama_speculative", speculative)
    peer = _open("llama_cpp", shape={"vocab": 640}, work=WORK.plain() | {"replay": True})
    assert peer.ways["one"] == ["plain", "prompt lookup"]
    got = worker.timed(peer, "one", "prompt lookup")
    # 1 token with the question, 4 in the pass that foresaw 3, then the last
    assert got["detail"] == {"passes": 3, "tokens": 6}
    assert [len(rows) for rows in llama.rows[3:]] == [5, 1]
    assert len(llama.kept[0]) == PREFIX + len(WORK.questions[0]) + 5  # the last token is not read


class FakeGenerator:
    """onnxruntime-genai's generator: counts tokens."""

    def __init__(self, model: Any, options: SimpleNamespace) -> None:
        self.count, self.options, self.log = 0, options, list[str]()

    def append_tokens(self, ids: NDArray[np.int32]) -> None:
        assert ids.dtype == np.int32
        self.count += ids.shape[-1]
        self.log.append(f"read {ids.shape}")

    def generate_next_token(self) -> None:
        self.count += 1
        self.log.append("token")

    def rewind_to(self, length: int) -> None:
        self.count = length
        self.log.append(f"rewind {length}")

    def token_count(self) -> int:
        return self.count


class FakeParams(SimpleNamespace):
    """What a generator is told."""

    def set_search_options(self, **options: Any) -> None:
        self.__dict__.update(options)


def test_genai_rewinds_to_the_prefix_before_every_question(monkeypatch: pytest.MonkeyPatch) -> None:
    overlaid: list[str] = []
    made = ModuleType("onnxruntime_genai")
    vars(made).update(
        __version__="0", Config=lambda path: SimpleNamespace(overlay=overlaid.append),
        Model=lambda config: "model", Generator=FakeGenerator, GeneratorParams=lambda model: FakeParams(),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", made)
    peer = _open("onnxruntime_genai")
    assert '"intra_op_num_threads": 1' in overlaid[0]
    worker.timed(peer, "eight", "one by one")
    log = peer.generator.log
    assert log[:2] == [f"read ({PREFIX},)", f"rewind {PREFIX}"]
    assert (log.count("token"), log.count(f"rewind {PREFIX}")) == (48, 9)
    assert worker.timed(peer, "eight", "batch, the whole prompt eight times")["units"] == 48
    assert peer.generator.options.batch_size == 8
    assert peer.generator.log[0] == f"read (8, {PREFIX + min(map(len, WORK.questions))})"
    worker.timed(peer, "second", "rewind_to")  # a fresh generator: the batch's has no prefix of its own
    assert peer.generator.options.batch_size == 1


class FakePipeline:
    """OpenVINO GenAI's continuous batching: a request lives as long as its handle does."""

    made: ClassVar[list[Any]] = []

    def __init__(self, path: str, scheduler: SimpleNamespace, device: str, options: dict[str, Any]) -> None:
        assert scheduler.enable_prefix_caching
        self.options, self.asked, self.steps = options, list[list[int]](), 0
        self.handles: weakref.WeakSet[FakeHandle] = weakref.WeakSet()
        self.short = 0
        FakePipeline.made.append(self)

    def add_request(self, number: int, ids: NDArray[np.int64], config: SimpleNamespace) -> "FakeHandle":
        assert config.ignore_eos
        self.asked.append(ids[0].tolist())
        handle = FakeHandle(config.max_new_tokens - self.short)
        self.handles.add(handle)
        return handle

    def has_non_finished_requests(self) -> bool:
        return any(handle.written < handle.wanted for handle in self.handles)

    def step(self) -> None:
        self.steps += 1
        for handle in self.handles:
            handle.written += handle.written < handle.wanted


class FakeHandle:
    """What a request has written."""

    def __init__(self, wanted: int) -> None:
        self.wanted, self.written = wanted, 0

    def can_read(self) -> bool:
        return self.written > 0

    def read_all(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(generated_ids=[7] * self.written)]

    def get_status(self) -> str:
        return "FINISHED"


@pytest.fixture
def openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    genai, plain = ModuleType("openvino_genai"), ModuleType("openvino")
    vars(genai).update(
        ContinuousBatchingPipeline=FakePipeline, SchedulerConfig=SimpleNamespace,
        GenerationConfig=SimpleNamespace, __version__="0",
    )  # fmt: skip
    vars(plain).update(Tensor=lambda array: array, __version__="0")
    monkeypatch.setitem(sys.modules, "openvino_genai", genai)
    monkeypatch.setitem(sys.modules, "openvino", plain)
    monkeypatch.setattr(FakePipeline, "made", [])


@pytest.mark.usefixtures("openvino")
def test_openvino_finishes_what_it_is_asked_and_is_never_asked_the_same_twice() -> None:
    peer = _open("openvino_genai", prompt_lookup=False)
    pipeline = FakePipeline.made[0]
    assert worker.timed(peer, "eight", "together")["detail"] == {"passes": 6, "tokens": 48}
    assert worker.timed(peer, "eight", "one by one")["detail"] == {"passes": 48, "tokens": 48}
    before = pipeline.steps
    got = worker.timed(peer, "token", "step")
    assert (got["units"], got["detail"]) == (3, {})
    assert pipeline.steps - before == 1 + 3  # the question's first token is not timed
    for step in ("prefill", "prefill", "second", "second"):
        worker.timed(peer, step, "")
    assert len({tuple(ids[:PREFIX]) for ids in pipeline.asked}) == 1 + 2
    asked = [tuple(ids) for ids in pipeline.asked if len(ids) > PREFIX]
    assert len(set(asked)) == len(asked) - 1  # the prefix is warmed with a question that is not timed
    pipeline.short = 1
    with pytest.raises(RuntimeError, match="wrote 5 tokens of 6, status FINISHED"):
        worker.timed(peer, "one", "prefix cached")


@pytest.mark.usefixtures("openvino")
def test_openvinos_lookup_stands_aside() -> None:
    peer = _open("openvino_genai", prompt_lookup=True)
    assert FakePipeline.made[0].options["prompt_lookup"]
    assert set(peer.ways) == {"one", "eight"}
    assert "aside" in worker.timed(peer, "one", "prefix cached")["detail"]


def test_transformers_does_every_step_it_names() -> None:
    pytest.importorskip("transformers")
    shape = Shape("small", 1, 1, 64, 2, 1, 96, 640, 1e-6, 1e6, 1024)
    peer = _open("transformers", shape=asdict(shape), dtype="float32")
    for step, ways in peer.ways.items():
        for way in ways:
            assert worker.timed(peer, step, way)["wall_s"] > 0
            if step != "prefill":
                assert peer.cache.get_seq_length() >= PREFIX
    worker.timed(peer, "token", "one row")
    assert peer.cache.get_seq_length() == PREFIX + 3
