"""OpenVINO GenAI as a peer: continuous batching with prefix caching, with or without prompt lookup.

Contract  Stands alone: run by worker.py in an interpreter with openvino-genai. It reads the same GGUF file as
          llama.cpp, converted once by itself. It chooses its own tokens; what its prompt lookup finds in them
          says nothing about a trained model's, so lookup is a peer of its own (`prompt_lookup`) whose times
          stand aside. The cache cannot be emptied: a cold prefix is one that begins with another token, and
          a question that was not asked before likewise. A request whose
          handle is let go is dropped without a word, so handles are kept and what they wrote is counted.
Elsewhere the interface: worker.py.
"""

from typing import Any

CACHE_GB = 1
UNHEARD = 1000  # first of the token ids that questions begin with
ANSWERS = ("one", "eight")  # where lookup makes a difference


WAYS: dict[str, list[str]] = {
    "prefill": ["add_request and step"],
    "token": ["step"],
    "second": ["prefix cached"],
    "one": ["prefix cached"],
    "eight": ["together", "one by one"],
}


class Peer:
    """A pipeline and what it has been asked."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.ways = {
            step: ways for step, ways in WAYS.items() if step in ANSWERS or not settings["prompt_lookup"]
        }
        import openvino_genai  # noqa: PLC0415

        self.api, self.work, self.lookup = openvino_genai, settings["work"], settings["prompt_lookup"]
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching, scheduler.cache_size = True, CACHE_GB
        scheduler.max_num_batched_tokens = 512
        options: dict[str, Any] = {"INFERENCE_NUM_THREADS": settings["threads"]}
        if self.lookup:
            options["prompt_lookup"] = True
        self.pipeline = openvino_genai.ContinuousBatchingPipeline(settings["path"], scheduler, "CPU", options)
        self.asked, self.cold, self.warm = 0, 0, False
        self.running: list[tuple[Any, int]] = []  # handles, and how many tokens were asked of them
        self.detail: dict[str, Any] = {}

    def versions(self) -> dict[str, str]:
        """What runs."""
        import openvino  # noqa: PLC0415

        return {"openvino-genai": self.api.__version__, "openvino": openvino.__version__}

    def prepare(self, step: str, way: str) -> None:
        """Everything that the step takes for granted: nothing running, the prefix in the cache."""
        self._finish()
        if step == "prefill":
            return
        if not self.warm:
            self._ask(self.work["prefix"] + self.work["questions"][0], 1)
            self._finish()
            self.warm = True
        if step == "token":
            self._ask(self.work["prefix"] + self.work["questions"][0], self.work["tokens"] + 1)
            while not self.running[0][0].can_read():
                self.pipeline.step()

    def run(self, step: str, way: str) -> int:
        """The step; returns how many units were done."""
        work, steps, self.detail = self.work, 0, {}
        if step == "prefill":
            self.cold += 1
            self._ask([self.cold, *work["prefix"][1:]], 1)
            self._finish()
            return len(work["prefix"])
        if step == "token":
            self._finish()
            return int(work["tokens"])
        if step == "second":
            self._ask(work["prefix"] + self._unheard(1), 1)
            self._finish()
            return 1
        count, answer = (1 if step == "one" else len(work["questions"])), len(work["answers"][0])
        for index in range(count):
            self._ask(work["prefix"] + self._unheard(index), answer)
            if way != "together":
                steps += self._finish()
        steps += self._finish()
        self.detail = {"passes": steps, "tokens": count * answer}
        if self.lookup:
            self.detail["aside"] = "its drafts met the loops of random weights"
        return count * answer

    def _unheard(self, index: int) -> list[int]:
        """A question of that length that is in no cache."""
        return [UNHEARD + self.asked, *self.work["questions"][index][1:]]

    def _ask(self, ids: list[int], new_tokens: int) -> None:
        import numpy as np  # noqa: PLC0415
        import openvino  # noqa: PLC0415

        config = self.api.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = new_tokens, True, False
        if self.lookup:
            config.num_assistant_tokens, config.max_ngram_size = 5, 3
        self.asked += 1
        handle = self.pipeline.add_request(self.asked, openvino.Tensor(np.array([ids], np.int64)), config)
        self.running.append((handle, new_tokens))

    def _finish(self) -> int:
        """Step until nothing is left to do; how many steps that took.

        Raises:
            RuntimeError: a request wrote another number of tokens than it was asked for.
        """
        steps = 0
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
            steps += 1
        running, self.running = self.running, []
        for handle, wanted in running:
            written = sum(len(output.generated_ids) for output in handle.read_all())
            if written != wanted:
                raise RuntimeError(f"wrote {written} tokens of {wanted}, status {handle.get_status()}")
        return steps


def open_peer(settings: dict[str, Any]) -> Peer:
    """As worker.py wants it."""
    return Peer(settings)
