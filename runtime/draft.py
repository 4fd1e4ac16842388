"""What may come next: several sources of drafts, and how much of one is worth a try.

Layout    `Drafting` belongs to a loaded bundle: what passes cost, how often guesses hold, the table of
          habits. `SceneDrafts` belongs to a scene: its candidates, its prompt, the answers given on
          it. `Drafter` follows one answer: it asks every source, takes the chain that promises most, and
          cuts it where another token would cost more than it is likely to win.
Contract  A draft costs or saves time and never changes a token: generate.py decides. Every source is judged
          by what then came, also when its draft was not taken.
Elsewhere sources: draft_grammar.py, draft_lookup.py, draft_table.py; costs: draft_cost.py.
Source    docs/drafting.md
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rexthinker_edge.runtime import draft_grammar, draft_lookup
from rexthinker_edge.runtime.deadline import NEVER, Deadline
from rexthinker_edge.runtime.decoder import Decoder
from rexthinker_edge.runtime.draft_cost import Acceptance, PassCosts, paying
from rexthinker_edge.runtime.draft_form import Ground, make_ground
from rexthinker_edge.runtime.draft_grammar import Grammar
from rexthinker_edge.runtime.draft_lookup import Index, Lookup
from rexthinker_edge.runtime.draft_table import Table
from rexthinker_edge.runtime.kv_cache import KVCache
from rexthinker_edge.runtime.prompt import hint
from rexthinker_edge.runtime.tokens import TextTokenizer

_SURENESS_STEPS = 16
_GRAMMAR = 0
_LOOKUP = len(draft_grammar.BELIEFS)
_TABLE = _LOOKUP + draft_lookup.KINDS
_BELIEFS = (
    *draft_grammar.BELIEFS,
    *draft_lookup.BELIEFS,
    *((step + 0.5) / _SURENESS_STEPS for step in range(_SURENESS_STEPS)),
)
_LEAST_SURE = 24  # of 255: less is not worth walking on

Chain = tuple[list[int], list[int]]  # tokens, and the kind of guess that each is


class Source(Protocol):
    """One way of foreseeing an answer."""

    def push(self, token: int) -> None:
        """One more token of the answer is known."""

    def propose(self, most: int) -> Chain:
        """Up to `most` tokens that may come next, with the kind of each; empty when it has no idea."""


class Habits:
    """The table as a source."""

    def __init__(self, table: Table) -> None:
        self._table, self._state = table, table.begin()

    def push(self, token: int) -> None:
        """One more token of the answer is known."""
        self._state = self._table.step(self._state, token)

    def propose(self, most: int) -> Chain:
        """What usually follows."""
        return self._from(self._state, most)

    def after(self, tokens: Sequence[int], most: int) -> Chain:
        """What usually follows when these come first."""
        state = self._state
        for token in tokens:
            state = self._table.step(state, token)
        return self._from(state, most)

    def _from(self, state: int, most: int) -> Chain:
        tokens, sure = self._table.walk(state, most, _LEAST_SURE)
        return tokens, [value >> 4 for value in sure]


class Drafting:
    """What all answers of a loaded bundle share. Threads may share it: it holds only measurements."""

    def __init__(self, table: Table | None = None, on: bool = True) -> None:
        """`on`: whether answers are drafted that do not say."""
        self.table, self.on = table, on
        self.costs = PassCosts()
        self.acceptance = Acceptance(_BELIEFS)
        self.extra_ms = 0.0

    def scene(self, tokenizer: TextTokenizer, category: str, hints: Sequence[Sequence[int]]) -> "SceneDrafts":
        """What the answers of one scene share; `hints` (N, 4) are the candidates in resized pixels."""
        ground = make_ground(category, hints, tokenizer.encode_plain, tokenizer.token_bytes)
        index = Index()
        index.add_all(tokenizer.encode_plain(hint(category, hints) + "\n"))
        return SceneDrafts(self, ground, index)

    def describe(self) -> dict[str, Any]:
        """What is known so far; plain values. `exact` is None until an answer was drafted."""
        costs = self.costs
        return {
            "on": self.on,
            "table": None if self.table is None else {"states": self.table.states},
            "exact": costs.exact,
            "pass_ms": {
                str(w): round(costs.costs[w], 3)
                for w in (1, 2, 4, 8, 16, 32)
                if costs.least <= w < len(costs.costs)
            },
        }


@dataclass
class SceneDrafts:
    """What the answers of one scene share; see `Drafting.scene`."""

    drafting: Drafting
    ground: Ground
    index: Index

    def answer(
        self, expression: str, question_ids: Sequence[int], decoder: Decoder, cache: KVCache, position: int,
        deadline: Deadline = NEVER,
    ) -> "Drafter":  # fmt: skip
        """A drafter for one answer. The first of all measures what passes cost, behind its first token.

        Args:
            question_ids: the prompt's suffix.
            cache: of the answer; holds the whole prompt.
            position: M-RoPE position of the answer's first token.
            deadline: of the answer.
        """
        self.index.add_all(question_ids)
        return Drafter(self, expression, decoder, cache, position, deadline)


@dataclass
class Drafter:
    """Foresees one answer; a `generate.Drafts`.

    Attributes:
        spent_ms: time of its own, all calls together.
    """

    scene: SceneDrafts
    expression: str
    decoder: Decoder
    cache: KVCache
    position: int  # of the token chosen last, once there is one
    deadline: Deadline = NEVER
    spent_ms: float = 0.0
    _offers: list[Chain] = field(default_factory=list)
    _chosen: int = 0

    def __post_init__(self) -> None:
        table = self.scene.drafting.table
        self._habits = None if table is None else Habits(table)
        self._sources: list[tuple[Source, int]] = [
            (Grammar(self.scene.ground, self.expression), _GRAMMAR),
            (Lookup(self.scene.index), _LOOKUP),
        ]
        if self._habits is not None:
            self._sources.append((self._habits, _TABLE))

    def propose(self, most: int, beside: int = 0) -> list[int]:
        """The chain that promises most, cut where it stops paying.

        Args:
            beside: rows of other answers in the same pass; they make a token cheap and a draft dear.

        Raises:
            DeadlinePassed: while costs were measured for the first time; that is done anew next time.
        """
        shared = self.scene.drafting
        if shared.costs.wants_probe:
            shared.costs.probe(self.decoder, self.cache, self.position, self.deadline)
        if not shared.costs.exact:
            return []
        begun = time.thread_time()
        most = min(most, shared.costs.widest - 1 - beside)
        self._offers = []
        if most < 1:
            return []
        rates = shared.acceptance
        best: Chain = ([], [])
        self._offers, promise = [], 0.0
        for source, base in self._sources:
            tokens, kinds = source.propose(most)
            if not tokens:
                continue
            offer = (tokens, [base + kind for kind in kinds])
            self._offers.append(offer)
            expected = rates.expected(offer[1])
            if expected > promise:
                best, promise = offer, expected
        tokens, kinds = best
        if self._habits is not None and tokens and len(tokens) < most:
            more, sure = self._habits.after(tokens, most - len(tokens))
            tokens, kinds = tokens + more, kinds + [_TABLE + kind for kind in sure]
        costs = shared.costs
        tried = 0 if beside else costs.explore(len(tokens) + 1)
        count = tried - 1 if tried else paying(kinds, rates.rates, costs.costs, shared.extra_ms, beside)
        self.spent_ms += (time.thread_time() - begun) * 1000
        return tokens[:count]

    def chosen(self, tokens: Sequence[int]) -> None:
        """These tokens were chosen: learn who foresaw them, and follow."""
        begun = time.thread_time()
        self.position += len(tokens) - (self._chosen == 0)
        self._chosen += len(tokens)
        acceptance = self.scene.drafting.acceptance
        for offered, kinds in self._offers:
            for token, kind, came in zip(offered, kinds, tokens, strict=False):
                acceptance.learn(kind, token == came)
                if token != came:
                    break
        for source, _ in self._sources:
            for token in tokens:
                source.push(token)
        self.spent_ms += (time.thread_time() - begun) * 1000

    def measured(self, tokens: int, ms: float) -> None:
        """A pass over so many tokens took so long."""
        self.scene.drafting.costs.learn(tokens, ms)
