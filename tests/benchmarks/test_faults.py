"""The gate closes on faults that leave answers fluent: each is put into the small model on purpose.

The reference is the same int4 decoder without the fault, so a healthy subject has no flip at all, whatever
the weights; what is asked of a fault is that it shows, not by how much.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from rexthinker_edge.benchmarks.comparison import Subjected, compare
from rexthinker_edge.benchmarks.gate import Gate
from rexthinker_edge.benchmarks.runs import Plan, Reference, run
from rexthinker_edge.benchmarks.subjects import BundleSubject, Question, Reply
from rexthinker_edge.calibration.openers import open_dataset
from rexthinker_edge.export.checkpoint import Checkpoint
from rexthinker_edge.export.config import TextConfig, read_config
from rexthinker_edge.export.decoder_graph import write_decoder
from rexthinker_edge.export.quantize import IntegerRecipe
from rexthinker_edge.runtime.decoder import Decoder
from rexthinker_edge.runtime.embeddings import Embeddings
from rexthinker_edge.runtime.thinker import Thinker, load

CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "small" / "vlm"
NUMBERS = range(8)
DATASET = f"workbench:full:1000000:{len(NUMBERS)}"
GATE = Gate(max_drop=0.5, max_flips=0.02, min_same_top=0.99)


@pytest.fixture(scope="module")
def bundle() -> Thinker:
    return load(threads=1)


def int4(
    bundle: Thinker, folder: Path, change: Callable[[TextConfig], TextConfig] = lambda text: text
) -> Thinker:
    """The bundle with its decoder exported again in four bits, from a changed configuration."""
    text = change(read_config(CHECKPOINT).text)
    geometry = write_decoder(Checkpoint(CHECKPOINT), text, folder, 2048, IntegerRecipe(block=32))
    return opened(bundle, folder, geometry)


def opened(bundle: Thinker, folder: Path, geometry) -> Thinker:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    decoder = Decoder(
        folder / "decoder.onnx", Embeddings(folder / "embeddings.bin", geometry), geometry, options
    )
    language = replace(bundle._parts.language, decoder=decoder)
    return Thinker(bundle._bundle, replace(bundle._parts, language=language), "cpu", 1)


def double_scales(folder: Path, layer: int) -> int:
    """Double every scale of one layer in the graph's data; returns how many tensors that were."""
    model = onnx.load(folder / "decoder.onnx", load_external_data=False)
    done = 0
    with (folder / "decoder.onnx.data").open("r+b") as data:
        for tensor in model.graph.initializer:
            if f"layers.{layer}." in tensor.name and tensor.name.endswith(".scales"):
                place = {entry.key: entry.value for entry in tensor.external_data}
                data.seek(int(place["offset"]))
                scales = np.frombuffer(data.read(int(place["length"])), np.float32) * 2
                data.seek(int(place["offset"]))
                data.write(scales.tobytes())
                done += 1
    return done


class OneSceneForAll(BundleSubject):
    """Keeps the first scene of a category, as a cache without the picture in its key does."""

    def ask(self, question: Question) -> Reply:
        first = self.__dict__.setdefault("first", {})
        kept = first.setdefault("scene", question)
        return super().ask(replace(kept, expression=question.expression))


def judge(reference: Thinker, subject: BundleSubject, folder: Path) -> dict:
    """Run both over the same items and ask the gate."""
    folder.mkdir(parents=True, exist_ok=True)
    told = []
    with open_dataset(DATASET) as dataset:
        first = BundleSubject(reference)
        for place, one in enumerate((first, subject)):
            leads = Reference(folder / "0.jsonl") if place else None
            plan = Plan(keep_top=0 if place else 16)
            done = run(one, dataset, NUMBERS, folder / f"{place}.jsonl", plan, reference=leads)
            told.append(Subjected(str(place), {}, {}, done.items))
    comparison = compare(told)
    return comparison | {"gate": GATE.judge(comparison)}


@pytest.fixture(scope="module")
def healthy(bundle: Thinker, tmp_path_factory: pytest.TempPathFactory) -> Thinker:
    return int4(bundle, tmp_path_factory.mktemp("healthy"))


def test_a_healthy_twin_passes(bundle: Thinker, healthy: Thinker, tmp_path: Path) -> None:
    told = judge(healthy, BundleSubject(int4(bundle, tmp_path)), tmp_path / "runs")
    assert told["gate"]["failures"] == []
    assert told["pairs"][0]["tokens"]["forced"]["kl_max"] == 0
    assert told["pairs"][0]["flips"]["value"] == 0


def test_one_layers_scales_doubled(bundle: Thinker, healthy: Thinker, tmp_path: Path) -> None:
    int4(bundle, tmp_path)
    assert double_scales(tmp_path, layer=2) == 7
    broken = opened(bundle, tmp_path, healthy._parts.language.decoder.geometry)
    assert not judge(healthy, BundleSubject(broken), tmp_path / "runs")["gate"]["passed"]


def test_a_wrong_rotary_section(bundle: Thinker, healthy: Thinker, tmp_path: Path) -> None:
    def swapped(text: TextConfig) -> TextConfig:
        time, height, width = text.mrope_section
        return replace(text, mrope_section=(width, height, time))

    broken = int4(bundle, tmp_path, swapped)
    assert not judge(healthy, BundleSubject(broken), tmp_path / "runs")["gate"]["passed"]


class HalfSize(BundleSubject):
    """Gives candidates in pixels of a picture half as large as the one the model sees."""

    def ask(self, question: Question) -> Reply:
        assert question.boxes is not None
        halved = tuple((x0 / 2, y0 / 2, x1 / 2, y1 / 2) for x0, y0, x1, y1 in question.boxes)
        return super().ask(replace(question, boxes=halved))


def test_boxes_off_by_the_resize(healthy: Thinker, tmp_path: Path) -> None:
    assert not judge(healthy, HalfSize(healthy), tmp_path)["gate"]["passed"]


def test_a_cache_that_returns_another_picture(healthy: Thinker, tmp_path: Path) -> None:
    assert not judge(healthy, OneSceneForAll(healthy), tmp_path)["gate"]["passed"]
