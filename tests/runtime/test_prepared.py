"""What `prepare` writes answers as the bundle does, is told apart when it does not fit, and is repaired."""

import json
from dataclasses import replace

import numpy as np
import pytest

from rexthinker_edge.cli import run
from rexthinker_edge.runtime import manifest as manifests
from rexthinker_edge.runtime import prepared
from rexthinker_edge.runtime.bundle import open_bundle
from rexthinker_edge.runtime.errors import DeviceError
from rexthinker_edge.runtime.prepared import CARD, GRAPHS, find, prepare, remove
from rexthinker_edge.runtime.thinker import load, small_bundle


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The bundled model, prepared, and where."""
    opened, root = open_bundle(small_bundle()), tmp_path_factory.mktemp("prepared")
    told = []
    assert find(opened, root) is None
    made = prepare(opened, root, told.append)
    assert told[:-1] == [name for name in GRAPHS if name in opened.manifest.files]
    return opened, root, made


@pytest.fixture
def copy(packed, tmp_path, monkeypatch):
    """A copy of it that a test may spoil; made again, it is not asked again."""
    monkeypatch.setattr(prepared, "_compare", lambda *_: None)
    opened, _, made = packed
    place = tmp_path / made.directory.name
    place.mkdir()
    for item in made.directory.iterdir():
        (place / item.name).write_bytes(item.read_bytes())
    return opened, tmp_path, place


def test_a_prepared_bundle_answers_bit_for_bit(packed, monkeypatch):
    _, root, made = packed
    picture = np.random.default_rng(2).integers(0, 255, (112, 140, 3), np.uint8)
    boxes = [[15, 15, 65, 65], [80, 60, 120, 100]]
    seen = []
    for place in (root / "nothing", root):
        monkeypatch.setattr(prepared, "default_root", lambda place=place: place)
        thinker = load(threads=1)
        parts = thinker._parts
        result = thinker.look(picture, "ball", boxes).refer("the left ball", max_new_tokens=12)
        found = parts.detector.detect(picture, "ball")
        seen.append((result.token_ids, *(np.asarray(part).tolist() for part in found)))
        told = thinker.describe()["prepared"]
        assert told == (None if place != root else {"directory": str(made.directory), "not_used": []})
    assert seen[0] == seen[1]


def test_the_bundle_is_left_as_it_was_and_the_card_says_what_it_is(packed):
    opened, root, made = packed
    assert open_bundle(opened.path).digest == opened.digest
    assert made.directory.name == f"{opened.path.name}-{opened.digest[:16]}"
    assert [item.name for item in root.iterdir()] == [made.directory.name]
    card = json.loads((made.directory / CARD).read_text())
    assert (card["format_version"], card["digest"]) == (2, opened.digest)
    assert set(card["machine"]) == {"processor", "system", "onnxruntime", "products"}
    assert {f"{name}.data" for name in GRAPHS} <= set(card["files"])
    assert made.graph(manifests.DECODER) == made.directory / manifests.DECODER
    assert made.graph("other.onnx") is None


@pytest.mark.parametrize("part", ["processor", "system", "onnxruntime", "products"])
def test_another_machine_is_told_and_not_used(packed, monkeypatch, part):
    opened, root, _ = packed
    other = replace(prepared.this_machine(), **{part: "another"})
    monkeypatch.setattr(prepared, "this_machine", lambda: other)
    found = find(opened, root)
    assert len(found.differences) == 1
    assert "here is another" in found.differences[0]
    assert found.graph(manifests.DECODER) is None


def test_damage_is_found_and_repaired(copy):
    opened, root, place = copy
    data = place / f"{manifests.DECODER}.data"
    data.write_bytes(data.read_bytes()[:-1])
    assert find(opened, root).differences == (f"{data.name} is not as it was written",)
    graph = place / manifests.VISION
    data.write_bytes(data.read_bytes() + b"\0")
    whole = graph.read_bytes()
    graph.write_bytes(whole[:-1] + bytes([whole[-1] ^ 7]))
    assert find(opened, root).differences == (f"{graph.name} is not as it was written",)
    (place / CARD).write_text("{}")
    assert "card.json cannot be read" in find(opened, root).differences[0]
    prepare(opened, root)
    assert find(opened, root).differences == ()
    assert remove(opened, root)
    assert find(opened, root) is None
    assert not remove(opened, root)


def test_too_little_room_is_told_before_anything_is_written(packed, tmp_path, monkeypatch):
    opened, *_ = packed
    monkeypatch.setattr(prepared.shutil, "disk_usage", lambda _: type("Use", (), {"free": 10})())
    with pytest.raises(DeviceError, match=r"10 bytes free, up to [0-9,]+ are needed .* runs unprepared too"):
        prepare(opened, tmp_path / "root")
    assert list((tmp_path / "root").iterdir()) == []


def test_what_does_not_answer_as_before_is_not_kept(packed, tmp_path, monkeypatch):
    opened, *_ = packed
    monkeypatch.setattr(prepared, "_pack", lambda source, target, packed: target.write_bytes(b"a graph"))
    answers = iter(["beef", "exit code -11"])
    monkeypatch.setattr(prepared, "_answer", lambda *_: next(answers))
    with pytest.raises(DeviceError, match=r"gives exit code -11, not beef. Nothing was kept: go on without"):
        prepare(opened, tmp_path / "root")
    assert list((tmp_path / "root").iterdir()) == []


def test_the_verb_prepares_tells_and_removes(copy, monkeypatch, capsys):
    opened, root, place = copy
    monkeypatch.setattr(prepared, "default_root", lambda: root)
    (place / CARD).write_text((place / CARD).read_text().replace('"onnxruntime": "', '"onnxruntime": "0.'))
    said = []
    for arguments in ([], [], ["--remove"], ["--remove"]):
        assert run(["prepare", "--json", *arguments]) == 0
        said.append(json.loads(capsys.readouterr().out))
    assert [one["done"] for one in said] == [
        "prepared again", "already prepared", "removed", "nothing to remove",
    ]  # fmt: skip
    assert "made for ONNX Runtime 0." in said[0]["before"][0]
    assert said[0]["bytes"] > 0
    assert said[0]["schema"] == "rexthinker-edge/prepare/1"
    assert opened.digest == said[0]["digest"]
