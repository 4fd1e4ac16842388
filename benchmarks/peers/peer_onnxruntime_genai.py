"""onnxruntime-genai as a peer, with the graph that its own builder made.

Contract  Stands alone: run by worker.py in an interpreter with onnxruntime-genai. The generator is rewound to
          the prefix for the next question. It chooses its own tokens: they cannot be told, and cost the same.
          Threads are set in the graph's genai_config.json, so models.py's copy is overlaid, not changed.
Elsewhere the interface: worker.py.
"""

import json
from typing import Any

ROOM = 1024


WAYS: dict[str, list[str]] = {
    "prefill": ["append_tokens"],
    "token": ["generate_next_token"],
    "second": ["rewind_to"],
    "one": ["greedy"],
    "eight": ["one by one", "batch, the whole prompt eight times"],
}


class Peer:
    """A model and a generator."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.ways = dict(WAYS)
        import onnxruntime_genai  # noqa: PLC0415

        self.api, self.work = onnxruntime_genai, settings["work"]
        config = onnxruntime_genai.Config(settings["path"])
        options = {"intra_op_num_threads": settings["threads"], "inter_op_num_threads": 1}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self.model = onnxruntime_genai.Model(config)
        self.generator: Any = None
        self.batch = 0

    def versions(self) -> dict[str, str]:
        """What runs."""
        import onnxruntime  # noqa: PLC0415

        return {"onnxruntime-genai": self.api.__version__, "onnxruntime": onnxruntime.__version__}

    def prepare(self, step: str, way: str) -> None:
        """Everything that the step takes for granted."""
        if step == "prefill" or way.startswith("batch"):
            self.generator = self._fresh(8 if way.startswith("batch") else 1)
            return
        prefix = self.work["prefix"]
        if self.batch != 1 or self.generator.token_count() < len(prefix):
            self.generator = self._fresh(1)
            self._append(prefix)
        self.generator.rewind_to(len(prefix))
        if step == "token":
            self._append(self.work["questions"][0])
            self._decode(1)  # computes nothing: it takes the token whose logits the question's pass left

    def run(self, step: str, way: str) -> int:
        """The step; returns how many units were done."""
        work = self.work
        if step == "prefill":
            self._append(work["prefix"])
            self.generator.generate_next_token()
            return len(work["prefix"])
        if step == "token":
            return self._decode(work["tokens"])
        if step == "second":
            self._append(work["questions"][1])
            self.generator.generate_next_token()
            return 1
        if way.startswith("batch"):
            return self._batch()
        count = 1 if step == "one" else len(work["questions"])
        for question in work["questions"][:count]:
            self.generator.rewind_to(len(work["prefix"]))
            self._append(question)
            self._decode(len(work["answers"][0]))
        return count * len(work["answers"][0])

    def _fresh(self, batch: int) -> Any:
        self.batch, options = batch, self.api.GeneratorParams(self.model)
        length = len(self.work["prefix"]) + ROOM
        options.set_search_options(max_length=length, batch_size=batch, do_sample=False)
        return self.api.Generator(self.model, options)

    def _append(self, ids: list[int]) -> None:
        import numpy as np  # noqa: PLC0415

        self.generator.append_tokens(np.array(ids, np.int32))

    def _decode(self, count: int) -> int:
        for _ in range(count):
            self.generator.generate_next_token()
        return count

    def _batch(self) -> int:
        import numpy as np  # noqa: PLC0415

        questions, answer = self.work["questions"], len(self.work["answers"][0])
        shortest = min(len(question) for question in questions)  # one length: there is no other padding
        rows = [self.work["prefix"] + question[:shortest] for question in questions]
        self.generator.append_tokens(np.array(rows, np.int32))
        self._decode(answer)
        return len(questions) * answer


def open_peer(settings: dict[str, Any]) -> Peer:
    """As worker.py wants it."""
    return Peer(settings)
