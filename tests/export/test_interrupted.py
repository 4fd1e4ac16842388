"""Exports that are killed leave the old bundle and are resumed: the short form of slow/kill_export.py."""

import importlib.util
import os
from pathlib import Path

import pytest

from rexthinker_edge.export import parts, pipeline
from rexthinker_edge.export.journal import Journal, difference, held
from rexthinker_edge.runtime.errors import BundleError, OptionError
from rexthinker_edge.runtime.manifest import FileEntry

SCRIPT = Path(__file__).parents[1] / "slow" / "kill_export.py"
KILLS = 3


@pytest.fixture
def script(monkeypatch):
    """The script as a module; what it puts in the pipeline's place is put back."""
    for module, name in ((parts, "write_detector"), (pipeline, "read_geometry")):
        monkeypatch.setattr(module, name, getattr(module, name))
    spec = importlib.util.spec_from_file_location("kill_export", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "kill_export", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_killed_and_resumed(script, tmp_path):
    tally = script.run(tmp_path / "kills", KILLS, seed=1)
    assert tally.old + tally.new + tally.none == KILLS


@pytest.fixture
def staging(tmp_path):
    directory = tmp_path / "staging"
    directory.mkdir()
    return directory


def make_part(journal, staging, content=b"abc", depends=None, calls=None):
    def make():
        (staging / "part.bin").write_bytes(content)
        if calls is not None:
            calls.append(content)
        return FileEntry(7, "value")

    return journal.part("one", FileEntry, ("part",), depends or {}, make)


def test_a_finished_part_is_not_made_again(staging, tmp_path):
    calls = []
    first = Journal(tmp_path / "work", staging, {"v": 1}, resume=False)
    assert make_part(first, staging, calls=calls) == FileEntry(7, "value")
    again = Journal(tmp_path / "work", staging, {"v": 1}, resume=True)
    assert make_part(again, staging, calls=calls) == FileEntry(7, "value")
    assert calls == [b"abc"]
    assert again.entries()["part.bin"].bytes == 3
    make_part(again, staging, b"new", {"bits": 4}, calls)  # another option
    (staging / "part.bin").write_bytes(b"bad")
    make_part(Journal(tmp_path / "work", staging, {"v": 1}, resume=True), staging, b"new", {"bits": 4}, calls)
    assert calls == [b"abc", b"new", b"new"]
    make_part(
        Journal(tmp_path / "work", staging, {"v": 1}, resume=False), staging, b"last", {"bits": 4}, calls
    )
    assert calls[-1] == b"last"


def test_leftovers_are_removed(staging, tmp_path):
    journal = Journal(tmp_path / "work", staging, {}, resume=False)
    make_part(journal, staging)
    (staging / "half.bin").write_bytes(b"half")
    (staging / "folder").mkdir()
    journal.keep_only_finished()
    assert [path.name for path in staging.iterdir()] == ["part.bin"]


def test_another_export_is_not_resumed(staging, tmp_path):
    Journal(tmp_path / "work", staging, {"files": {"a": [1, 2]}}, resume=False)
    with pytest.raises(OptionError) as caught:
        Journal(tmp_path / "work", staging, {"files": {"a": [1, 3]}}, resume=True)
    assert str(caught.value) == (
        "--resume: the interrupted export had files.a [1, 2], now it is [1, 3]; the same program and "
        "unchanged checkpoints are needed. Start afresh: leave --resume out."
    )
    (tmp_path / "work" / "journal.json").write_text("{")
    with pytest.raises(OptionError, match="is no journal of an export"):
        Journal(tmp_path / "work", staging, {}, resume=True)
    assert difference(1, 2) == "a fingerprint 1, now it is 2"


def test_one_export_at_a_time(tmp_path):
    pytest.importorskip("fcntl")
    refused = pytest.raises(BundleError, match="another export to the same place is running")
    with held(tmp_path / "work"), refused, held(tmp_path / "work"):
        pass
    with held(tmp_path / "work"):
        pass
