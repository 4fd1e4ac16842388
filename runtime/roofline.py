"""Will a model fit a device, and how fast can it be: bytes and operations over published rates.

What      A stage takes at least as long as its bytes need at the memory's bandwidth and its operations at the
          arithmetic's rate, whichever is longer: the roofline. What is reached of either is a share:
          `Efficiency`, taken from figures others published for such models.
Contract  time = max(bytes / (bandwidth * share), operations / (rate * share)) + passes * (nodes * dispatch +
          call), the last two measured on the CPU at hand (overhead.py) and 0 for others. Every term is in
          the forecast, so that a reader can check it. Forecasts are no measurements.
Elsewhere rates: devices.py, rates.py; sizes: model_sizes.py; telling: package/commands/plan_report.py.
Source    docs/sources.md#roofline
"""

import math
from dataclasses import dataclass

from rexthinker_edge.runtime.model_sizes import CHUNK_TOKENS, ModelSizes


@dataclass(frozen=True)
class Rates:
    """What a machine does in a second, and what starting one operator and one pass costs."""

    weight_bytes: float  # read while one token is computed
    decoder_flops: float  # of many tokens at once, with the decoder's weights
    vision_flops: float
    detector_flops: float
    dispatch_seconds: float = 0.0  # 0 where operators are queued ahead, as on a GPU
    call_seconds: float = 0.0  # Python, binding and waking threads, once a pass


@dataclass(frozen=True)
class Efficiency:
    """What is reached of published rates. docs/sources.md#roofline compares them with others' figures."""

    bandwidth: float = 0.7
    arithmetic: float = 0.45
    detector: float = 0.15  # of arithmetic: much of its time goes into moving and sampling cells


@dataclass(frozen=True)
class Workload:
    """One picture, one prompt, one answer."""

    image_tokens: int
    text_tokens: int  # system turn, hint with candidates, frame
    expression_tokens: int
    answer_tokens: int
    tokens_per_pass: float  # what drafting wins; 1 without
    detector_pixels: int

    @property
    def prompt_tokens(self) -> int:
        """All that is read before the answer."""
        return self.image_tokens + self.text_tokens + self.expression_tokens


@dataclass(frozen=True)
class Stage:
    """One term of the forecast."""

    name: str
    bytes: float
    flops: float
    nodes: int
    calls: int
    seconds: float
    bound: str  # what decides: memory, arithmetic or overhead


@dataclass(frozen=True)
class Forecast:
    """Times in seconds."""

    stages: tuple[Stage, ...]
    first_token: float  # of a new picture: detector, vision tower, prompt
    token: float
    expression: float  # a further expression on the same picture, to its last token


def _stage(
    name: str, bytes_read: float, flops: float, rate: float, nodes: int, rates: Rates, calls: int = 1
) -> Stage:
    by_memory, by_arithmetic = calls * bytes_read / rates.weight_bytes, flops / rate
    overhead = calls * (nodes * rates.dispatch_seconds + rates.call_seconds)
    longer = max(by_memory, by_arithmetic)
    bound = "memory" if by_memory >= by_arithmetic else "arithmetic"
    bound = "overhead" if overhead > longer else bound
    return Stage(name, calls * bytes_read, flops, nodes, calls, longer + overhead, bound)


def forecast(sizes: ModelSizes, work: Workload, rates: Rates) -> Forecast:
    """Times of one workload; see the module's contract for the formula."""
    length = work.prompt_tokens + work.answer_tokens / 2  # what an average token of the answer looks back on
    detector = _stage(
        "detector", sizes.detector.bytes, sizes.detector_flops(work.detector_pixels), rates.detector_flops,
        sizes.detector.nodes, rates,
    )  # fmt: skip
    vision = _stage(
        "vision tower", sizes.vision.bytes, sizes.vision_flops(work.image_tokens), rates.vision_flops,
        sizes.vision.nodes, rates,
    )  # fmt: skip
    prefill = _stage(
        "prompt", sizes.decoder.bytes, sizes.prompt_flops(work.prompt_tokens), rates.decoder_flops,
        sizes.decoder.nodes, rates, math.ceil(work.prompt_tokens / CHUNK_TOKENS),
    )  # fmt: skip
    token = _stage(
        "token", sizes.decoder.bytes + sizes.kv_bytes(length), sizes.token_flops(length), rates.decoder_flops,
        sizes.decoder.nodes, rates,
    )  # fmt: skip
    suffix = _stage(
        "expression", sizes.decoder.bytes + sizes.kv_bytes(work.prompt_tokens),
        sizes.prompt_flops(work.expression_tokens), rates.decoder_flops, sizes.decoder.nodes, rates,
    )  # fmt: skip
    per_token = token.seconds / work.tokens_per_pass
    return Forecast(
        stages=(detector, vision, prefill, token, suffix),
        first_token=detector.seconds + vision.seconds + prefill.seconds,  # its logits are the prompt's last
        token=per_token,
        expression=suffix.seconds + work.answer_tokens * per_token,
    )


@dataclass(frozen=True)
class Fit:
    """Where the memory goes, in bytes; `spare` is negative when it does not fit."""

    parts: dict[str, int]
    available: int

    @property
    def spare(self) -> int:
        """What is left."""
        return self.available - sum(self.parts.values())


def fit(sizes: ModelSizes, work: Workload, available: int, reserve: int) -> Fit:
    """Memory of one model and one scene on a device that has `available` bytes."""
    parts = {
        "decoder weights": sizes.decoder.bytes,
        "vision weights": sizes.vision.bytes,
        "detector weights": sizes.detector.bytes,
        "embeddings": sizes.embedding_bytes,
        "keys and values": round(sizes.kv_bytes(work.prompt_tokens + work.answer_tokens)),
        "activations": sizes.activation_bytes(work.image_tokens, work.detector_pixels),
        "system": reserve,
    }
    return Fit(parts, available)
