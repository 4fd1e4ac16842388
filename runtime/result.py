"""What one question gives back, in Python and as JSON.

Layout    JSON schema `rexthinker-edge/result/1`, see `Result.to_json`. Boxes are (x0, y0, x1, y1) in pixels
          of the upright original; candidates count from 0, so that `candidates[i].index == i`.
Contract  `boxes` is empty unless `status` is FOUND, and then holds candidates' own boxes, unrounded.
          An answer withheld because it was not sure enough has the status UNGROUNDED and an `abstention`.
Elsewhere how they come about: answering.py; statuses: answer.py; verdicts: trace.py;
          confidence: confidence.py; what a thought rests on: explain.py.
Source    docs/sources.md#result
"""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rexthinker_edge.runtime.answer import Status
from rexthinker_edge.runtime.strict_json import to_json
from rexthinker_edge.runtime.trace import Verdict

if TYPE_CHECKING:
    from rexthinker_edge.runtime.explain import Explanation
    from rexthinker_edge.runtime.image import Source

SCHEMA = "rexthinker-edge/result/1"
BoxRow = list[float]


@dataclass(frozen=True)
class ImageInfo:
    """Which picture: `path` as the caller wrote it (None from memory), upright size, pixel digest."""

    path: str | None
    width: int
    height: int
    sha256: str


@dataclass(frozen=True)
class Candidate:
    """One thing the detector, or the caller, proposed."""

    index: int
    box: BoxRow
    score: float | None  # None for a caller's own box
    verdict: Verdict = Verdict.UNKNOWN


@dataclass(frozen=True)
class Step:
    """One section of the thought: what was checked, and on which candidates (by index)."""

    title: str
    text: str
    candidates: tuple[int, ...]
    verdicts: tuple[Verdict, ...]  # one per candidate of this step; not in the JSON
    confidences: tuple[float | None, ...] = ()  # of each of `verdicts`; not in the JSON


@dataclass(frozen=True)
class Tokens:
    """How much the language model read and wrote.

    `prompt` counts prefix and suffix. `reused` counts those of them whose KV was not recomputed for this
    result: the whole prefix for every expression but the scene's first; for the first, what `look` found kept
    from other scenes, such as the same picture under another category.
    `passes` counts decoder passes that chose tokens: generated / passes is what drafting won.
    """

    prompt: int = 0
    reused: int = 0
    generated: int = 0
    passes: int = 0


@dataclass(frozen=True)
class Milliseconds:
    """Where the time went. What a scene's expressions share is in its first result only, 0 in later ones.

    `vision` is what it took beyond the detector where both ran at once. Of expressions decoded together each
    tells the time until its own end.
    """

    image: float = 0.0
    detect: float = 0.0
    vision: float = 0.0
    prefill: float = 0.0
    generate: float = 0.0
    total: float = 0.0


@dataclass(frozen=True)
class BundleInfo:
    """Which bundle answered."""

    name: str
    digest: str


@dataclass(frozen=True)
class CandidateVerdict:
    """What the thought ends with about one candidate, and how sure of it the model was, from 0 to 1.

    `confidence` is None where the thought gives no mark.
    """

    candidate: int
    verdict: Verdict
    confidence: float | None


@dataclass(frozen=True)
class Abstention:
    """Why an answer was withheld, and what it was: for a person to look at, not to act on."""

    reason: str
    max_risk: float  # as asked for
    threshold: float  # the confidence that is not exceeded
    status: Status  # of the answer: FOUND or ABSENT
    boxes: list[BoxRow]


@dataclass(frozen=True)
class Result:
    """The answer to one expression, and what made it.

    Attributes:
        confidence: of the answer, from 0 to 1, also of one withheld; None where there is no answer.
        verdicts: one per candidate.
        abstention: of an answer that was not sure enough for `max_risk`; None for every other.
    """

    image: ImageInfo
    category: str
    expression: str
    status: Status
    boxes: list[BoxRow]
    candidates: tuple[Candidate, ...]
    thought: str
    steps: tuple[Step, ...]
    tokens: Tokens
    ms: Milliseconds
    bundle: BundleInfo
    confidence: float | None = None
    verdicts: tuple[CandidateVerdict, ...] = ()
    abstention: Abstention | None = None
    indices: tuple[int, ...] = ()  # candidates that `boxes` are; not in the JSON
    text: str = ""  # the whole output, for a malformed one; not in the JSON
    token_ids: tuple[int, ...] = ()  # as generated, end token included; not in the JSON
    pass_tokens: tuple[int, ...] = ()  # how many of them each decoder pass gave; not in the JSON

    def to_json(self) -> dict[str, Any]:
        """One JSON object of schema `rexthinker-edge/result/1`."""
        value: dict[str, Any] = {"schema": SCHEMA} | to_json(self)
        for name in ("indices", "text", "token_ids", "pass_tokens"):
            del value[name]
        for step in value["steps"]:
            del step["verdicts"], step["confidences"]
        return value

    def explain(self, picture: "Source | None" = None) -> "Explanation":
        """What the answer rests on: which words of the thought speak of which candidates, with verdicts.

        Args:
            picture: the picture asked about (`scene.picture.pixels_HWC`, its path, …), to be drawn on; boxes
                alone are drawn when None.

        Raises:
            ImageError: it cannot be read, or is another picture.
        """
        from rexthinker_edge.runtime.explain import explain  # noqa: PLC0415 -- it imports this module

        return explain(self, picture)

    def grounded_trace(self, points: bool = False) -> str:
        """The thought with its evidence in it: `<obj> Ball 3 | [x1, y1, x2, y2] </obj>`, 0 to 1000.

        Args:
            points: the boxes' centres, `[x, y]`, instead of the boxes.
        """
        from rexthinker_edge.runtime.explain import grounded_trace  # noqa: PLC0415 -- it imports this module

        return grounded_trace(self, points)


@dataclass(frozen=True)
class CandidatesEvent:
    """First event of a stream: what will be looked at."""

    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class TextEvent:
    """A piece of the model's output, whole characters."""

    text: str


@dataclass(frozen=True)
class DecidedEvent:
    """The thought's summary has judged every candidate: what the answer will name, before it is written.

    The result, which is read from the answer alone, may still differ; it is what counts.
    """

    indices: tuple[int, ...]  # candidates judged to match; empty when none is
    boxes: list[BoxRow]  # theirs


@dataclass(frozen=True)
class ResultEvent:
    """Last event of a stream."""

    result: Result


Event = CandidatesEvent | TextEvent | DecidedEvent | ResultEvent


def with_verdicts(candidates: tuple[Candidate, ...], verdicts: tuple[Verdict, ...]) -> tuple[Candidate, ...]:
    """The same candidates, judged."""
    pairs = zip(candidates, verdicts, strict=True)
    return tuple(dataclasses.replace(candidate, verdict=verdict) for candidate, verdict in pairs)
