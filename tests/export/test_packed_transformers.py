"""What is written packed loads in transformers itself and computes what the integers say.

Needs compressed-tensors, or for GPTQ's formats gptqmodel and optimum; without them a test is skipped.
"""

import importlib.util

import numpy as np
import pytest
import torch
from transformers import CompressedTensorsConfig, Qwen2_5_VLForConditionalGeneration

from rexthinker_edge.calibration.gptq import ActOrder, GptqOptions
from rexthinker_edge.export.checkpoint import Checkpoint
from rexthinker_edge.export.config import read_config
from rexthinker_edge.export.gptq_layers import LayerwiseOptions, Sequence, quantise_decoder
from rexthinker_edge.export.packed_checkpoint import PackedFormat
from rexthinker_edge.export.packed_writer import write_packed
from rexthinker_edge.export.quantize import Saved, linear_shapes
from rexthinker_edge.runtime.positions import text_positions

from .conftest import load_reference, make_model

SHAPE = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 104}
EPS = float(np.finfo(np.float32).eps)
HALF = 2.0**-11  # what rounding to float16 may change of a number
LAYERS = 2
SETTINGS = {
    "symmetric": GptqOptions(block=32, symmetric=True, act_order=ActOrder.STATIC),
    "asymmetric": GptqOptions(block=32, act_order=ActOrder.STATIC),
    "act-order": GptqOptions(block=32, act_order=ActOrder.GROUP),
}


def needs(*modules):
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A random checkpoint, tied, and its GPTQ integers in every setting."""
    directory = tmp_path_factory.mktemp("vlm")
    make_model(directory, SHAPE, {}, tied=True)
    checkpoint, config = Checkpoint(directory), read_config(directory).text
    table = checkpoint.tensor("model.embed_tokens.weight", (config.vocab, config.hidden)).float32()
    ids = np.random.default_rng(4).integers(3, 80, (12, 40))
    given = [Sequence(table[row], text_positions(0, 40), np.ones(40, np.float32)) for row in ids]
    found = {}
    for name, rounding in SETTINGS.items():
        scratch = tmp_path_factory.mktemp("integers")
        quantise_decoder(checkpoint, config, given, [40] * 12, LayerwiseOptions(rounding, 8, False), scratch)
        found[name] = Saved(checkpoint, scratch)
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


def compared(made, weights, folder, **how):
    """Logits of what transformers loads, of the dequantised integers, and of the unquantised model."""
    directory, _, config, _ = made
    loaded, told = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, **how
    )
    assert not told["missing_keys"], told
    ids = torch.tensor(np.random.default_rng(2).integers(3, 80, 24))[None]
    with torch.no_grad():
        models = loaded.eval(), dequantised(directory, config, weights), load_reference(directory)
        return [model(input_ids=ids).logits.float() for model in models]


@needs("compressed_tensors")
@pytest.mark.filterwarnings("ignore:You passed `quantization_config`:UserWarning")  # as it is meant
@pytest.mark.parametrize("setting", ["symmetric", "asymmetric"])
def test_transformers_loads_compressed_tensors(made, tmp_path, setting):
    """Symmetric as it is; asymmetric with dequantize=True: docs/quantisation.md says why."""
    _, checkpoint, config, found = made
    symmetric = setting == "symmetric"
    write_packed(checkpoint, config, found[setting], PackedFormat.COMPRESSED, tmp_path / "packed", symmetric)
    how = {} if symmetric else {"quantization_config": CompressedTensorsConfig(dequantize=True)}
    seen, wanted, unquantised = compared(made, found[setting], tmp_path / "packed", **how)
    # The same float32 weights in the same operations: only a weight's last bit may differ, where the loader
    # multiplies code and scale in another order. A layer has some seven products of up to 96 terms.
    tolerance = LAYERS * 7 * 10 * EPS * wanted.abs().max()
    assert (seen - wanted).abs().max() <= tolerance
    assert (seen - unquantised).abs().max() > 1000 * tolerance  # the integers, not what they were made of


@needs("gptqmodel", "optimum")
@pytest.mark.filterwarnings("ignore")  # what the loaders' own modules say when they are imported
@pytest.mark.parametrize(
    ("layout", "setting"),
    [
        (PackedFormat.GPTQ, "symmetric"), (PackedFormat.GPTQ, "asymmetric"),
        (PackedFormat.GPTQ_V2, "asymmetric"), (PackedFormat.GPTQ, "act-order"),
        (PackedFormat.GPTQ_V2, "act-order"),
    ],
)  # fmt: skip
def test_transformers_loads_gptq(made, tmp_path, layout, setting):
    _, checkpoint, config, found = made
    write_packed(checkpoint, config, found[setting], layout, tmp_path / "packed", setting == "symmetric")
    seen, wanted, unquantised = compared(made, found[setting], tmp_path / "packed")
    # The loader's products of integers are float16's: seven a layer, each rounds what goes in and comes out.
    tolerance = LAYERS * 7 * 2 * HALF * wanted.abs().max()
    assert (seen - wanted).abs().max() <= tolerance
    assert (seen - unquantised).abs().max() > 2 * tolerance
