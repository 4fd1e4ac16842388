"""Integers in others' file formats: by hand, there and back, and through a whole checkpoint."""

import json

import numpy as np
import pytest

from rexthinker_edge.export import packed
from rexthinker_edge.export.checkpoint import Checkpoint
from rexthinker_edge.export.config import read_config
from rexthinker_edge.export.decoder_graph import write_decoder
from rexthinker_edge.export.packed_checkpoint import PackedFormat, open_weights, packed_format
from rexthinker_edge.export.packed_writer import write_packed
from rexthinker_edge.export.quantize import (
    IntegerRecipe,
    QuantisedLinear,
    Saved,
    column_codes,
    linear_shapes,
    load_linear,
    regrouped,
    save_linear,
)
from rexthinker_edge.runtime.errors import CheckpointError, ConfigError, OptionError

from .conftest import make_model

SHAPE = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 104}


def linear(rng, rows, columns, bits=4, block=32, act_order=False, symmetric=False, group=None):
    """Random integers with float16 scales; zero points reach both ends, where conventions differ."""
    top = 2**bits
    codes = rng.integers(0, top, (rows, columns)).astype(np.uint8)
    group = block if group is None else group
    groups = 1 if group < 0 else -(-columns // group)
    scales = rng.random((rows, groups)).astype(np.float16).astype(np.float32) + np.float32(2**-10)
    scales = scales.astype(np.float16).astype(np.float32)
    zeros = rng.integers(0, top, (rows, groups)).astype(np.uint8)
    zeros[0, 0], zeros[1, 0] = 0, top - 1
    if symmetric:
        zeros[:] = top // 2
    group_of = np.zeros(columns, np.int64) if group < 0 else np.arange(columns) // group
    if act_order:
        group_of = rng.permutation(group_of)
    return regrouped(codes, group_of, scales, zeros, bits, group)


def equal(ours, theirs):
    """The same integers for the same inputs, and the same numbers."""
    same = [a.tolist() == b.tolist() for a, b in zip(column_codes(ours), column_codes(theirs), strict=True)]
    grids = (ours.weight.scales == theirs.weight.scales).all()
    return all(same) and grids and (ours.weight.zero_points == theirs.weight.zero_points).all()


def gptq_by_definition(arrays, bits, version):
    """Dequantise by the format's own words, one number at a time: (in, out)."""
    mask, fields = 2**bits - 1, 32 // bits
    columns, rows = len(arrays["g_idx"]), arrays["scales"].shape[1]
    words, zeros = arrays["qweight"].view(np.uint32), arrays["qzeros"].view(np.uint32)
    dense = np.empty((columns, rows))
    for i in range(columns):
        group = arrays["g_idx"][i]
        for o in range(rows):
            code = int(words[i // fields, o]) >> (bits * (i % fields)) & mask
            zero = int(zeros[group, o // fields]) >> (bits * (o % fields)) & mask
            dense[i, o] = float(arrays["scales"][group, o]) * (code - zero - (version == 1))
    return dense


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group", [32, 64, 128, -1])
def test_gptq_there_and_back(version, bits, act_order, symmetric, group):
    rng = np.random.default_rng(4)
    made = linear(rng, 16, 256, bits, group, act_order and group > 0, symmetric, group)
    arrays = packed.gptq_arrays(made, version)
    assert {name: (a.dtype.name, a.shape) for name, a in arrays.items()} == {
        "qweight": ("int32", (256 * bits // 32, 16)), "g_idx": ("int32", (256,)),
        "qzeros": ("int32", (256 // made.weight.block, 16 * bits // 32)),
        "scales": ("float16", (256 // made.weight.block, 16)),
    }  # fmt: skip
    found = packed.read_gptq("x", arrays, (16, 256), version)
    assert equal(found, made)
    assert (found.order is not None) == (act_order and group > 0)
    np.testing.assert_array_equal(found.dense(), made.dense())
    if version == 2 or symmetric:  # version 1 has no word for a zero point of 0 but the borrow
        np.testing.assert_allclose(gptq_by_definition(arrays, bits, version).T, made.dense(), rtol=1e-6)


def test_gptq_pinned():
    """Two outputs of eight inputs, by hand: codes 0 … 7 and 15 … 8; zero points 8 and 3, kept as 7 and 2."""
    arrays = {
        "qweight": np.array([[0x76543210, 0x89ABCDEF - (1 << 32)]], np.int64).astype(np.int32),
        "qzeros": np.array([[0x27]], np.int32),
        "scales": np.array([[0.5, 0.25]], np.float32),
        "g_idx": np.zeros(8, np.int32),
    }
    found = packed.read_gptq("x", arrays, (2, 8), 1)
    assert found.dense()[0].tolist() == [0.5 * (k - 8) for k in range(8)]
    assert found.dense()[1].tolist() == [0.25 * (15 - k - 3) for k in range(8)]
    assert packed.read_gptq("x", arrays, (2, 8), 2).dense()[1, 0] == 0.25 * (15 - 2)


def test_zero_points_of_zero_survive_version_1_by_the_borrow():
    """Ones are subtracted from whole words, so 0 becomes 15 and takes one more from its neighbour."""
    made = linear(np.random.default_rng(0), 8, 32)
    made.weight.zero_points[:, 0] = [0, 0, 5, 0, 15, 0, 1, 0]
    arrays = packed.gptq_arrays(made, 1)
    word = (0x010F0500 - 0x11111111) % 2**32  # the zero points, the first one lowest, less eight ones
    assert word == 0xEFFDF3EF
    assert int(arrays["qzeros"].view(np.uint32)[0, 0]) == word
    assert equal(packed.read_gptq("x", arrays, (8, 32), 1), made)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_compressed_there_and_back(bits, symmetric):
    rng = np.random.default_rng(5)
    made = linear(rng, 12, 96, bits, symmetric=symmetric)
    arrays = packed.compressed_arrays(made, symmetric)
    assert arrays["weight_packed"].shape == (12, 96 * bits // 32)
    assert ("weight_zero_point" in arrays) != symmetric
    assert equal(packed.read_compressed("x", arrays, (12, 96)), made)
    # by the format's words: codes are signed, stored plus half their range
    word = int(arrays["weight_packed"].view(np.uint32)[3, 0])
    signed = (word & (2**bits - 1)) - 2 ** (bits - 1)
    assert signed == int(made.weight.codes[3, 0]) - 2 ** (bits - 1)
    mixed = linear(rng, 12, 96, bits, act_order=True)
    codes, group_of = column_codes(mixed)
    arrays = packed.compressed_arrays(QuantisedLinear(mixed.weight), False)
    arrays |= {"weight_packed": packed.pack_words(codes, bits), "weight_g_idx": group_of.astype(np.int32)}
    assert equal(packed.read_compressed("x", arrays, (12, 96)), mixed)  # as older versions grouped
    with pytest.raises(OptionError, match="permuted; needed whole neighbouring blocks"):
        packed.compressed_arrays(mixed, False)


def test_saved_there_and_back(tmp_path):
    for number, act_order in enumerate((False, True)):
        made = linear(np.random.default_rng(6), 8, 80, act_order=act_order)
        save_linear(tmp_path, f"layer.{number}", made)
        assert equal(load_linear(tmp_path, f"layer.{number}"), made)


def test_layers_that_do_not_fit_are_refused():
    made = linear(np.random.default_rng(7), 8, 64)
    arrays = packed.gptq_arrays(made, 1)
    with pytest.raises(CheckpointError, match=r"x: qweight .* needed 4- or 8-bit codes of a layer of 8 x 32"):
        packed.read_gptq("x", arrays, (8, 32), 1)
    uneven = arrays | {"g_idx": np.zeros(64, np.int32)}
    with pytest.raises(CheckpointError, match="64 columns in 2 groups, needed groups of equal size"):
        packed.read_gptq("x", uneven, (8, 64), 1)
    with pytest.raises(OptionError, match="a layer of 3 x 64, needed multiples of 8"):
        packed.gptq_arrays(linear(np.random.default_rng(7), 3, 64), 1)
    odd = QuantisedLinear(type(made.weight)(**{**vars(made.weight), "scales": made.weight.scales * 1.0001}))
    with pytest.raises(OptionError, match="scales are no float16 numbers"):
        packed.gptq_arrays(odd, 1)


@pytest.fixture
def integers(tmp_path):
    """A random tied checkpoint and random integers for all of it."""
    directory, saved = tmp_path / "vlm", tmp_path / "saved"
    make_model(directory, SHAPE, {}, tied=True)
    saved.mkdir()
    config, checkpoint = read_config(directory).text, Checkpoint(directory)

    def fill(act_order=False, symmetric=False):
        rng = np.random.default_rng(9)
        for number in range(config.layers):
            for name, (rows, columns) in linear_shapes(config).items():
                made = linear(rng, rows, columns, act_order=act_order, symmetric=symmetric)
                save_linear(saved, f"model.layers.{number}.{name}", made)
        head = linear(rng, config.vocab, config.hidden, 8, symmetric=symmetric)
        save_linear(saved, "model.embed_tokens", head)
        return config, checkpoint, Saved(checkpoint, saved)

    return fill


@pytest.mark.parametrize("layout", list(PackedFormat))
@pytest.mark.parametrize("act_order", [False, True])
def test_the_same_graph_after_every_path(integers, tmp_path, layout, act_order):
    """Own integers, and the same read back from a checkpoint: not one byte of the decoder differs."""
    if layout is PackedFormat.COMPRESSED and act_order:
        return
    symmetric = layout is PackedFormat.COMPRESSED
    config, checkpoint, saved = integers(act_order, symmetric)
    out, recipe = tmp_path / "packed", IntegerRecipe(block=32)
    write_packed(checkpoint, config, saved, layout, out, symmetric, head_integers=True)
    assert packed_format(out) is layout
    again = read_config(out).text
    assert not again.tied  # the output layer has its own integers now
    imported = open_weights(Checkpoint(out), layout, recipe)
    for name, source, weights, shape in (
        ("own", checkpoint, saved, config), ("read", imported.checkpoint, imported, again),
    ):  # fmt: skip
        (tmp_path / name).mkdir()
        write_decoder(source, shape, tmp_path / name, 16, recipe, weights=weights)
    for file in ("decoder.onnx.data", "embeddings.bin"):
        assert (tmp_path / "own" / file).read_bytes() == (tmp_path / "read" / file).read_bytes()
    imported.checkpoint.refuse_unused(prefix="model.")


def test_configurations(tmp_path):
    def state(quantisation, name="config.json"):
        (tmp_path / "config.json").write_text("{}")
        body = {"quantization_config": quantisation} if name == "config.json" else quantisation
        (tmp_path / name).write_text(json.dumps(body))
        return packed_format(tmp_path)

    assert state(None) is None
    assert state({"quant_method": "gptq", "bits": 4}) is PackedFormat.GPTQ
    assert state({"quant_method": "gptq", "bits": 8, "checkpoint_format": "gptq_v2"}) is PackedFormat.GPTQ_V2
    for wrong, told in [
        ({"quant_method": "awq"}, "'quant_method' is 'awq'"),
        ({"quant_method": "gptq", "bits": 3}, "'bits' is 3"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "'marlin'"),
        ({"quant_method": "gptq", "bits": 4, "pack_dtype": "int16"}, "'int16'"),
        ({"quant_method": "compressed-tensors", "format": "float-quantized"}, "'float-quantized'"),
    ]:
        with pytest.raises(ConfigError, match=told):
            state(wrong)
    assert state({"bits": 4, "group_size": 128}, "quantize_config.json") is PackedFormat.GPTQ
