"""Training the scales: what the loss is, that it pays, what stays as it was, and going on after a stop."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rexthinker_edge.calibration.gptq import GptqOptions
from rexthinker_edge.export import tuning
from rexthinker_edge.export.calibrate import CalibrationOptions, check_integers, method, take_options
from rexthinker_edge.export.checkpoint import Checkpoint
from rexthinker_edge.export.config import read_config
from rexthinker_edge.export.embeddings import EmbeddingPrecision
from rexthinker_edge.export.gptq_layers import LayerwiseOptions, Sequence, quantise_decoder
from rexthinker_edge.export.options import ExportOptions, chosen_recipe, described
from rexthinker_edge.export.plan import plan_export
from rexthinker_edge.export.quantize import IntegerRecipe, Precision, Saved, linear_shapes, load_linear
from rexthinker_edge.export.tuning import TuneOptions, dense, scaled, tune_decoder
from rexthinker_edge.runtime.errors import OptionError
from rexthinker_edge.runtime.positions import text_positions

from .conftest import load_reference, make_model
from .test_gptq_layers import with_weights

LENGTH, FIRST = 24, 10
EPS = float(np.finfo(np.float32).eps)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A random model, sequences, and the integers that GPTQ made of it on the first 16 of them."""
    directory = tmp_path_factory.mktemp("vlm")
    make_model(directory, {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 104}, {}, tied=True)
    checkpoint, config = Checkpoint(directory), read_config(directory).text
    table = checkpoint.tensor("model.embed_tokens.weight", (config.vocab, config.hidden)).float32()
    ids = np.random.default_rng(1).integers(3, 80, (24, LENGTH))
    plain = np.ones(LENGTH, np.float32)
    given = [Sequence(table[row], text_positions(0, LENGTH), plain, FIRST) for row in ids]
    scratch = tmp_path_factory.mktemp("integers")
    options = LayerwiseOptions(GptqOptions(block=32, act_order="static"), 8)
    quantise_decoder(checkpoint, config, given[:16], [LENGTH] * 16, options, scratch)
    return directory, checkpoint, config, ids, given, scratch


def copied(scratch, place):
    place.mkdir()
    for path in scratch.glob("*.npz"):
        (place / path.name).write_bytes(path.read_bytes())
    return place


def tuned(made, place, steps, report=None):
    _, checkpoint, config, _, given, scratch = made
    work = place if place.is_dir() else copied(scratch, place)
    options = TuneOptions(steps, rate=3e-3)
    tune_decoder(checkpoint, config, given[:16], [LENGTH] * 16, options, work, work / "tuned", report)
    return Saved(checkpoint, work / "tuned")


def by_definition(made, weights, rows):
    """The loss of these sequences, by transformers: mean KL and relative squared error from FIRST on."""
    directory, _, config, ids, *_ = made
    batch = torch.tensor(ids[rows])
    with torch.no_grad():
        wanted, found = (
            model(input_ids=batch, output_hidden_states=True)
            for model in (load_reference(directory), with_weights(directory, config, weights))
        )
    aim, ours = (out.hidden_states[-1][:, FIRST:] for out in (wanted, found))
    p, q = (torch.log_softmax(out.logits[:, FIRST:].double(), -1) for out in (wanted, found))
    kl = (p.exp() * (p - q)).sum(-1).mean()
    return float(kl + (ours - aim).square().sum() / aim.square().sum())


def test_the_loss_is_its_definition(made, tmp_path):
    _, checkpoint, config, _, given, scratch = made
    work = copied(scratch, tmp_path / "work")
    tuner = tuning._Tuner(checkpoint, config, given[:16], [LENGTH] * 16, TuneOptions(1), work)
    ours = float(tuner.loss([3, 5]).detach())
    # a difference of numbers that agree to about a part in ten, each known to some hundred roundings
    assert ours == pytest.approx(by_definition(made, Saved(checkpoint, scratch), [3, 5]), rel=100 * 10 * EPS)


def test_tuning_brings_unseen_sequences_closer_and_keeps_the_integers(made, tmp_path):
    _, checkpoint, config, _, _, scratch = made
    weights = tuned(made, tmp_path / "work", 60)
    before, after = (by_definition(made, w, range(16, 24)) for w in (Saved(checkpoint, scratch), weights))
    assert after < 0.96 * before
    moved = 0.0
    for name in linear_shapes(config):
        one, other = (load_linear(at, f"model.layers.1.{name}").weight for at in (scratch, weights.directory))
        assert (one.codes == other.codes).all()
        assert (one.zero_points == other.zero_points).all()
        assert (other.scales == other.scales.astype(np.float16)).all()
        moved = max(moved, float(np.abs(other.scales / one.scales - 1).max()))
    assert 0.01 < moved < 60 * 3e-3
    head = "model.embed_tokens.npz"
    assert (scratch / head).read_bytes() == (weights.directory / head).read_bytes()


def test_layer_by_layer_is_the_same_as_all_at_once(made, tmp_path, monkeypatch):
    losses = []
    tuned(made, tmp_path / "memory", 3, lambda _, loss: losses.append(loss))
    monkeypatch.setattr(tuning, "IN_MEMORY_BYTES", 0)
    again = []
    tuned(made, tmp_path / "disk", 3, lambda _, loss: again.append(loss))
    assert again == losses


def test_an_interrupted_run_goes_on_to_the_same_scales(made, tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "SAVED_EVERY", 2)
    whole = tuned(made, tmp_path / "whole", 6)

    def stops(done, _):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuned(made, tmp_path / "broken", 6, stops)
    steps = []
    resumed = tuned(made, tmp_path / "broken", 6, lambda done, _: steps.append(done))
    assert steps == [5, 6]
    for path in whole.directory.glob("*.npz"):
        assert path.read_bytes() == (resumed.directory / path.name).read_bytes()


def test_scales_stay_float16_numbers_and_pass_their_gradient_on():
    shares = torch.tensor([[0.0, 0.25, -0.1]], requires_grad=True)
    found = scaled(torch.tensor([[0.5, 1.0, 0.3]]), shares)
    assert found.tolist() == [[0.5, 1.25, float(np.float16(0.27))]]
    found.sum().backward()
    assert shares.grad.tolist() == [[0.5, 1.0, pytest.approx(0.3)]]


def test_columns_in_another_order_are_put_back(made):
    linear = load_linear(made[-1], "model.layers.0.mlp.down_proj")
    order = np.random.default_rng(3).permutation(96)
    turned = type(linear)(linear.weight, order)
    shares = torch.zeros(linear.weight.scales.shape)
    assert np.array_equal(dense(turned, shares).numpy(), turned.dense())


def test_wide_layers_take_eight_bits(made, tmp_path):
    _, checkpoint, config, _, given, _ = made
    options = LayerwiseOptions(GptqOptions(block=32), 8, wide=("v_proj",))
    quantise_decoder(checkpoint, config, given[:4], [LENGTH] * 4, options, tmp_path)
    bits = {
        name: load_linear(tmp_path, f"model.layers.0.{name}").weight.bits for name in linear_shapes(config)
    }
    assert [name for name, count in bits.items() if count == 8] == ["self_attn.v_proj"]
    assert set(bits.values()) == {4, 8}
    assert IntegerRecipe(wide=("v_proj",)).bits_of("model.layers.3.self_attn.v_proj") == 8
    assert IntegerRecipe(wide=("v_proj",)).bits_of("model.layers.3.self_attn.q_proj") == 4


def test_a_bundle_says_what_is_wide_and_how_it_was_tuned(made, tmp_path):
    """From the options to the words of the manifest and the bytes of the plan."""
    _, checkpoint, config, *_ = made
    options = ExportOptions(precision=Precision.INT4, int8_layers=("v_proj", "k_proj"))
    recipe = chosen_recipe(config, options)
    assert recipe.wide == ("k_proj", "v_proj")
    words = described(recipe, "bfloat16", method="GPTQ, scales tuned in 5 steps")["decoder.onnx"]
    assert words.startswith("int4 (k_proj, v_proj int8) GPTQ, scales tuned in 5 steps, block 32")
    plans = [
        plan_export(checkpoint, tmp_path, config, made_so, EmbeddingPrecision.KEPT, 8).bytes
        for made_so in (recipe, replace(recipe, wide=()))
    ]
    # 2 layers, 2 projections of 32 x 64: half a byte more for a weight and for each block's zero point
    assert plans[0] - plans[1] == 2 * 2 * 32 * (64 // 2 + 1)


def test_what_cannot_be_is_refused(made, tmp_path):
    config = made[2]
    with pytest.raises(
        OptionError, match="int8_layers: 'proj', needed some of q_proj, k_proj, v_proj, o_proj"
    ):
        chosen_recipe(config, ExportOptions(precision=Precision.INT4, int8_layers=("proj",)))
    for precision in (Precision.FP32, Precision.INT8):
        with pytest.raises(OptionError, match=f"'v_proj', of no use with precision {precision.value}, int4"):
            chosen_recipe(config, ExportOptions(precision=precision, int8_layers=("v_proj",)))
    with pytest.raises(
        OptionError, match=r"tune: 0 steps of 4 samples at a rate of 0\.001; needed 1 or more"
    ):
        TuneOptions(0)
    with pytest.raises(OptionError, match="tune: -1 steps on 0 samples, needed 0 or more"):
        CalibrationOptions("workbench:easy", tune=-1)
    chosen = {"calibration": None, "samples": 1, "calibration_seed": 0, "act_order": "static"}
    chosen |= {"symmetric": False, "damping": 0.01, "no_correction": False, "calibration_device": "cpu"}
    with pytest.raises(OptionError, match="tune: 5 steps, but no data to tune on"):
        take_options(chosen | {"tune": 5, "tune_samples": 0})
    given = CalibrationOptions("workbench:easy", tune=5)
    assert method(None, given).endswith(
        "act-order static, corrected for drift, scales tuned in 5 steps on 128"
    )
    assert [replace(given, samples=8, tune_samples=n).items for n in (0, 12)] == [20, 12]
    with pytest.raises(OptionError, match="packed_dir: v_proj in 8 bits, one width for all layers"):
        check_integers(None, IntegerRecipe(wide=("v_proj",)), given, tmp_path / "packed")
