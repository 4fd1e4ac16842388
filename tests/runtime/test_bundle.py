"""Bundles are complete, unaltered and safe, or refused by name; and written whole or not at all."""

import hashlib
import json
import os
from dataclasses import replace

import pytest

from rexthinker_edge.runtime import bundle as bundles
from rexthinker_edge.runtime import manifest as manifests
from rexthinker_edge.runtime.bundle import open_bundle, seal, staged
from rexthinker_edge.runtime.errors import BundleError
from rexthinker_edge.runtime.strict_json import to_json
from rexthinker_edge.runtime.thinker import load


@pytest.fixture
def directory(sealed_bundle):
    return sealed_bundle


def edit(directory, change):
    """Change the parsed manifest and write it back."""
    file = directory / "manifest.json"
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def refusal(directory, hashes=False) -> str:
    with pytest.raises(BundleError) as caught:
        open_bundle(directory, hashes)
    return str(caught.value)


def test_opened(directory):
    opened = open_bundle(directory, hashes=True)
    assert opened.manifest.name == "stand-in"
    assert opened.file("vision.onnx") == directory / "vision.onnx"
    assert set(opened.manifest.files) == set(manifests.REQUIRED)
    entry = opened.manifest.files["decoder.onnx"]
    assert entry.sha256 == hashlib.sha256(b"stand-in for decoder.onnx").hexdigest()
    assert to_json(opened.manifest) == json.loads((directory / "manifest.json").read_text())


def test_the_digest_is_of_the_canonical_manifest(directory):
    value = json.loads((directory / "manifest.json").read_text())
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    assert open_bundle(directory).digest == hashlib.sha256(canonical).hexdigest()
    edit(directory, lambda value: None)  # other white space, the same meaning
    assert open_bundle(directory).digest == hashlib.sha256(canonical).hexdigest()
    edit(directory, lambda value: value.update(name="other"))
    assert open_bundle(directory).digest != hashlib.sha256(canonical).hexdigest()


def test_missing_extra_and_altered_files(directory):
    vision = directory / "vision.onnx"
    whole = vision.read_bytes()
    vision.unlink()
    assert refusal(directory) == (
        "stand-in/vision.onnx: missing, the manifest lists it. Copy the bundle again."
    )
    vision.write_bytes(whole[:-1])
    assert refusal(directory) == (
        f"stand-in/vision.onnx: {len(whole) - 1} bytes, the manifest says {len(whole)}. "
        "The copy was cut short or altered: copy the bundle again."
    )
    vision.write_bytes(whole[:-1] + b"?")
    assert "stand-in/vision.onnx: SHA-256 " in refusal(directory)
    vision.write_bytes(whole)
    (directory / "notes.txt").write_text("hello")
    assert refusal(directory) == (
        "stand-in/notes.txt: not in the manifest, nothing else may stand in a bundle. Move it elsewhere."
    )
    (directory / "notes.txt").unlink()
    assert open_bundle(directory)


def test_large_files_are_hashed_only_when_asked(directory, monkeypatch):
    monkeypatch.setattr(bundles, "ALWAYS_HASHED_BYTES", 3)
    vision = directory / "vision.onnx"
    vision.write_bytes(vision.read_bytes()[:-1] + b"?")
    assert open_bundle(directory)
    assert "stand-in/vision.onnx: SHA-256 " in refusal(directory, hashes=True)


def test_links_directories_and_devices_are_no_files(directory, tmp_path):
    vision = directory / "vision.onnx"
    outside = tmp_path / "outside.onnx"
    vision.rename(outside)
    vision.symlink_to(outside)
    assert refusal(directory).startswith(
        "stand-in/vision.onnx: a link, directory or device, a regular file is"
    )
    vision.unlink()
    vision.mkdir()
    assert "a link, directory or device" in refusal(directory)
    vision.rmdir()
    os.mkfifo(vision)
    assert "a link, directory or device" in refusal(directory)


@pytest.mark.parametrize(
    "name",
    ["../vision.onnx", "/etc/passwd", "a/b.onnx", "a\\b.onnx", "..", ".", "", ".hidden", "C:x", "con",
     "NUL.onnx",
     "lpt1.bin", "a" * 101, "é.onnx", "a b", "x\n", "a.", "x\0y"],
)  # fmt: skip
def test_names_that_could_leave_the_directory(directory, name):
    edit(directory, lambda value: value["files"].update({name: {"bytes": 0, "sha256": "0" * 64}}))
    message = refusal(directory)
    assert message.startswith(f"stand-in/manifest.json: file name {name!r}, a plain name inside the bundle")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(format_version=2), "format version 2, this program reads up to 1. Update"),
        (lambda v: v.update(format_version=2, novelty=1), "format version 2, this program reads up to 1"),
        (lambda v: v.update(format_version=0), "format version 0, 1 is needed"),
        (lambda v: v.update(format_version="1"), "format version '1', 1 is needed"),
        (lambda v: v.update(format_version=True), "format_version: True, an integer is needed"),
        (lambda v: v.pop("format_version"), "format version None, 1 is needed"),
        (lambda v: v.update(novelty=1), "unknown key novelty. It was edited or"),
        (lambda v: v["decoder"].update(rope_scale=1), "unknown key decoder.rope_scale"),
        (lambda v: v["files"]["vision.onnx"].update(url="http://x"), "unknown key files.vision.onnx.url"),
        (lambda v: v.pop("vision"), "missing key vision"),
        (lambda v: v["prompt"].pop("wording"), "missing key prompt.wording"),
        (lambda v: v["prompt"].update(wording="shout"), "prompt.wording: 'shout', one of detect, locate is"),
        (lambda v: v["decoder"].update(layers=1.0), "decoder.layers: 1.0, an integer is needed"),
        (lambda v: v["decoder"].update(layers=True), "decoder.layers: True, an integer is needed"),
        (lambda v: v["decoder"].update(rope_theta="1"), "decoder.rope_theta: '1', a number is needed"),
        (lambda v: v["decoder"].update(mrope_section=[1]), "decoder.mrope_section: [1], a list of 3"),
        (lambda v: v.update(name=None), "name: None, text is needed"),
        (lambda v: v.update(files=[]), "files: [], an object is needed"),
        (lambda v: v.update(targets="cpu"), "targets: 'cpu', a list is needed"),
        (lambda v: v["tokens"].update(eos=[]), "tokens.eos is empty"),
        (lambda v: v["prompt"].update(max_pixels=1), "pixel or token limits are not positive"),
        (lambda v: v["prompt"].update(max_new_tokens=0), "pixel or token limits are not positive"),
        (lambda v: v["files"].pop("decoder.onnx"), "lists no file decoder.onnx"),
        (lambda v: v["files"]["vision.onnx"].update(bytes=-1), "the entry of vision.onnx"),
        (lambda v: v["files"]["vision.onnx"].update(sha256="x"), "the entry of vision.onnx is"),
        (lambda v: v["files"].update({"Vision.onnx": v["files"]["vision.onnx"]}), "two file names differ"),
        (lambda v: v["files"].update({"manifest.json": v["files"]["vision.onnx"]}), "of manifest.json is"),
    ],
)  # fmt: skip
def test_manifests_that_are_refused(directory, change, message):
    edit(directory, change)
    assert refusal(directory).startswith("stand-in/manifest.json: ")
    assert message in refusal(directory)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[1]", "format version None"),
        (b"\xff", "'utf-8' codec can't decode"),
        (b'{"format_version": 1, "format_version": 1}', "key format_version is written twice"),
        (b'{"format_version": NaN}', "NaN is not allowed"),
        (b'{"a":' * 100_000, "nested too deep"),
        (b" " * 1_000_001, "1,000,001 bytes, at most 1,000,000 are allowed"),
    ],
)
def test_manifests_that_are_none(directory, content, message):
    (directory / "manifest.json").write_bytes(content)
    assert message in refusal(directory)


def test_no_bundle_at_all(tmp_path, directory):
    assert "none: no such directory, a bundle is needed. Check the path" in refusal(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "empty/manifest.json: missing, a bundle has one" in refusal(tmp_path / "empty")
    copy = tmp_path / "copy.json"
    (directory / "manifest.json").rename(copy)
    (directory / "manifest.json").symlink_to(copy)
    assert "manifest.json: missing, a bundle has one" in refusal(directory)


def fill(partial, directory, name="stand-in"):
    """Copy a bundle's files and seal them under another name."""
    manifest = open_bundle(directory).manifest
    for file in manifest.files:
        (partial / file).write_bytes((directory / file).read_bytes())
    return seal(partial, replace(manifest, name=name))


def spoil(partial):
    """Write half a file, then fail."""
    (partial / "vision.onnx").write_bytes(b"half")
    _ = 1 / 0


def test_written_whole(directory, tmp_path):
    target = tmp_path / "made" / "new"
    with staged(target) as partial:
        assert partial.parent == target.parent
        sealed = fill(partial, directory, "new")
        assert not target.exists()
    assert open_bundle(target, hashes=True).manifest == sealed
    assert [item.name for item in target.parent.iterdir()] == ["new"]


def test_a_failure_leaves_what_was_there(directory, tmp_path):
    target = tmp_path / "new"
    with pytest.raises(ZeroDivisionError), staged(target) as partial:
        spoil(partial)
    assert not target.exists()
    before = open_bundle(directory).digest
    with pytest.raises(BundleError, match="missing, a bundle has one"), staged(directory, overwrite=True):
        pass  # never sealed
    assert open_bundle(directory, hashes=True).digest == before
    assert sorted(item.name for item in directory.parent.iterdir()) == ["stand-in"]


def test_only_a_bundle_is_replaced_and_only_when_asked(directory, tmp_path):
    with pytest.raises(BundleError, match="stand-in: exists already"), staged(directory):
        pass
    with staged(directory, overwrite=True) as partial:
        fill(partial, directory, "second")
    assert open_bundle(directory, hashes=True).manifest.name == "second"
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    with pytest.raises(BundleError, match="precious: exists already"), staged(precious, overwrite=True):
        pass
    assert (precious / "thesis.txt").read_text() == "years of work"


def test_a_partial_directory_can_be_kept(directory, tmp_path):
    target = tmp_path / "new"
    with pytest.raises(ZeroDivisionError), staged(target, keep=True) as partial:
        spoil(partial)
    with staged(target, keep=True) as again:
        assert again == partial
        assert (again / "vision.onnx").read_bytes() == b"half"
        fill(again, directory)
    assert open_bundle(target)


def test_a_graph_that_cannot_be_opened_is_named(sealed_bundle):
    with pytest.raises(
        BundleError, match=r"stand-in/\w+.onnx: .* an ONNX graph with its weights inside"
    ) as caught:
        load(sealed_bundle, threads=1)
    assert str(caught.value).endswith(". Do not use this bundle, or export it again.")
