"""Hub ids: only what is needed comes, whole and as hashed, from where it stopped; or the error helps."""

import hashlib
import inspect
import json
from types import SimpleNamespace

import pytest

from rexthinker_edge.export import hub
from rexthinker_edge.export.hub import DETECTOR_FILES, LANGUAGE_FILES, locate
from rexthinker_edge.runtime.errors import CheckpointError

COMMIT = "c0ffee"


class RefusedError(OSError):
    """Stands for the library's own error."""


class LowerError(Exception):
    """Stands for the error of the HTTP library below, which is no OSError and no RuntimeError."""


class Answer:
    """A streamed answer; breaks off after `limit` bytes."""

    def __init__(self, content, status, limit):
        self.content, self.status_code, self.limit = content, status, limit

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def raise_for_status(self):
        pass

    def iter_bytes(self, size):
        for start in range(0, len(self.content), 7):
            if self.limit is not None and start >= self.limit:
                raise RefusedError("connection reset")
            yield self.content[start : start + 7]


class Hub:
    """A repository in memory, with the calls of huggingface_hub that are used."""

    def __init__(self, files):
        self.files, self.asked, self.limit, self.down = files, [], None, False
        self.errors = SimpleNamespace(HfHubHTTPError=RefusedError, HTTPError=LowerError)
        self.utils = SimpleNamespace(build_hf_headers=dict, http_stream_backoff=self.stream)

    def HfApi(self):  # noqa: N802
        return self

    def hf_hub_url(self, repository, name, revision):
        assert revision == COMMIT
        return name

    def model_info(self, repository, revision, files_metadata):
        if self.down:
            raise self.down("Name or service not known")
        siblings = []
        for name, content in self.files.items():
            large = name.endswith((".safetensors", ".bin"))
            lfs = SimpleNamespace(sha256=hashlib.sha256(content).hexdigest()) if large else None
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            siblings.append(SimpleNamespace(rfilename=name, size=len(content), lfs=lfs, blob_id=blob))
        return SimpleNamespace(sha=COMMIT, siblings=siblings)

    def stream(self, method, name, headers, follow_redirects):
        self.asked.append((name, headers.get("Range")))
        content, status = self.files[name], 200
        if "Range" in headers:
            content, status = content[int(headers["Range"][6:-1]) :], 206
        return Answer(content, status, self.limit)


@pytest.fixture
def remote(monkeypatch):
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    made = Hub({
        "config.json": b"{}", "tokenizer.json": b'{"a": 1}', "model-1.safetensors": b"first shard " * 5,
        "model-2.safetensors": b"second shard", "model.safetensors.index.json": json.dumps(index).encode(),
        "pytorch_model.bin": b"pickle", "modeling_evil.py": b"import os", "README.md": b"hello",
        "extra.safetensors": b"not in the index", "onnx/model.onnx": b"below",
    })  # fmt: skip
    monkeypatch.setattr(hub, "_hub", lambda: made)
    return made


def test_only_what_is_needed(remote, tmp_path):
    reports = []
    found = locate("owner/name@main", LANGUAGE_FILES, lambda *r: reports.append(r), cache=tmp_path)
    assert found == tmp_path / "owner--name" / COMMIT
    wanted = {"config.json", "tokenizer.json", "model.safetensors.index.json"}
    wanted |= {"model-1.safetensors", "model-2.safetensors"}
    assert {path.name for path in found.iterdir()} == wanted
    assert all((found / name).read_bytes() == remote.files[name] for name in wanted)
    assert ("downloading model-1.safetensors", 60, 60) in reports
    remote.asked.clear()
    assert locate("owner/name@main", LANGUAGE_FILES, cache=tmp_path) == found
    assert remote.asked == []


def test_a_broken_download_goes_on(remote, tmp_path):
    remote.limit = 14
    with pytest.raises(CheckpointError, match=r"connection reset.* copy config.json, tokenizer.json"):
        locate("owner/name", LANGUAGE_FILES, cache=tmp_path)
    partial = tmp_path / "owner--name" / COMMIT / "model.safetensors.index.json.incomplete"
    assert partial.stat().st_size == 14
    remote.limit = None
    found = locate("owner/name", LANGUAGE_FILES, cache=tmp_path)
    assert ("model.safetensors.index.json", "bytes=14-") in remote.asked
    assert (found / "model.safetensors.index.json").read_bytes() == remote.files[
        "model.safetensors.index.json"
    ]


def test_other_bytes_are_refused(remote, tmp_path):
    directory = tmp_path / "owner--name" / COMMIT
    directory.mkdir(parents=True)
    (directory / "model-1.safetensors.incomplete").write_bytes(b"another " * 5)
    with pytest.raises(CheckpointError, match=r"model-1.safetensors: the 60 bytes that came do not have the"):
        locate("owner/name", LANGUAGE_FILES, cache=tmp_path)
    assert not (directory / "model-1.safetensors.incomplete").exists()


@pytest.mark.parametrize("kind", [RefusedError, LowerError])
def test_no_network_says_what_to_copy_where(remote, tmp_path, kind):
    remote.down = kind
    with pytest.raises(CheckpointError) as caught:
        locate("IDEA-Research/grounding-dino-tiny", DETECTOR_FILES, cache=tmp_path)
    message = str(caught.value)
    assert message.startswith("IDEA-Research/grounding-dino-tiny: cannot be downloaded (Name or service")
    assert "https://huggingface.co/IDEA-Research/grounding-dino-tiny/tree/main" in message
    assert "give that directory instead of the hub id" in message


def test_the_librarys_own_errors_are_told(monkeypatch, tmp_path):
    """With the real huggingface_hub: the error that its HTTP library raises where there is no network."""
    import huggingface_hub  # noqa: PLC0415
    import huggingface_hub.errors  # noqa: PLC0415

    lower = inspect.getmodule(huggingface_hub.errors.HTTPError)
    unreachable = getattr(lower, "ConnectError", huggingface_hub.errors.HTTPError)

    def model_info(*_, **__):
        raise unreachable("[Errno -2] Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    with pytest.raises(
        CheckpointError, match=r"cannot be downloaded \(\[Errno -2\] Name or service not known"
    ):
        locate("owner/name", LANGUAGE_FILES, cache=tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"pytorch_model.bin": b"x"}, "only 'pytorch_model.bin', a pickle, which can run code when read"),
        ({"config.json": b"{}"}, "no weights; needed model.safetensors"),
        ({"model.safetensors.index.json": b"{}"}, "needed {'weight_map': {name: file}}"),
        ({"model.safetensors.index.json": b'{"weight_map": {"a": "../x"}}'}, "the index names '../x'"),
        ({"model.safetensors.index.json": b'{"weight_map": {"a": "x.bin"}}', "x.bin": b""}, "names 'x.bin'"),
    ],
)
def test_repositories_that_are_refused(remote, tmp_path, files, message):
    remote.files = files
    with pytest.raises(CheckpointError) as caught:
        locate("owner/name", LANGUAGE_FILES, cache=tmp_path)
    assert message in str(caught.value)


@pytest.mark.parametrize("reference", ["no/such/place", "name", "../x/y", "a b/c", "-x/y"])
def test_neither_directory_nor_hub_id(reference):
    with pytest.raises(CheckpointError, match="neither a directory nor a hub id"):
        locate(reference, LANGUAGE_FILES)


def test_a_directory_is_itself(tmp_path):
    assert locate(str(tmp_path), LANGUAGE_FILES) == tmp_path
