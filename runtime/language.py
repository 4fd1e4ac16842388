"""The side of a bundle that reads and writes words: what all scenes of a thinker share.

Elsewhere who opens it: parts.py; who uses it: looking.py, asking.py, answering.py.
"""

from dataclasses import dataclass, field

from rexthinker_edge.runtime.decoder import Decoder
from rexthinker_edge.runtime.draft import Drafting
from rexthinker_edge.runtime.manifest import PromptSettings, TokenIds
from rexthinker_edge.runtime.pace import Pace
from rexthinker_edge.runtime.result import BundleInfo
from rexthinker_edge.runtime.risk import RiskCard
from rexthinker_edge.runtime.together import EVERY_TOKEN
from rexthinker_edge.runtime.tokens import TextTokenizer


@dataclass(frozen=True)
class Language:
    """What turns an expression into an answer; shared by all scenes of a thinker."""

    tokenizer: TextTokenizer
    decoder: Decoder
    prompt: PromptSettings
    tokens: TokenIds
    bundle: BundleInfo
    drafting: Drafting | None = None  # None never drafts
    risk: RiskCard | None = None  # None: no answer can be withheld for its risk
    near_tie: float = EVERY_TOKEN  # of answers decoded together; see together.py
    pace: Pace = field(default_factory=Pace)
