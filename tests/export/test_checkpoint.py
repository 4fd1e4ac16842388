"""Checkpoints: whole, sharded, under both namings; anything damaged or unsafe is refused."""

import json
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLForConditionalGeneration

from rexthinker_edge.export.checkpoint import Checkpoint
from rexthinker_edge.runtime.errors import CheckpointError


def tensors():
    generator = torch.Generator().manual_seed(3)
    return {
        "model.embed_tokens.weight": torch.randn(7, 4, generator=generator).to(torch.bfloat16),
        "model.norm.weight": torch.randn(4, generator=generator),
        "visual.merger.ln_q.weight": torch.randn(3, generator=generator).to(torch.float16),
    }


def newer(name):
    for old, new in (("model.", "model.language_model."), ("visual.", "model.visual.")):
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def shard(directory, named):
    names = list(named)
    files = {"model-00001-of-00002.safetensors": names[:1], "model-00002-of-00002.safetensors": names[1:]}
    for file, members in files.items():
        save_file({name: named[name] for name in members}, directory / file)
    index = {
        "metadata": {},
        "weight_map": {name: file for file, members in files.items() for name in members},
    }
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


@pytest.mark.parametrize("rename", [str, newer])
@pytest.mark.parametrize("write", [lambda d, t: save_file(t, d / "model.safetensors"), shard])
def test_every_form_reads_the_same(tmp_path, rename, write):
    stored = tensors()
    write(tmp_path, {rename(name): tensor for name, tensor in stored.items()})
    read = Checkpoint(tmp_path)
    for name, tensor in stored.items():
        assert name in read
        found = read.tensor(name, tuple(tensor.shape))
        assert found.dtype == str(tensor.dtype).removeprefix("torch.")
        np.testing.assert_array_equal(found.float32(), tensor.float().numpy())
    read.refuse_unused()


def test_a_real_model_saved_by_transformers(exported):
    directory = exported().directory
    stored = load_file(directory / "model.safetensors")
    read = Checkpoint(directory)
    for name, tensor in stored.items():
        older = name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
        found = read.tensor(older, tuple(tensor.shape))
        np.testing.assert_array_equal(found.raw, tensor.view(torch.uint8).reshape(-1).numpy())
    assert not Qwen2_5_VLForConditionalGeneration.from_pretrained(directory).training


def test_tensors_are_views_of_the_file(tmp_path):
    save_file(tensors(), tmp_path / "model.safetensors")
    found = Checkpoint(tmp_path).tensor("model.norm.weight", (4,))
    assert not found.raw.flags.owndata
    assert not found.raw.flags.writeable


def test_progress_and_unused_tensors(tmp_path):
    save_file(tensors(), tmp_path / "model.safetensors")
    seen = []
    read = Checkpoint(tmp_path, lambda *report: seen.append(report))
    read.tensor("model.norm.weight", (4,))
    assert seen == [("model.norm.weight", 16, 16 + 7 * 4 * 2 + 3 * 2)]
    with pytest.raises(
        CheckpointError, match=r"2 tensors have no place .* 'model.embed_tokens.weight' the first"
    ):
        read.refuse_unused()
    read.refuse_unused(["model.embed_tokens.weight", "visual.merger.ln_q.weight"])


def test_missing_and_misshapen_tensors(tmp_path):
    save_file(tensors(), tmp_path / "model.safetensors")
    read = Checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"no tensor 'lm_head.weight'"):
        read.tensor("lm_head.weight", (7, 4))
    with pytest.raises(CheckpointError, match=r"has shape \[4\], the configuration needs \[5\]"):
        read.tensor("model.norm.weight", (5,))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth"])
def test_pickles_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match=f"only '{name}' there, a pickle"):
        Checkpoint(tmp_path)


def test_no_weights_at_all(tmp_path):
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        Checkpoint(tmp_path)


def test_shards_that_do_not_fit_their_index(tmp_path):
    index = shard(tmp_path, tensors())
    path = tmp_path / "model.safetensors.index.json"
    index["weight_map"]["model.extra"] = "model-00001-of-00002.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"has no tensor 'model.extra'"):
        Checkpoint(tmp_path)
    index["weight_map"]["model.extra"] = "../elsewhere.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"the index names '../elsewhere.safetensors'"):
        Checkpoint(tmp_path)
    path.write_text("{}")
    with pytest.raises(CheckpointError, match="weight_map"):
        Checkpoint(tmp_path)


def hostile(header, body=b"\0" * 16):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


ENTRY = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
DAMAGED = {
    "empty": (b"", "header is cut short"),
    "header longer than the file": (struct.pack("<Q", 1 << 40) + b"{}", "header is cut short"),
    "no JSON": (hostile(b"{nonsense}"), "header is no JSON"),
    "data cut short": (hostile({"a": ENTRY}, b"\0" * 15), "lies outside the file"),
    "shape of another size": (hostile({"a": ENTRY | {"shape": [5]}}), "lies outside the file"),
    "overflowing shape": (hostile({"a": ENTRY | {"shape": [1 << 62, 4]}}), "lies outside the file"),
    "negative offset": (hostile({"a": ENTRY | {"data_offsets": [-16, 0]}}), "lies outside the file"),
    "no offsets": (hostile({"a": {"dtype": "F32", "shape": [4]}}), "entry of tensor 'a'"),
    "header is a list": (hostile(b"[]"), "header is no object"),
    "quantised": (hostile({"a": ENTRY | {"dtype": "I8"}}), "tensor 'a' is I8"),
}


@pytest.mark.parametrize("case", list(DAMAGED))
def test_damaged_files(tmp_path, case):
    content, message = DAMAGED[case]
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(tmp_path)
