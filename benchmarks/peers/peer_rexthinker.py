"""This runtime as a peer: the decoder, generation, drafting and decoding together, as a scene uses them.

Contract  Nothing here computes: passes are runtime/decoder.py's, answers generate.py's and together.py's. The
          words are replayed: what is chosen comes from the work's traces, so that drafts meet real text and
          every pass has the width it would have. Each eighth of eight answers may draft from its siblings
          only where they are written one after the other. Where answers are decoded in passes of two rows
          or more (generate.py) those are compared, and a pass of one row is told aside.
Elsewhere the interface: worker.py; what a scene does: runtime/answering.py.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from rexthinker_edge.runtime.decoder import Decoder
from rexthinker_edge.runtime.decoder_geometry import DecoderGeometry
from rexthinker_edge.runtime.draft import Drafter, Drafting, SceneDrafts
from rexthinker_edge.runtime.draft_table import Table
from rexthinker_edge.runtime.embeddings import Embeddings
from rexthinker_edge.runtime.generate import Choose, Generation, Limits
from rexthinker_edge.runtime.kv_cache import KVCache
from rexthinker_edge.runtime.positions import text_positions
from rexthinker_edge.runtime.together import Question, Together
from rexthinker_edge.runtime.tokens import TextTokenizer

ONE_ROW, ASIDE = "one row, as answers are decoded", "one row"
ROOM = 1024  # tokens behind the prompt: eight answers lie beside each other


class Peer:
    """A decoder and one cache."""

    def __init__(self, settings: dict[str, Any]) -> None:
        place, self.work = Path(settings["path"]), settings["work"]
        values = json.loads((place / "geometry.json").read_text("utf-8"))
        values["mrope_section"] = tuple(values["mrope_section"])
        geometry = DecoderGeometry(**values)
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = settings["threads"], 1
        self.decoder = Decoder(
            place / "decoder.onnx", Embeddings(place / "embeddings.bin", geometry), geometry, options
        )
        self.cache = self.decoder.new_cache(len(self.work["prefix"]) + ROOM)
        self.ways = {
            "prefill": ["chunks of 512"],
            "token": [ONE_ROW] if self.decoder.rows_alike else ["two rows, as answers are decoded", ASIDE],
            "second": ["prefix rewound"],
            "one": ["plain"],
            "eight": ["together", "one by one"],
        }
        self._tokenizer: TextTokenizer | None = None
        self._drafting: Drafting | None = None
        self.detail: dict[str, Any] = {}
        if self.work["replay"]:
            self._tokenizer = TextTokenizer(Path(settings["tokenizer"]))
            self._drafting = Drafting(Table(place / "draft.bin", geometry.vocab))
            for step, ways in self.ways.items():
                if step in ("one", "eight"):
                    ways += [f"{way}, drafted" for way in ways]

    def versions(self) -> dict[str, str]:
        """What runs."""
        return {"onnxruntime": ort.__version__, "numpy": np.__version__}

    def prepare(self, step: str, way: str) -> None:
        """Everything that the step takes for granted: the prefix kept, and the costs of passes measured."""
        prefix = self.work["prefix"]
        if step == "prefill":
            self.cache.rewind(0)
            return
        if self.cache.length < len(prefix):
            self.cache.rewind(0)
            self._read(prefix)
        self.cache.rewind(len(prefix))
        if self._drafting is not None and "drafted" in way and self._drafting.costs.exact is None:
            self._one(0, self._scene())

    def run(self, step: str, way: str) -> int:
        """The step; returns how many units were done."""
        self.detail = {}
        if step == "prefill":
            self._read(self.work["prefix"])
            return len(self.work["prefix"])
        if step == "token":
            if way == ASIDE:
                self.detail = {"aside": "answers are not decoded so"}
            return self._tokens(1 if way in (ONE_ROW, ASIDE) else 2)
        if step == "second":
            self._read(self.work["questions"][1])
            return 1
        drafts = self._scene() if "drafted" in way else None
        if way.startswith("together"):
            return self._together(drafts)
        passes = 0
        count = 1 if step == "one" else len(self.work["questions"])
        for index in range(count):
            self.cache.rewind(len(self.work["prefix"]))
            passes += self._one(index, drafts)
        return self._done(count, passes)

    def _done(self, count: int, passes: int) -> int:
        tokens = count * len(self.work["answers"][0])
        self.detail = {"passes": passes, "tokens": tokens}
        if self._drafting is not None:
            self.detail["exact"] = self._drafting.costs.exact
        return tokens

    def _read(self, ids: list[int]) -> NDArray[np.float32]:
        positions = text_positions(self.cache.length, len(ids))
        return self.decoder.run(self.decoder.embed(ids), positions, self.cache)

    def _tokens(self, rows: int) -> int:
        token = 0
        for _ in range(self.work["tokens"]):
            positions = text_positions(self.cache.length, rows)
            embeds = self.decoder.embed([token] * rows)
            logits = self.decoder.run(embeds, positions, self.cache, last_only=False)
            self.cache.rewind(self.cache.length - rows + 1)
            token = int(logits[0].argmax())
        return int(self.work["tokens"])

    def _scene(self) -> SceneDrafts:
        assert self._drafting is not None, "drafting wants a tokenizer"
        assert self._tokenizer is not None
        return self._drafting.scene(self._tokenizer, self.work["category"], self.work["hints"])

    def _limits(self) -> Limits:
        return Limits(frozenset(), len(self.work["answers"][0]))

    def _drafter(self, scene: SceneDrafts, index: int) -> Drafter:
        question = self.work["questions"][index]
        position = len(self.work["prefix"]) + len(question)
        return scene.answer(self.work["expressions"][index], question, self.decoder, self.cache, position)

    def _one(self, index: int, scene: SceneDrafts | None) -> int:
        logits = self._read(self.work["questions"][index])
        drafts = None if scene is None else self._drafter(scene, index)
        after, choose = self.cache.length, replay(self.work["answers"][index])
        generation = Generation(self.decoder, self.cache, logits, after, self._limits(), drafts, choose)
        said = list(generation)
        assert said == self.work["answers"][index], "the replay went astray"
        if scene is not None:
            scene.index.add_all(said)
        return generation.passes

    def _together(self, scene: SceneDrafts | None) -> int:
        prefix = len(self.work["prefix"])
        questions = [
            Question(ids, prefix, None if scene is None else self._drafter(scene, index))
            for index, ids in enumerate(self.work["questions"])
        ]
        together = ReplayTogether(
            self.decoder, self.cache, questions, self._limits(), answers=self.work["answers"]
        )
        while together.step():
            pass
        assert [branch.token_ids for branch in together.branches] == self.work["answers"]
        return self._done(len(questions), together.passes)


def replay(answer: list[int]) -> Choose:
    """Chooses the tokens of `answer`, whatever the logits say."""
    coming = iter(answer)

    def choose(logits: NDArray[np.float32]) -> Iterator[int]:
        for _ in logits:
            yield next(coming)

    return choose


class ReplayTogether(Together):
    """Answers that say what they are told; every pass is computed all the same."""

    def __init__(
        self, decoder: Decoder, cache: KVCache, questions: Iterable[Question], limits: Limits,
        answers: list[list[int]],
    ) -> None:  # fmt: skip
        self._answers, self._questions, self.passes = answers, list(questions), 0
        super().__init__(decoder, cache, self._questions, limits)

    def _read(
        self, ids: list[int], positions: NDArray[np.int64], owners: NDArray[np.int32], rows: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        self.passes += 1
        logits = super()._read(ids, positions, owners, rows)
        for row, at in enumerate(rows):
            question, answer = self._questions[owners[at]], self._answers[owners[at]]
            index = int(positions[0, at]) - question.position - len(question.token_ids) + 1
            if index < len(answer):
                logits[row, answer[index]] = 2 * np.abs(logits[row]).max() + 1  # far from a tie
        return logits


def open_peer(settings: dict[str, Any]) -> Peer:
    """As worker.py wants it."""
    return Peer(settings)
