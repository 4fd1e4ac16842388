"""Bundles of random numbers: complete, the same everywhere, and what the exporter would write."""

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest

from rexthinker_edge.benchmarks import make_blueprints, random_bundle
from rexthinker_edge.benchmarks.random_bundle import (
    BLUEPRINTS,
    DETECTORS,
    Kind,
    Numbers,
    Spot,
    read_blueprint,
)
from rexthinker_edge.commands import machine_checks
from rexthinker_edge.runtime.bundle import open_bundle
from rexthinker_edge.runtime.errors import BundleError, DeviceError
from rexthinker_edge.runtime.model_sizes import SHAPES
from rexthinker_edge.runtime.thinker import load, small_bundle


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    place = tmp_path_factory.mktemp("random") / "tiny"
    told = []
    with random_bundle.random_bundle("tiny", place, lambda *done: told.append(done)) as opened:
        assert opened.path == place
    assert told[-1][0] == told[-1][1] == random_bundle.bundle_bytes("tiny")
    return place


def test_it_is_intact_and_says_what_it_is(tiny):
    opened = open_bundle(tiny, hashes=True)
    assert random_bundle.is_random(opened.manifest)
    assert not random_bundle.is_random(open_bundle(small_bundle()).manifest)
    assert opened.manifest.name == "random-tiny"
    assert "random" in opened.manifest.quantisation["decoder.onnx"]


def test_the_same_numbers_on_every_machine(tiny):
    """Pinned, for a digest in a report shall name the very bundle."""
    data = (tiny / "embeddings.bin").read_bytes()
    assert hashlib.sha256(data).hexdigest()[:16] == PINNED


def test_it_answers_and_nothing_in_it_is_infinite(tiny):
    thinker = load(tiny, threads=1)
    pixels = np.full((120, 160, 3), 90, np.uint8)
    scene = thinker.look(pixels, "ball", boxes=[[10, 10, 50, 60], [60, 20, 90, 80]])
    result = scene.refer("the left ball", max_new_tokens=6)
    assert len(result.token_ids) == 6
    decoder = thinker._parts.language.decoder
    embeds = decoder.embed(range(7, 20))
    positions = np.tile(np.arange(13), (3, 1))
    logits = decoder.run(embeds, positions, decoder.new_cache(64), last_only=False)
    assert np.isfinite(logits).all()
    assert 0.1 < logits.std() < 10  # a spread that neither dies out nor explodes
    assert thinker.look(pixels, "ball").candidates == ()


def test_a_bundle_that_is_there_is_used_again(tiny):
    before = (tiny / "manifest.json").stat().st_mtime_ns
    with random_bundle.random_bundle("tiny", tiny) as opened:
        assert opened.manifest.name == "random-tiny"
    assert (tiny / "manifest.json").stat().st_mtime_ns == before


def test_another_bundle_is_never_replaced(tmp_path):
    shutil.copytree(small_bundle(), tmp_path / "mine")
    with (
        pytest.raises(
            BundleError, match=r"mine: holds the bundle 'workbench-small', 'random-tiny' or nothing"
        ),
        random_bundle.random_bundle("tiny", tmp_path / "mine"),
    ):
        pass


def test_without_a_place_it_goes_when_the_block_ends(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(random_bundle, "kept_bundle", lambda shape, place, told: place)
    with random_bundle.random_bundle("tiny", None) as place:
        assert place.parent.is_dir()
        assert tmp_path in place.parents
    assert not place.parent.exists()


def test_a_disk_too_small_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000_000))
    monkeypatch.setattr(machine_checks, "available_bytes", lambda: None)
    with (
        pytest.raises(BundleError, match=r"--shape 7b: 1.0 GB free in .*, 5\.\d GB are needed. Free some"),
        random_bundle.random_bundle("7b", tmp_path / "new" / "rex"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_memory_too_small_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(machine_checks, "available_bytes", lambda: 4_000_000_000)
    with (
        pytest.raises(DeviceError, match=r"--shape 7b: 4.0 GB of memory are free, about 7\.\d GB are needed"),
        random_bundle.random_bundle("7b", tmp_path / "rex"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", ["3b", "7b"])
def test_a_published_shape_weighs_what_the_plan_says(shape):
    sizes, made = SHAPES[shape], read_blueprint(shape)
    spots = made.files["decoder.onnx.data"]
    assert spots[-1].offset + spots[-1].bytes == pytest.approx(sizes.decoder.bytes, rel=0.01)
    spots = made.files["vision.onnx.data"]
    assert spots[-1].offset + spots[-1].bytes == pytest.approx(sizes.vision.bytes, rel=0.02)
    assert sum(spot.bytes for spot in made.files["embeddings.bin"]) == sizes.embedding_bytes
    assert made.decoder is not None
    assert (made.decoder.layers, made.decoder.hidden) == (sizes.layers, sizes.hidden)
    detector = read_blueprint(str(DETECTORS[shape]))
    assert sum(spots[-1].offset for spots in detector.files.values()) == pytest.approx(
        sizes.detector.bytes, rel=0.05
    )


def test_tensors_lie_one_behind_the_other():
    for path in BLUEPRINTS.glob("*.zip"):
        for name, spots in read_blueprint(path.stem).files.items():
            ends = [spot.offset + spot.bytes for spot in spots]
            begins = [spot.offset for spot in spots[1:]]
            assert all(0 <= begin - end < 4096 for begin, end in zip(begins, ends, strict=False)), name


def test_the_blueprint_is_what_the_exporter_writes_today(tmp_path):
    """When this fails the exporter has changed: python -m rexthinker_edge.benchmarks.make_blueprints."""
    graphs, plan = make_blueprints.language_blueprint("tiny", tmp_path)
    make_blueprints.save(tmp_path / "tiny.zip", graphs, plan)
    with zipfile.ZipFile(tmp_path / "tiny.zip") as made, zipfile.ZipFile(BLUEPRINTS / "tiny.zip") as kept:
        assert made.namelist() == kept.namelist()
        for name in made.namelist():
            assert made.read(name) == kept.read(name), name
    for name, spots in plan.files.items():
        if name != "embeddings.bin":
            assert (tmp_path / name).stat().st_size == spots[-1].offset + spots[-1].bytes


def spot(kind, dtype="uint8", shape=(1000, 20), spread=0.5, middle=0.0, name="a"):
    return Spot(name, kind, dtype, shape, 0, spread, middle)


def test_numbers_are_what_their_kind_says():
    numbers = Numbers(seed=0)

    def made(wanted, dtype):
        return np.frombuffer(b"".join(numbers.of(wanted)), dtype).reshape(wanted.shape)

    codes = made(spot(Kind.BYTES), np.uint8)
    assert (codes.min(), codes.max()) == (0, 255)
    seven = made(spot(Kind.SEVEN_BITS, "int8"), np.int8)
    assert (seven.min(), seven.max()) == (-63, 63)
    assert (made(spot(Kind.CONSTANT, middle=136.0), np.uint8) == 136).all()
    scales = made(spot(Kind.SCALES, "float32"), np.float32)
    assert scales.min() > 0.4
    assert scales.max() < 0.6
    values = made(spot(Kind.VALUES, "float32", middle=1.0), np.float32)
    assert values.mean() == pytest.approx(1.0, abs=0.02)
    assert values.std() == pytest.approx(0.5, abs=0.02)
    halves = made(spot(Kind.VALUES, "bfloat16"), np.uint16).astype(np.uint32) << 16
    assert halves.view(np.float32).std() == pytest.approx(0.5, abs=0.02)
    table = made(spot(Kind.COS, "float32", (4, 3), 100.0, 1.0), np.float32)
    assert table[2] == pytest.approx(np.cos(2 * 100.0 ** (-np.arange(3) / 3)), abs=1e-6)


def test_no_two_tensors_are_alike_and_long_ones_wrap(monkeypatch):
    monkeypatch.setattr(random_bundle, "BLOCK_BYTES", 4001)
    numbers = Numbers(seed=0)
    one, two = (b"".join(numbers.of(spot(Kind.BYTES, name=name))) for name in "ab")
    assert len(one) == len(two) == 20_000
    assert one != two


def test_neither_torch_nor_onnx_is_needed():
    code = (
        "import sys, json\n"
        "for name in ('torch', 'transformers', 'onnx', 'safetensors', 'scipy'): sys.modules[name] = None\n"
        "import rexthinker_edge.benchmarks.bench, rexthinker_edge.benchmarks.bench_text\n"
        "import rexthinker_edge.commands.bench\n"
        "from rexthinker_edge.benchmarks.random_bundle import bundle_bytes\n"
        "print(json.dumps(bundle_bytes('tiny')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == random_bundle.bundle_bytes("tiny")


PINNED = "8c05932026f5bbdf"
