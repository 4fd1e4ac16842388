"""llama.cpp as a peer, through llama-cpp-python's plain bindings of its C interface.

Contract  Stands alone: run by worker.py in llama-cpp-python's interpreter. Its best use is what is timed: the
          prefix stays in the cache and is rewound; eight questions run as eight sequences that share it (one
          unified cache, nothing copied); drafts come from the package's own prompt lookup. Words are
          replayed, as in our own adapter.
Elsewhere the interface: worker.py; the file: gguf_file.py.
"""

import ctypes
from typing import Any

BATCH = 512
ERROR = 4  # of ggml's log levels
ROOM = 1024
LOOKUP_TOKENS, LOOKUP_NGRAM = 2, 2  # the package advises 2 tokens on a processor (default 10)


WAYS: dict[str, list[str]] = {
    "prefill": ["batches of 512"],
    "token": ["one row"],
    "second": ["prefix rewound"],
    "one": ["plain"],
    "eight": ["together", "one by one"],
}


class Peer:
    """A model and a context."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.ways = dict(WAYS)
        import llama_cpp  # noqa: PLC0415

        self.api, self.work = llama_cpp, settings["work"]
        self.said, self._hear = "", llama_cpp.llama_log_callback(self._heard)
        llama_cpp.llama_log_set(self._hear, ctypes.c_void_p(0))
        if self.work["replay"]:
            lookup = "one by one, prompt lookup"
            self.ways = self.ways | {
                "one": ["plain", "prompt lookup"],
                "eight": ["together", "one by one", lookup],
            }
        self.detail: dict[str, Any] = {}
        llama_cpp.llama_backend_init()
        options = llama_cpp.llama_model_default_params()
        options.n_gpu_layers = 0
        load = getattr(llama_cpp, "llama_model_load_from_file", None) or llama_cpp.llama_load_model_from_file
        self.model = load(settings["path"].encode(), options)
        if not self.model:
            raise RuntimeError(f"{settings['path']}: llama.cpp cannot load it: {self.said}")
        self.context = self._open_context(settings["threads"])
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.batch = llama_cpp.llama_batch_init(BATCH, 0, len(self.work["questions"]) + 1)
        self.length = 0
        self.vocab = settings["shape"]["vocab"]

    def _open_context(self, threads: int) -> Any:
        options = self.api.llama_context_default_params()
        questions = self.work["questions"]
        options.n_ctx = (
            len(self.work["prefix"]) + ROOM + sum(map(len, questions)) + sum(map(len, self.work["answers"]))
        )
        options.n_batch = options.n_ubatch = BATCH
        options.n_threads = options.n_threads_batch = threads
        options.n_seq_max = len(questions) + 1
        options.kv_unified = True
        init = getattr(self.api, "llama_init_from_model", None) or self.api.llama_new_context_with_model
        context = init(self.model, options)
        if not context:
            raise RuntimeError(f"llama.cpp cannot make a context: {self.said}")
        return context

    def _heard(self, level: int, text: bytes, _: Any) -> None:
        """Keep the last words of an error, which say why a call gave nothing."""
        words = text.decode("utf-8", "replace").strip()
        if level == ERROR and words:
            self.said = words

    def versions(self) -> dict[str, str]:
        """What runs, and with which processor features."""
        features = self.api.llama_print_system_info().decode()
        return {"llama-cpp-python": self.api.__version__, "features": features}

    def prepare(self, step: str, way: str) -> None:
        """The prefix in sequence 0, nothing else."""
        if step == "prefill":
            self.api.llama_memory_clear(self.memory, True)
            self.length = 0
            return
        prefix = self.work["prefix"]
        if self.length < len(prefix):
            self.api.llama_memory_clear(self.memory, True)
            self.length = 0
            self._read(prefix)
        self._rewind(len(prefix))

    def run(self, step: str, way: str) -> int:
        """The step; returns how many units were done."""
        work, self.detail = self.work, {}
        if step == "prefill":
            self._read(work["prefix"])
            return len(work["prefix"])
        if step == "token":
            token = 0
            for _ in range(work["tokens"]):
                token = self._read([token])
            return int(work["tokens"])
        if step == "second":
            self._read(work["questions"][1])
            return 1
        if way == "together":
            return self._together()
        count, passes = (1 if step == "one" else len(work["questions"])), 0
        for index in range(count):
            self._rewind(len(work["prefix"]))
            passes += self._answer(index, "lookup" in way)
        tokens = count * len(work["answers"][0])
        self.detail = {"passes": passes, "tokens": tokens}
        return tokens

    def _rewind(self, length: int) -> None:
        for sequence in range(1, len(self.work["questions"]) + 1):
            self.api.llama_memory_seq_rm(self.memory, sequence, -1, -1)
        if not self.api.llama_memory_seq_rm(self.memory, 0, length, -1):
            raise RuntimeError(f"llama.cpp cannot rewind to {length}")
        self.length = length

    def _fill(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """Put (token, position, sequence, wants logits) rows into the batch and compute them."""
        batch = self.batch
        batch.n_tokens = len(rows)
        for at, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[at], batch.pos[at], batch.n_seq_id[at] = token, position, 1
            batch.seq_id[at][0], batch.logits[at] = sequence, wanted
        status = self.api.llama_decode(self.context, batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}: {self.said}")

    def _best(self, row: int) -> int:
        import numpy as np  # noqa: PLC0415

        logits = self.api.llama_get_logits_ith(self.context, row)
        return int(
            np.ctypeslib.as_array(ctypes.cast(logits, ctypes.POINTER(ctypes.c_float)), (self.vocab,)).argmax()
        )

    def _read(self, ids: list[int], every: bool = False) -> int:
        """Sequence 0 goes on with `ids`; the token that follows the last one."""
        for start in range(0, len(ids), BATCH):
            part = ids[start : start + BATCH]
            last = start + len(part) == len(ids)
            rows = [
                (token, self.length + at, 0, every or (last and at == len(part) - 1))
                for at, token in enumerate(part)
            ]
            self._fill(rows)
            self.length += len(part)
        return self._best(len(part) - 1)

    def _answer(self, index: int, lookup: bool) -> int:
        """Read a question and write its answer, replayed; returns passes."""
        answer, known = self.work["answers"][index], self.work["prefix"] + self.work["questions"][index]
        self._read(self.work["questions"][index])
        written, passes, draft = 1, 1, self._lookup() if lookup else None
        while written < len(answer):
            guess: list[int] = []
            if draft is not None:
                import numpy as np  # noqa: PLC0415

                found = draft(np.array(known + answer[:written], dtype=np.intc))
                guess = [int(token) for token in found][: len(answer) - written - 1]
            before = self.length
            self._read([answer[written - 1], *guess], every=True)
            held = 0
            while held < len(guess) and guess[held] == answer[written + held]:
                held += 1
            written, passes = written + held + 1, passes + 1
            if held < len(guess):
                self.api.llama_memory_seq_rm(self.memory, 0, before + 1 + held, -1)
                self.length = before + 1 + held
        return passes

    def _lookup(self) -> Any:
        from llama_cpp.llama_speculative import LlamaPromptLookupDecoding  # noqa: PLC0415

        return LlamaPromptLookupDecoding(max_ngram_size=LOOKUP_NGRAM, num_pred_tokens=LOOKUP_TOKENS)

    def _together(self) -> int:
        """Eight sequences over one prefix: a batch of one token each."""
        questions, answers, prefix = self.work["questions"], self.work["answers"], len(self.work["prefix"])
        rows: list[tuple[int, int, int, bool]] = []
        for number, question in enumerate(questions, 1):
            self.api.llama_memory_seq_cp(self.memory, 0, number, -1, -1)
            rows += [
                (token, prefix + at, number, at == len(question) - 1) for at, token in enumerate(question)
            ]
        for start in range(0, len(rows), BATCH):
            self._fill(rows[start : start + BATCH])
        passes = 1
        for step in range(len(answers[0]) - 1):
            self._fill(
                [
                    (answers[n][step], prefix + len(question) + step, n + 1, True)
                    for n, question in enumerate(questions)
                ]
            )
            for row in range(len(questions)):
                self._best(row)
            passes += 1
        tokens = len(questions) * len(answers[0])
        self.detail = {"passes": passes, "tokens": tokens}
        return tokens


def open_peer(settings: dict[str, Any]) -> Peer:
    """As worker.py wants it."""
    return Peer(settings)
