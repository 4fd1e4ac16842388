"""What is written packed loads in transformers itself and computes what the integers say.

Needs compressed-tensors; without it the module is skipped.
"""

import numpy as np
import pytest
import torch

from rexthinker_edge.calibration.gptq import ActOrder, GptqOptions
from rexthinker_edge.export.checkpoint import Checkpoint
from rexthinker_edge.export.config import read_config
from rexthinker_edge.export.gptq_layers import LayerwiseOptions, Sequence, quantise_decoder
from rexthinker_edge.export.packed_checkpoint import PackedFormat, write_packed
from rexthinker_edge.export.quantize import Saved, linear_shapes
from rexthinker_edge.runtime.positions import text_positions

from .conftest import load_reference, make_model

pytest.importorskip("compressed_tensors")

from transformers import CompressedTensorsConfig, Qwen2_5_VLForConditionalGeneration  # noqa: E402

SHAPE = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 104}
EPS = float(np.finfo(np.float32).eps)
LAYERS = 2


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A random checkpoint, tied, and its GPTQ integers, symmetric and not."""
    directory = tmp_path_factory.mktemp("vlm")
    make_model(directory, SHAPE, {}, tied=True)
    checkpoint, config = Checkpoint(directory), read_config(directory).text
    table = checkpoint.tensor("model.embed_tokens.weight", (config.vocab, config.hidden)).float32()
    ids = np.random.default_rng(4).integers(3, 80, (12, 40))
    given = [Sequence(table[row], text_positions(0, 40), np.ones(40, np.float32)) for row in ids]
    found = {}
    for symmetric in (True, False):
        scratch = tmp_path_factory.mktemp("integers")
        rounding = GptqOptions(block=32, symmetric=symmetric, act_order=ActOrder.STATIC)
        quantise_decoder(checkpoint, config, given, [40] * 12, LayerwiseOptions(rounding, 8, False), scratch)
        found[symmetric] = Saved(checkpoint, scratch)
    return directory, checkpoint, config, found


def dequantised(directory, config, weights):
    """The unquantised checkpoint's model with the integers' own values in place of its weights."""
    model = load_reference(directory)
    with torch.no_grad():
        for number, layer in enumerate(model.model.language_model.layers):
            for name, shape in linear_shapes(config).items():
                dense = weights.linear(f"model.layers.{number}.{name}", shape).dense()
                layer.get_submodule(name).weight.copy_(torch.from_numpy(dense))
        head = weights.linear("model.embed_tokens", (config.vocab, config.hidden), head=True)
        model.lm_head.weight = torch.nn.Parameter(torch.from_numpy(head.dense()))
    return model


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`:UserWarning")  # as it is meant
@pytest.mark.parametrize("symmetric", [True, False])
def test_transformers_loads_compressed_tensors(made, tmp_path, symmetric):
    """Symmetric as it is; asymmetric with dequantize=True: docs/quantisation.md says why."""
    directory, checkpoint, config, found = made
    weights = found[symmetric]
    write_packed(checkpoint, config, weights, PackedFormat.COMPRESSED, tmp_path / "packed", symmetric)
    how = {} if symmetric else {"quantization_config": CompressedTensorsConfig(dequantize=True)}
    loaded = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        tmp_path / "packed", dtype=torch.float32, **how
    ).eval()
    ids = torch.tensor(np.random.default_rng(2).integers(3, 80, 24))[None]
    with torch.no_grad():
        wanted = dequantised(directory, config, weights)(input_ids=ids).logits
        unquantised = load_reference(directory)(input_ids=ids).logits
        seen = loaded(input_ids=ids).logits
    # The same float32 weights in the same operations: only a weight's last bit may differ, where the loader
    # multiplies code and scale in another order. A layer has some seven products of up to 96 terms.
    tolerance = LAYERS * 7 * 10 * EPS * wanted.abs().max()
    assert (seen - wanted).abs().max() <= tolerance
    assert (seen - unquantised).abs().max() > 1000 * tolerance  # the integers, not what they were made of
