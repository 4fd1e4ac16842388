"""The whole of `rexthinker-edge bench`: ceilings, loads, stages, expressions, and one report of them.

Contract  `bench` returns schema `rexthinker-edge/bench/1`, whose keys and units docs/benchmarks.md lists.
          What a machine does not tell (energy, throttling, its page cache) is told as absent, with the
          reason, and never estimated. Ceilings are measured first and once more at the end.
Elsewhere what is timed: speed.py; ceilings: ceilings.py, work.py; the machine: machine.py; tables:
          bench_text.py; the command: package/commands/bench.py.
Source    docs/benchmarks.md
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rexthinker_edge.benchmarks.bench_questions import Question, questions
from rexthinker_edge.benchmarks.ceilings import Ceilings, measure_ceilings
from rexthinker_edge.benchmarks.energy import EnergyMeter, Heat, read_heat, throttling
from rexthinker_edge.benchmarks.machine import (
    begin_peak,
    cached_share,
    drop_from_cache,
    machine_card,
    others_share,
    peak_bytes,
    read_taken,
    read_turns,
    waited_share,
)
from rexthinker_edge.benchmarks.random_bundle import is_random
from rexthinker_edge.benchmarks.speed import (
    Asked,
    Bench,
    Measured,
    late_times,
    median,
    stage_times,
    times,
    tokens_per_pass,
)
from rexthinker_edge.benchmarks.work import DecoderWork, Work, decoder_work, detector_work, vision_work
from rexthinker_edge.runtime.boxes import Size
from rexthinker_edge.runtime.bundle import Bundle, open_bundle
from rexthinker_edge.runtime.deadline import monotonic_ms
from rexthinker_edge.runtime.opening import LateSession
from rexthinker_edge.runtime.qwen_pixels import PixelLimits
from rexthinker_edge.runtime.thinker import Thinker, load, small_bundle

SCHEMA = "rexthinker-edge/bench/1"
LARGE_BYTES = 1_000_000_000  # of a bundle; fewer pictures are asked then
USUAL_COUNT = {False: 20, True: 3}
USUAL_SIZE: Size = (1280, 720)
SMALL_SIZE: Size = (320, 240)  # where a bundle was made for smaller pictures
Told = Callable[[str, int, int], None]  # what goes on, how much of it is done, and of how much


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        bundle: its directory; the small bundled model when None.
        threads: cores one model uses; all when None.
        count: pictures measured; by the bundle's size when None.
        size: of the pictures; 1280x720, or 320x240 where the bundle's own limit is lower, when None.
        tokens: most tokens of an answer; the bundle's own limit when None.
        ceiling_seconds: for each of the ceilings' six figures.
        ceiling_bytes: read for the bandwidth.
    """

    bundle: Path | None = None
    threads: int | None = None
    device: str = "cpu"
    count: int | None = None
    size: Size | None = None
    tokens: int | None = None
    ceiling_seconds: float = 0.8
    ceiling_bytes: int = 1 << 28


@dataclass(frozen=True)
class Loads:
    """Milliseconds until `load` returned, and until every graph was packed as well."""

    cold_ms: float
    warm_ms: float
    cold_ready_ms: float
    warm_ready_ms: float
    told: dict[str, Any]  # how cold the cold one was


def bench(plan: Plan, told: Told = lambda what, done, total: None) -> dict[str, Any]:
    """Measure a bundle on this machine.

    Raises:
        BundleError, DeviceError, OptionError: as `load`.
    """
    opened = open_bundle(plan.bundle or small_bundle())
    size, count = picture_size(plan, opened), picture_count(plan, opened)
    told("ceilings", 0, 1)
    before = device_ceilings(plan)
    told("pictures", 0, 1)
    asked = questions(count + 1, size)
    limits = pixel_limits(opened)
    told("operations", 0, 1)
    work = _graph_works(opened, asked[1], limits, plan.threads)
    peak_known = begin_peak()
    told("load", 0, 1)
    thinker, loads = load_twice(opened, plan)
    heat, turns, taken = read_heat(), read_turns(), read_taken()
    measuring = Bench(thinker, limits, plan.tokens, bring_boxes=is_random(opened.manifest))
    with EnergyMeter() as energy:
        seen = measuring.run(asked, lambda done: told("pictures asked", done, count + 1))
    shares = {
        "waited_share": waited_share(turns, read_turns()), "others_share": others_share(taken, read_taken()),
    }  # fmt: skip
    peak = peak_bytes()
    chunk = thinker._parts.language.decoder.prefill_chunk
    work |= _decoder_works(decoder_work(opened), seen, chunk)
    told("ceilings again", 0, 1)
    after = device_ceilings(plan)
    ceilings = before.better(after)
    return {
        "schema": SCHEMA,
        "machine": _machine(thinker, heat, energy, seen, loads, (before, after))
        | shares
        | {"peak_since_load": peak_known},
        "bundle": _bundle(opened, thinker, seen, work, size, loads),
        "ceilings": asdict(ceilings),
        "stages": _stages(seen, work, ceilings),
        **expressions(seen),
        "load": {"cold_ms": loads.cold_ms, "warm_ms": loads.warm_ms},
        "peak_bytes": peak,
    }


def device_ceilings(plan: Plan) -> Ceilings:
    """What the device that decodes can do at most; with TensorRT that is the CPU still.

    Raises:
        DeviceError: it is a GPU that cannot be had.
    """
    if plan.device.startswith("cuda"):
        from rexthinker_edge.benchmarks.cuda_ceilings import measure_cuda_ceilings  # noqa: PLC0415
        from rexthinker_edge.runtime.providers import read_device  # noqa: PLC0415

        return measure_cuda_ceilings(read_device(plan.device))
    return measure_ceilings(plan.threads, plan.ceiling_bytes, seconds=plan.ceiling_seconds)


def picture_size(plan: Plan, opened: Bundle) -> Size:
    """The size of the pictures; see `Plan.size`."""
    if plan.size is not None:
        return plan.size
    most = opened.manifest.prompt.max_pixels
    return USUAL_SIZE if most >= USUAL_SIZE[0] * USUAL_SIZE[1] else SMALL_SIZE


def picture_count(plan: Plan, opened: Bundle) -> int:
    """How many pictures; see `Plan.count`."""
    return USUAL_COUNT[_bytes(opened) >= LARGE_BYTES] if plan.count is None else plan.count


def _bytes(opened: Bundle) -> int:
    return sum(entry.bytes for entry in opened.manifest.files.values())


def pixel_limits(opened: Bundle) -> PixelLimits:
    """How the bundle's vision tower wants pictures resized."""
    prompt, vision = opened.manifest.prompt, opened.manifest.vision
    return PixelLimits(
        prompt.min_pixels, prompt.max_pixels, vision.patch, vision.merge, vision.temporal_patch
    )


def load_twice(opened: Bundle, plan: Plan) -> tuple[Thinker, Loads]:
    """Load with the files out of the system's memory, as far as it lets go of them, and again."""
    files = [opened.file(name) for name in opened.manifest.files]
    refused = drop_from_cache(files)
    held = cached_share(files)
    cold = _load(plan)
    told = {"dropped": refused is None, "why": refused, "cached_share": held}
    times_cold = cold[1:]
    del cold
    gc.collect()
    thinker, *times_warm = _load(plan)
    return thinker, Loads(times_cold[0], times_warm[0], times_cold[1], times_warm[1], told)


def _load(plan: Plan) -> tuple[Thinker, float, float]:
    """A loaded bundle, when `load` returned and when its last graph was packed."""
    began = monotonic_ms()
    thinker = load(plan.bundle, device=plan.device, threads=plan.threads)
    returned = monotonic_ms()
    for session in (thinker._parts.vision.session, thinker._parts.language.decoder.session):
        if isinstance(session, LateSession):
            session.get_modelmeta()  # waits
    return thinker, returned - began, monotonic_ms() - began


def _graph_works(
    opened: Bundle, question: Question, limits: PixelLimits, threads: int | None
) -> dict[str, Work]:
    from rexthinker_edge.runtime.qwen_pixels import qwen_pixels  # noqa: PLC0415

    pixels = question.pixels_HWC
    return {
        "detect": detector_work(opened, pixels, question.category, threads),
        "vision": vision_work(opened, qwen_pixels(pixels, limits), threads),
    }


def _decoder_works(decoder: DecoderWork, seen: Measured, chunk: int) -> dict[str, Work]:
    """Prefill of the median first expression, and one token in the middle of the median answer."""
    tokens = [asked.result.tokens for asked in seen.first]
    computed = round(median([one.prompt - one.reused for one in tokens]))
    prompt, reused = round(median([one.prompt for one in tokens])), median([one.reused for one in tokens])
    answer = round(median([asked.result.tokens.generated for asked in seen.plain]))
    return {
        "prefill": decoder.passes(computed, round(reused), chunk),
        "token": decoder.passes(1, prompt + answer // 2, chunk),
    }


def _stages(seen: Measured, work: dict[str, Work], ceilings: Ceilings) -> dict[str, Any]:
    """Times beside what the machine could do."""
    found = stage_times(seen)
    for name, stage in found.items():
        stage["ceiling_ms"] = ceilings.ms(work[name])
        stage["share"] = stage["ceiling_ms"] / stage["p50_ms"]
    return found


def expressions(seen: Measured) -> dict[str, Any]:
    """First and second expression, together, drafting."""
    second = [asked.result.tokens for asked in seen.second]
    return {
        "first": times(seen.first),
        "second": times(seen.second)
        | {
            "reused": round(median([tokens.reused for tokens in second])),
            "prompt": round(median([tokens.prompt for tokens in second])),
        },
        "together": {
            str(count): median([group.ms for group in groups]) for count, groups in seen.together.items()
        },
        "drafting": {
            "off_ms": times(seen.plain)["total_ms"],
            "on_ms": times(seen.second)["total_ms"],
            "tokens_per_pass": tokens_per_pass(seen.second),
            "identical": seen.drafting_identical,
        },
    }


def _machine(
    thinker: Thinker, heat: Heat, energy: EnergyMeter, seen: Measured, loads: Loads,
    ceilings: Sequence[Ceilings],
) -> dict[str, Any]:  # fmt: skip
    """The machine's card, and what it told while it worked."""
    described = thinker.describe()
    return machine_card() | {
        "device": described["device"],
        "threads": described["threads"],
        "providers": described["providers"],
        "energy": energy.report(seen.expressions),
        "throttling": throttling(heat, read_heat()),
        "cold_load": loads.told,
        "ceilings_before_and_after": [asdict(one) for one in ceilings],
    }


def _bundle(
    opened: Bundle, thinker: Thinker, seen: Measured, work: dict[str, Work], size: Size, loads: Loads
) -> dict[str, Any]:
    """What was asked, of which bundle, and what came back."""
    manifest = opened.manifest
    return {
        "name": manifest.name,
        "digest": opened.digest,
        "bytes": _bytes(opened),
        "random": is_random(manifest),
        "quantisation": dict(manifest.quantisation),
        "drafting": thinker.describe()["drafting"],
        "pictures": len(seen.first),
        "picture": f"{size[0]}x{size[1]}",
        "candidates": round(median([len(asked.result.candidates) for asked in seen.first])),
        "boxes_given": seen.given_boxes,
        "prompt_tokens": _tokens(seen.first, "prompt"),
        "prefilled_tokens": _tokens(seen.first, "prompt") - _tokens(seen.first, "reused"),
        "answer_tokens": _tokens(seen.plain, "generated"),
        "statuses": seen.statuses,
        "together_identical": seen.together_identical,
        "mixed": {str(count): pictures for count, pictures in seen.mixed.items()},
        "work": {name: asdict(one) for name, one in work.items()},
        "p95_ms": late_times(seen),
        "ready_ms": {"cold": loads.cold_ready_ms, "warm": loads.warm_ready_ms},
    }


def _tokens(asked: Sequence[Asked], name: str) -> int:
    return round(median([getattr(one.result.tokens, name) for one in asked]))
