"""A scene on disk: it answers as before, and nothing but what was saved is believed."""

import hashlib
import json
import os
import socket

import numpy as np
import pytest

from rexthinker_edge.runtime.answer import Status
from rexthinker_edge.runtime.errors import SceneBusyError, SceneError
from rexthinker_edge.runtime.kept_scene import MAGIC
from rexthinker_edge.runtime.prompt import Wording, suffix
from rexthinker_edge.runtime.thinker import load

PICTURE = np.random.default_rng(1).integers(0, 256, (100, 200, 3), np.uint8)


@pytest.fixture
def saved(make_world, tmp_path):
    world = make_world()
    scene = world.thinker.look(PICTURE, "ball")
    path = tmp_path / "table.scene"
    scene.save(path)
    return world, scene, path


def question_tokens(world, expression):
    """How many tokens of a prompt stand behind what a scene keeps."""
    return len(world.decoder.tokenizer.encode_parts(suffix(Wording.DETECT, expression)))


def test_a_restored_scene_answers_as_the_first(saved):
    world, scene, path = saved
    read, encoded, asked = world.decoder.read, world.vision.encoded, len(world.detector.asked)
    fresh = load(world.directory, threads=1)
    again = fresh.restore(path)
    assert (world.decoder.read, world.vision.encoded, len(world.detector.asked)) == (read, encoded, asked)
    ours, theirs = again.refer("the red ball"), scene.refer("the red ball")
    assert (ours.token_ids, ours.boxes, ours.status) == (theirs.token_ids, theirs.boxes, Status.FOUND)
    assert ours.candidates == theirs.candidates
    assert ours.image == theirs.image
    assert np.array_equal(again.picture.pixels_HWC, PICTURE)
    assert ours.tokens.reused == ours.tokens.prompt - question_tokens(world, "the red ball")
    assert (ours.ms.detect, ours.ms.vision) == (0, 0)


def test_a_file_is_pinned(saved):
    """Byte for byte: the layout that docs/scenes.md describes."""
    world, scene, path = saved
    content = path.read_bytes()
    assert content[:8] == b"REXSCENE" == MAGIC
    length = int.from_bytes(content[8:12], "little")
    header = json.loads(content[12 : 12 + length])
    names = ["format_version", "bundle", "picture", "category", "candidates", "rows", "sha256"]
    assert list(header) == names
    assert header["sha256"] == own_sha256(header)
    assert header["format_version"] == 1
    assert header["candidates"][0]["box"] == [10.0, 20.0, 60.0, 80.0]
    body = content[12 + length :]
    assert body[: 100 * 200 * 3] == PICTURE.tobytes()
    assert header["picture"]["sha256"] == hashlib.sha256(PICTURE.tobytes()).hexdigest()
    tokens = scene.refer("it").tokens.prompt - question_tokens(world, "it")
    assert header["rows"]["shape"] == [2, 1, tokens, 2]
    assert len(body) == 100 * 200 * 3 + 2 * tokens * 2 * 4


def test_without_candidates(make_world, tmp_path):
    world = make_world()
    world.thinker.look(PICTURE, "ball", boxes=[]).save(tmp_path / "empty.scene")
    restored = world.thinker.restore(tmp_path / "empty.scene")
    assert restored.refer("it").status is Status.NO_CANDIDATES


def test_forgotten_rows_are_computed_again(saved):
    world, _, path = saved
    poor = load(world.directory, threads=1, memory_bytes=0).restore(path)
    result = poor.refer("the red ball")
    assert (result.status, result.tokens.reused) == (Status.FOUND, 0)


def test_saving_replaces_whole_files_only(saved, tmp_path):
    _, scene, path = saved
    before = path.read_bytes()
    scene.save(path)
    assert path.read_bytes() == before
    for place, reason in ((tmp_path / "missing" / "a", "No such file"), (tmp_path, "directory")):
        with pytest.raises(SceneError, match=f"cannot be written .*{reason}"):
            scene.save(place)
    assert [item.name for item in tmp_path.iterdir() if item.name.startswith(".")] == []
    stream = scene.stream("it")
    next(stream)
    with pytest.raises(SceneBusyError):
        scene.save(path)


def own_sha256(header):
    """The definition: of the header with nothing in this place."""
    return hashlib.sha256(json.dumps(header | {"sha256": ""}, sort_keys=True).encode()).hexdigest()


def rewritten(path, change=None, body=None, forged=True):
    """The file with a changed header, its digests made right, as a forger would."""
    content = path.read_bytes()
    length = int.from_bytes(content[8:12], "little")
    header, rest = json.loads(content[12 : 12 + length]), body if body is not None else content[12 + length :]
    if change is not None:
        change(header)
    if forged:
        header["sha256"] = own_sha256(header)
    text = json.dumps(header).encode()
    path.write_bytes(MAGIC + len(text).to_bytes(4, "little") + text + rest)
    return path


def put(*keys_and_value):
    *keys, last, value = keys_and_value

    def change(header):
        for key in keys:
            header = header[key]
        header[last] = value

    return change


HEADERS = {
    "format version 2, 1 is needed": put("format_version", 2),
    "unknown key command": put("command", "rm"),
    "made by bundle 'stand-in' (000000000000…), this is 'stand-in'": put("bundle", "digest", "0" * 64),
    "a picture of 100000 x 100000 px": put(
        "picture", {"path": None, "width": 10**5, "height": 10**5, "sha256": ""}
    ),
    "a picture of -1 x 100 px": put("picture", "width", -1),
    "bytes behind the header, which announces": put("picture", "height", 101),
    "the pixels are not those the header names": put("picture", "sha256", "0" * 64),
    "the rows are not those the header names": put("rows", "sha256", "0" * 64),
    "rows of shape (4, 1, ": put("rows", "shape", 0, 4),
    "rows of shape (2, 1, -5, 2)": put("rows", "shape", 2, -5),
    "rows of shape (2, 1, 100000, 2)": put("rows", "shape", 2, 100_000),
    "category: it holds the control character": put("category", "a\nb"),
    "rows of ": put("category", "a much longer category than before"),
    "lies outside the picture": put("candidates", 0, "box", [0, 0, 900, 5]),
    "a score outside 0 to 1": put("candidates", 0, "score", 7.0),
    "candidates[0].box: [0], a list of 4 is needed": put("candidates", 0, "box", [0]),
    "rows of shape": put("candidates", []),
}


@pytest.mark.parametrize("message", HEADERS)
def test_hostile_headers(saved, message):
    world, _, path = saved
    with pytest.raises(SceneError) as caught:
        world.thinker.restore(rewritten(path, HEADERS[message]))
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_box_that_changed_by_accident(saved):
    """Four bytes of a header: boxes stand in no digest but its own."""
    world, _, path = saved
    with pytest.raises(SceneError, match="its header is not the one that was written"):
        world.thinker.restore(rewritten(path, put("candidates", 0, "box", 2, 64.0), forged=False))


def test_hostile_files(saved, tmp_path):
    world, _, path = saved
    content = path.read_bytes()
    cases = {
        b"": "no saved scene",
        b"\x80\x04K\x01.": "no saved scene",
        MAGIC: "a header of 0 bytes",
        MAGIC + b"\xff\xff\xff\xff{}": "a header of 4,294,967,295 bytes, 1 to 4,000,000",
        MAGIC + (9).to_bytes(4, "little") + b'{"a": NaN': "NaN is not allowed",
        MAGIC + (2).to_bytes(4, "little") + b"\xff\xfe": "codec can't decode",
        MAGIC + (6).to_bytes(4, "little") + b"[1, 2]": "format version None",
        content[:-1]: "It was cut short",
        content + b"\0": "It was cut short or altered",
    }
    for data, message in cases.items():
        path.write_bytes(data)
        with pytest.raises(SceneError) as caught:
            world.thinker.restore(path)
        assert message in str(caught.value)
    for place, message in ((tmp_path / "none", "No such file"), (tmp_path, "no regular file")):
        with pytest.raises(SceneError, match=message):
            world.thinker.restore(place)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SceneError, match="no regular file"):
        world.thinker.restore(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        with pytest.raises(SceneError, match="no regular file"):
            world.thinker.restore(tmp_path / "socket")


def test_rows_that_are_no_numbers(saved):
    world, _, path = saved
    content = path.read_bytes()
    length = int.from_bytes(content[8:12], "little")
    pixels = 100 * 200 * 3
    body = bytearray(content[12 + length :])
    body[pixels : pixels + 4] = np.float32(np.nan).tobytes()
    digest = hashlib.sha256(bytes(body[pixels:])).hexdigest()
    with pytest.raises(SceneError, match="rows that are not finite"):
        world.thinker.restore(rewritten(path, put("rows", "sha256", digest), bytes(body)))


def test_forged_rows_reach_no_other_scene(saved):
    """Rows cannot be checked, so looking at the same picture must not find them."""
    world, scene, path = saved
    content = path.read_bytes()
    length = int.from_bytes(content[8:12], "little")
    pixels = 100 * 200 * 3
    body = bytearray(content[12 + length :])
    body[pixels:] = bytes(len(body) - pixels)
    digest = hashlib.sha256(bytes(body[pixels:])).hexdigest()
    thinker = load(world.directory, threads=1)
    thinker.restore(rewritten(path, put("rows", "sha256", digest), bytes(body)))
    looked = thinker.look(PICTURE, "ball").refer("the red ball")
    assert looked.tokens.reused == 0
    assert looked.token_ids == scene.refer("the red ball").token_ids
