"""What `plan` tells, as plain values: memory, rates, a forecast of every stage, one real question beside it.

Contract  Bytes and seconds, schema rexthinker-edge/plan/1. Of several runs of the question the quickest of
          each stage counts, as for the rates.
Elsewhere the verb: plan.py; the formula: runtime/roofline.py; devices: runtime/devices.py; measured rates:
          runtime/rates.py; sizes: runtime/model_sizes.py.
Source    docs/sources.md#roofline
"""

import math
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

SCHEMA = "rexthinker-edge/plan/1"
FORMULA = (
    "time = max(bytes / bandwidth, operations / arithmetic) + passes x (operators x dispatch + call); "
    "see docs/sources.md#roofline"
)
REPEATS, PATIENCE_SECONDS = 5, 8.0  # of the question that is measured; its quickest stages count


def make_report(
    device: str, bundle: Path | None, shape: str | None, workload: dict[str, Any],
    recipe: dict[str, str] | None = None, threads: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Everything that is printed, as plain values; bytes and seconds."""
    from rexthinker_edge.runtime import roofline  # noqa: PLC0415
    from rexthinker_edge.runtime.bundle import open_bundle  # noqa: PLC0415
    from rexthinker_edge.runtime.model_sizes import bundle_sizes  # noqa: PLC0415
    from rexthinker_edge.runtime.thinker import small_bundle  # noqa: PLC0415

    opened = None if shape else open_bundle(bundle or small_bundle())
    sizes = _published(shape, device, recipe or {}) if shape else bundle_sizes(_must(opened))
    work = make_workload(opened, workload)
    int4 = opened is None or "int4" in opened.manifest.quantisation.get("decoder.onnx", "")
    title, rates, memory, reserve = _machine(device, int4, threads)
    fit = roofline.fit(sizes, work, memory, reserve)
    found = roofline.forecast(sizes, work, rates)
    report = {
        "schema": SCHEMA, "device": {"name": device, "title": title}, "model": sizes.name,
        "fits": fit.spare >= 0, "spare_bytes": fit.spare,
        "memory": {"available_bytes": fit.available, "parts_bytes": fit.parts},
        "workload": asdict(work) | {"prompt_tokens": work.prompt_tokens},
        "rates": asdict(rates), "formula": FORMULA,
        "stages": [asdict(stage) for stage in found.stages],
        "forecast": {
            "first_token_ms": found.first_token * 1e3, "token_ms": found.token * 1e3,
            "tokens_per_second": 1 / found.token, "expression_ms": found.expression * 1e3,
        },
        "compared": None,
    }  # fmt: skip
    if device == "cpu" and opened is not None and opened.manifest.golden:
        report["compared"] = compare(opened, sizes, rates, threads)
    return report


def _published(shape: str, device: str, given: dict[str, str]) -> Any:
    """A published shape, exported so."""
    from rexthinker_edge.runtime.model_sizes import ShapeRecipe, published_shape  # noqa: PLC0415

    chosen: dict[str, Any] = dict(given)
    if "head_bits" in chosen:
        chosen["head_bits"] = int(chosen["head_bits"])
    if "detector_precision" in chosen:
        chosen["detector"] = chosen.pop("detector_precision")
    return published_shape(shape, ShapeRecipe(**chosen, float_bytes=4 if device == "cpu" else 2))


def _must(opened: Any) -> Any:
    assert opened is not None
    return opened


def make_workload(opened: Any, given: dict[str, Any]) -> Any:
    """The tokens of one question about one picture; limits are the bundle's, or the published ones."""
    from rexthinker_edge.runtime.qwen_pixels import smart_resize  # noqa: PLC0415
    from rexthinker_edge.runtime.roofline import Workload  # noqa: PLC0415

    width, height = _size(given["picture"])
    pixels = (16 * 784, 1280 * 784, 28) if opened is None else _limits(opened)
    shortest, longest = (800, 1333) if opened is None else _sides(opened)
    seen_height, seen_width = smart_resize(height, width, *pixels)
    scale = min(shortest / min(width, height), longest / max(width, height))
    return Workload(
        image_tokens=seen_height * seen_width // pixels[2] ** 2,
        # system turn and frame of the published prompt, and about 22 tokens a candidate's box
        text_tokens=120 + 22 * given["candidates"],
        expression_tokens=25,
        answer_tokens=given["answer_tokens"],
        tokens_per_pass=given["tokens_per_pass"],
        detector_pixels=math.ceil(width * scale) * math.ceil(height * scale),
    )


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and 0 < int(width) < 65536 and 0 < int(height) < 65536):
        raise click.UsageError(f"--picture: {text!r}, width x height is needed, such as 1280x720.")
    return int(width), int(height)


def _limits(opened: Any) -> tuple[int, int, int]:
    prompt, vision = opened.manifest.prompt, opened.manifest.vision
    return prompt.min_pixels, prompt.max_pixels, vision.patch * vision.merge


def _sides(opened: Any) -> tuple[int, int]:
    return opened.manifest.detector.shortest_px, opened.manifest.detector.longest_px


def _machine(name: str, int4: bool, threads: int | None) -> tuple[str, Any, int, int]:
    """Title, rates, memory and what of it the system keeps."""
    from rexthinker_edge.commands.machine_checks import available_bytes  # noqa: PLC0415
    from rexthinker_edge.runtime.devices import DEVICES as KNOWN  # noqa: PLC0415
    from rexthinker_edge.runtime.roofline import Efficiency, Rates  # noqa: PLC0415

    if name == "cpu":
        from rexthinker_edge.runtime.rates import measure_cpu  # noqa: PLC0415

        rates = measure_cpu(int4, threads)
        return (
            f"this CPU, {threads or os.cpu_count()} threads, rates measured now",
            rates,
            available_bytes() or 0,
            250_000_000,
        )
    device, reached = KNOWN[name], Efficiency()
    arithmetic = device.half_flops * reached.arithmetic
    detector = device.half_flops * reached.detector
    rates = Rates(device.bandwidth * reached.bandwidth, arithmetic, arithmetic, detector)
    return f"{device.title}, published figures", rates, device.memory_bytes, device.reserve_bytes


def compare(opened: Any, sizes: Any, rates: Any, threads: int | None) -> dict[str, Any]:
    """Forecast and measure the bundle's first golden question on this machine, decoded token by token.

    Of several runs the quickest of each stage counts, as for the rates; `load` says how many processes
    wanted a core meanwhile, for each core there is.
    """
    from PIL import Image  # noqa: PLC0415

    from rexthinker_edge.runtime.roofline import Workload, forecast  # noqa: PLC0415

    golden = opened.manifest.golden[0]
    with Image.open(opened.file(golden.picture)) as image:
        width, height = image.size
    results = ask_golden(opened, threads)
    result = results[-1]
    shape = {"picture": f"{width}x{height}", "candidates": 1, "answer_tokens": result.tokens.generated}
    work = make_workload(opened, shape | {"tokens_per_pass": 1.0})
    text = max(result.tokens.prompt - work.image_tokens, 0)
    work = Workload(**asdict(work) | {"text_tokens": text, "expression_tokens": 0})
    expected, times = forecast(sizes, work, rates), [one.ms for one in results]
    stages = {stage.name: stage.seconds * 1e3 for stage in expected.stages}
    predicted = {
        "detector_ms": stages["detector"], "vision_ms": stages["vision tower"], "prompt_ms": stages["prompt"],
        "first_token_ms": expected.first_token * 1e3, "token_ms": expected.token * 1e3,
    }  # fmt: skip
    measured = {
        "detector_ms": min(ms.detect for ms in times), "vision_ms": min(ms.vision for ms in times),
        "prompt_ms": min(ms.prefill for ms in times),
        "first_token_ms": min(ms.detect + ms.vision + ms.prefill for ms in times),
        "token_ms": min(one.ms.generate / max(one.tokens.passes - 1, 1) for one in results),
    }  # fmt: skip
    return {
        "load": os.getloadavg()[0] / (os.cpu_count() or 1),
        "stages": {name: _pair(predicted[name], measured[name]) for name in measured},
    }


def ask_golden(opened: Any, threads: int | None) -> list[Any]:
    """The first golden question, asked afresh several times without drafting; the first is for warming up."""
    from rexthinker_edge.runtime.thinker import load  # noqa: PLC0415

    golden, thinker = opened.manifest.golden[0], load(opened.path, threads=threads, memory_bytes=0)
    picture, most = opened.file(golden.picture), min(len(golden.token_ids), 64)
    results, ends = list[Any](), time.monotonic() + PATIENCE_SECONDS
    while len(results) <= REPEATS and (len(results) < 2 or time.monotonic() < ends):
        scene = thinker.look(picture, golden.category)
        results.append(scene.refer(golden.expression, max_new_tokens=most, drafting=False))
    return results[1:]


def _pair(predicted: float, measured: float) -> dict[str, float | None]:
    error = 100 * (predicted / measured - 1) if measured else None
    return {"forecast": predicted, "measured": measured, "error_percent": error}
