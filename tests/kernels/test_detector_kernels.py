"""The detector's operations: definitions by hand and against torch, lowerings against definitions."""

import numpy as np
import pytest
import torch

from rexthinker_edge.kernels.deformable_attention import (
    Levels,
    Spread,
    deformable_attention,
    lower_deformable_attention,
    offset_rows,
)
from rexthinker_edge.kernels.int8_linear import (
    MOST,
    dequantize_channels,
    int8_linear,
    int8_rows_linear,
    lower_even_rows,
    lower_int8_linear,
    lower_int8_rows_linear,
    round_channels,
)
from rexthinker_edge.kernels.layer_norm import layer_norm, lower_layer_norm
from rexthinker_edge.kernels.softmax_attention import (
    lower_row_attention,
    lower_windowed_attention,
    row_attention,
    windowed_attention,
)
from rexthinker_edge.kernels.word_fusion import FusionNames, FusionWeights, lower_word_fusion, word_fusion

CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # sums of up to some hundred float32 products of order 1


def floats(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def test_layer_norm(run_lowering, rng):
    x, weight, bias = floats(rng, 5, 8), floats(rng, 8), floats(rng, 8)
    wanted = layer_norm(x, weight, bias, 1e-5)
    torched = torch.nn.functional.layer_norm(
        torch.from_numpy(x), (8,), *map(torch.from_numpy, (weight, bias))
    )
    np.testing.assert_allclose(wanted, torched.numpy(), **CLOSE)
    made = run_lowering(
        lambda g, n: lower_layer_norm(g, n["x"], n["w"], n["b"], 1e-5), {"x": x, "w": weight, "b": bias}
    )
    np.testing.assert_allclose(made[0], wanted, **CLOSE)


@pytest.mark.parametrize("biased", [False, True])
def test_row_attention(run_lowering, rng, biased):
    q, k, v = floats(rng, 7, 12), floats(rng, 5, 12), floats(rng, 5, 12)
    bias = np.where(rng.random((7, 5)) < 0.4, np.finfo(np.float32).min, 0).astype(np.float32)
    bias[:, 0] = 0
    wanted = row_attention(q, k, v, 3, bias if biased else None)
    split = [torch.from_numpy(x).reshape(len(x), 3, 4).transpose(0, 1)[None] for x in (q, k, v)]
    torched = torch.nn.functional.scaled_dot_product_attention(
        *split, attn_mask=torch.from_numpy(bias) if biased else None
    )
    np.testing.assert_allclose(wanted, torched[0].transpose(0, 1).reshape(7, 12).numpy(), **CLOSE)
    made = run_lowering(
        lambda g, n: lower_row_attention(g, n["q"], n["k"], n["v"], 3, 12, n["b"] if biased else None),
        {"q": q, "k": k, "v": v, "b": bias} if biased else {"q": q, "k": k, "v": v},
    )
    np.testing.assert_allclose(made[0], wanted, **CLOSE)


@pytest.mark.parametrize("masked", [False, True])
def test_windowed_attention_never_leaves_its_window(run_lowering, rng, masked):
    qkv, bias = floats(rng, 3 * 4, 3 * 6), floats(rng, 2, 4, 4)
    mask = np.where(rng.random((3, 1, 4, 4)) < 0.4, -100, 0).astype(np.float32)
    wanted = windowed_attention(qkv, 2, bias, mask if masked else None)
    other = qkv.copy()
    other[4:] += 1
    assert np.array_equal(windowed_attention(other, 2, bias, mask if masked else None)[:4], wanted[:4])
    made = run_lowering(
        lambda g, n: lower_windowed_attention(g, n["x"], 2, (4, 6), n["b"], n.get("m")),
        {"x": qkv, "b": bias} | ({"m": mask} if masked else {}),
    )
    np.testing.assert_allclose(made[0], wanted, **CLOSE)


SPREAD = Spread(heads=2, levels=2, points=3, width=6)
SIDES = [(4, 5), (2, 3)]


def test_one_sample_between_four_cells_by_hand():
    value = np.array([[1.0], [2.0], [3.0], [5.0]], np.float32)  # 2 x 2 cells, one channel
    spread = Spread(heads=1, levels=1, points=1, width=1)
    scores = np.zeros((3, 1), np.float32)
    places = np.array([[0, 0], [-0.5, -0.5], [-1, -1]], np.float32).reshape(3, 2, 1, 1, 1)
    seen = deformable_attention(value, places, scores, [(2, 2)], spread)
    # the middle of all four; the centre of the first; the corner, of which three quarters lie outside
    assert seen[:, 0].tolist() == [2.75, 1.0, 0.25]


def test_deformable_attention_equals_transformers_and_its_lowering(run_lowering, rng):
    from transformers.models.grounding_dino.modeling_grounding_dino import (  # noqa: PLC0415
        MultiScaleDeformableAttention,
    )

    queries, cells = 7, 26
    value, scores = floats(rng, cells, 6), floats(rng, queries, 12)
    offsets = floats(rng, queries, 24)  # a checkpoint's order: heads, levels, points, (x, y)
    base, scale = floats(rng, queries, 2, 1, 1) * 0.5, rng.random((2, 2, 1)).astype(np.float32)
    ordered = offsets[:, offset_rows(SPREAD)]
    places = ordered.reshape(queries, 2, 2, 6) * scale + base
    places = places.reshape(queries, 2, 2, 2, 3)
    wanted = deformable_attention(value, places, scores, SIDES, SPREAD)
    weights = torch.from_numpy(scores).reshape(1, queries, 2, 6).softmax(-1).reshape(1, queries, 2, 2, 3)
    theirs = MultiScaleDeformableAttention()(
        torch.from_numpy(value).reshape(1, cells, 2, 3), torch.tensor(SIDES), SIDES, torch.tensor([0, 20]),
        torch.from_numpy((places.transpose(0, 3, 2, 4, 1) + 1) / 2)[None], weights, 64,
    )  # fmt: skip
    np.testing.assert_allclose(wanted, theirs[0].numpy(), **CLOSE)

    def build(graph, n):
        shapes = tuple(graph.constant(np.array([2, 3, *side], np.int64)) for side in SIDES)
        levels = Levels(graph.constant(np.array([20, 6], np.int64)), shapes)
        return lower_deformable_attention(
            graph, n["value"], n["offsets"], n["scores"], (n["scale"], n["base"]), levels, SPREAD
        )

    made = run_lowering(
        build, {"value": value, "offsets": ordered, "scores": scores, "scale": scale, "base": base}
    )
    np.testing.assert_allclose(made[0], wanted, **CLOSE)


def test_word_fusion_in_the_cheap_order_equals_the_plain_one_and_transformers(run_lowering, rng):
    from transformers import GroundingDinoConfig  # noqa: PLC0415
    from transformers.models.grounding_dino.modeling_grounding_dino import (  # noqa: PLC0415
        GroundingDinoBiMultiHeadAttention,
    )

    config = GroundingDinoConfig(d_model=6, encoder_ffn_dim=16, encoder_attention_heads=4)
    torch.manual_seed(1)
    theirs = GroundingDinoBiMultiHeadAttention(config).eval()
    cells, words = floats(rng, 9, 6), floats(rng, 3, 6)
    names = ("vision_proj", "text_proj", "values_vision_proj", "values_text_proj", "out_vision_proj",
             "out_text_proj")  # fmt: skip
    pairs = []
    for name in names:
        layer = getattr(theirs, name)
        torch.nn.init.normal_(layer.bias)
        pairs.append((layer.weight.detach().numpy(), layer.bias.detach().numpy()))
    gains = floats(rng, 6), floats(rng, 6)
    wanted = word_fusion(cells, words, FusionWeights(*pairs, *gains), 2)
    with torch.no_grad():
        (cell_news, _), (word_news, _) = theirs(torch.from_numpy(cells)[None], torch.from_numpy(words)[None])
    np.testing.assert_allclose(wanted[0], cells + gains[0] * cell_news[0].numpy(), **CLOSE)
    np.testing.assert_allclose(wanted[1], words + gains[1] * word_news[0].numpy(), **CLOSE)

    def build(graph, n):
        stored = [(graph.constant(weight), graph.constant(bias)) for weight, bias in pairs]
        named = FusionNames(*stored, *(graph.constant(gain) for gain in gains))
        return lower_word_fusion(graph, n["cells"], n["words"], named, 2, (6, 8))

    made = run_lowering(build, {"cells": cells, "words": words})
    np.testing.assert_allclose(made[0], wanted[0], **CLOSE)
    np.testing.assert_allclose(made[1], wanted[1], **CLOSE)


def test_pinned_channel_codes():
    weight = np.array([[1.0, -0.25, 0.0], [0.0, 0.0, 0.0]], np.float32)
    rounded = round_channels(weight)
    assert rounded.codes.T.tolist() == [[63, -16, 0], [0, 0, 0]]
    assert rounded.scales.tolist() == [np.float32(1 / 63), 1.0]
    assert np.abs(dequantize_channels(rounded) - weight).max() <= 0.5 / 63


def test_int8_linear_equals_its_lowering_where_products_are_greatest(run_lowering, rng):
    """All codes at their limits and activations at 255: 8 bits of weight would be cut off on AVX2."""
    weight = np.concatenate([np.full((3, 64), 2.0), np.full((3, 64), -1.0), rng.normal(size=(2, 64))])
    rounded, bias = round_channels(weight.astype(np.float32)), floats(rng, 8)
    assert np.abs(rounded.codes).max() == MOST
    x = np.concatenate([np.full((2, 64), 3.0), rng.normal(size=(3, 64))]).astype(np.float32)
    wanted = int8_linear(x, rounded, bias)
    made = run_lowering(
        lambda g, n: lower_int8_linear(
            g, n["x"], g.constant(rounded.codes), g.constant(rounded.scales), g.constant(bias)
        ),
        {"x": x},
    )
    np.testing.assert_allclose(made[0], wanted, rtol=1e-5, atol=1e-4)
    assert np.abs(wanted - (x @ weight.T.astype(np.float32) + bias)).max() < 3.0


def test_int8_by_rows_keeps_a_quiet_row_beside_a_loud_one(run_lowering, rng):
    weight, bias = floats(rng, 8, 64), floats(rng, 8)
    rounded, x = round_channels(weight), floats(rng, 4, 64)
    x[0] *= 1000
    x[3] = 0
    wanted = int8_rows_linear(x, rounded, bias)
    made = run_lowering(
        lambda g, n: lower_int8_rows_linear(
            g, lower_even_rows(g, n["x"]), g.constant(rounded.codes), g.constant(rounded.scales),
            g.constant(bias),
        ),
        {"x": x},
    )  # fmt: skip
    np.testing.assert_allclose(made[0], wanted, rtol=1e-4, atol=1e-4)
    exact = x @ weight.T + bias
    # weights and activations each to half of 1/63 and 1/127 of the greatest, summed over 64 columns
    assert np.abs(wanted - exact)[1:3].max() < 0.5 < np.abs(int8_linear(x, rounded, bias) - exact)[1:3].max()
    assert np.array_equal(wanted[3], bias)
