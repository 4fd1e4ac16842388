"""How one answer is decoded: greedily or by sampling, with drafts or without.

Contract  Drafting never changes a token, neither of a greedy answer nor of one sampled with a seed; so it is
          a matter of time alone, and `drafting=None` leaves it to the loaded bundle.
Elsewhere the choice of tokens: generate.py; drafts: draft.py.
"""

import math
from dataclasses import dataclass

from rexthinker_edge.runtime.errors import OptionError
from rexthinker_edge.runtime.generate import Choose, greedy, sampling

MOST_SEED = 2**64 - 1


@dataclass(frozen=True)
class Manner:
    """How one answer is decoded.

    Attributes:
        drafting: whether tokens are foreseen and verified several at once; None: as the bundle was loaded.
        temperature: 0 takes the largest logit; above, tokens are drawn from softmax(logits / temperature).
        seed: of the drawing; None draws differently every time.
    """

    drafting: bool | None = None
    temperature: float = 0.0
    seed: int | None = None

    def check(self) -> None:
        """Raise OptionError for what cannot be honoured."""
        if self.drafting is not None and not isinstance(self.drafting, bool):
            raise OptionError(
                f"drafting: {self.drafting!r}, True or False is needed. Leave it out for what load was told."
            )
        number = isinstance(self.temperature, int | float) and not isinstance(self.temperature, bool)
        if not number or not math.isfinite(self.temperature) or self.temperature < 0:
            raise OptionError(
                f"temperature: {self.temperature!r}, a number from 0 is needed. "
                "Leave it out for the likeliest answer."
            )
        if self.seed is None:
            return
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed <= MOST_SEED:
            raise OptionError(
                f"seed: {self.seed!r}, a whole number from 0 to {MOST_SEED:,} is needed. "
                "Leave it out to draw differently every time."
            )
        if self.temperature == 0:
            raise OptionError(
                f"seed: {self.seed}, but nothing is drawn at temperature 0. "
                "Leave it out, or give a temperature above 0."
            )

    def choose(self) -> Choose:
        """The choice of tokens; a new one for every answer."""
        return sampling(self.temperature, self.seed) if self.temperature else greedy
