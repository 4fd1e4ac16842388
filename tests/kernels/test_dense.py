"""Linear, norm, activations, patch embedding: definition against torch, lowering against definition."""

import numpy as np
import pytest
import torch

from rexthinker_edge.kernels.bfloat16 import from_float32, to_float32
from rexthinker_edge.kernels.gelu import gelu, lower_gelu
from rexthinker_edge.kernels.linear import linear, lower_linear
from rexthinker_edge.kernels.patch_embed import lower_patch_embed, patch_embed
from rexthinker_edge.kernels.rms_norm import lower_rms_norm, lower_skip_rms_norm, rms_norm
from rexthinker_edge.kernels.swiglu import lower_swiglu, swiglu

EPS = float(np.finfo(np.float32).eps)


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def test_linear(rng, run_lowering):
    x, weight, bias = normal(rng, 2, 5, 48), normal(rng, 7, 48), normal(rng, 7)
    y = linear(x, weight, bias)
    # A dot product of n terms in any order is off by at most n * eps * sum |x||w|, twice for two of them.
    bound = 2 * 48 * EPS * (np.abs(x) @ np.abs(weight).T).max()
    torch_y = torch.nn.functional.linear(*map(torch.tensor, (x, weight, bias))).numpy()
    assert np.abs(y - torch_y).max() <= bound
    build = lambda g, n: lower_linear(g, n["x"], n["w"], n["b"])  # noqa: E731
    (lowered,) = run_lowering(build, {"x": x, "w": weight, "b": bias})
    assert np.abs(y - lowered).max() <= bound


def test_linear_pinned():
    weight = np.array([[1, 2], [3, 4], [5, 6]], np.float32)  # (out, in) as stored
    assert linear(np.array([[1, 10]], np.float32), weight, np.float32([0, 0, 1])).tolist() == [[21, 43, 66]]


@pytest.mark.parametrize("epsilon", [1e-6, 1e-2])
def test_rms_norm(rng, run_lowering, epsilon):
    x, skip, weight = normal(rng, 1, 6, 64), normal(rng, 1, 6, 64), normal(rng, 64)
    y = rms_norm(x, weight, epsilon)
    torch_y = torch.nn.functional.rms_norm(torch.tensor(x), (64,), torch.tensor(weight), epsilon).numpy()
    # mean of 64 squares, root, quotient, product: (64 + 4) roundings of a value |y|, twice for two of them.
    bound = 2 * (64 + 4) * EPS * np.abs(y).max()
    assert np.abs(y - torch_y).max() <= bound
    (lowered,) = run_lowering(lambda g, n: lower_rms_norm(g, n["x"], n["w"], epsilon), {"x": x, "w": weight})
    assert np.abs(y - lowered).max() <= bound

    arrays = {"x": x, "s": skip, "w": weight}
    build = lambda g, n: lower_skip_rms_norm(g, n["x"], n["s"], n["w"], epsilon)  # noqa: E731
    normed, total = run_lowering(build, arrays)
    np.testing.assert_array_equal(total, x + skip)
    assert np.abs(normed - rms_norm(x + skip, weight, epsilon)).max() <= bound


def test_rms_norm_pinned():
    assert rms_norm(np.float32([3, 4]), np.float32([1, 2]), 0.0).tolist() == pytest.approx(
        [0.848528, 2.262742]
    )


def test_swiglu(rng, run_lowering):
    gate, up = 20 * normal(rng, 4, 33), normal(rng, 4, 33)
    y = swiglu(gate, up)
    torch_y = (torch.nn.functional.silu(torch.tensor(gate)) * torch.tensor(up)).numpy()
    # exp of |x| < 100 carries x's own rounding, 100 eps relative, and silu is at most |gate|.
    bound = 100 * EPS * np.abs(gate * up).max()
    assert np.abs(y - torch_y).max() <= bound
    (lowered,) = run_lowering(lambda g, n: lower_swiglu(g, n["g"], n["u"]), {"g": gate, "u": up})
    assert np.abs(y - lowered).max() <= bound
    assert swiglu(np.float32([-200, 0, 200]), np.float32([1, 1, 1])).tolist() == [0, 0, 200]


def test_gelu(rng, run_lowering):
    x = 3 * normal(rng, 5, 17)
    y = gelu(x)
    # erf is good to a few eps of 1, times |x| / 2.
    bound = 8 * EPS * np.abs(x).max()
    assert np.abs(y - torch.nn.functional.gelu(torch.tensor(x)).numpy()).max() <= bound
    (lowered,) = run_lowering(lambda g, n: lower_gelu(g, n["x"]), {"x": x})
    assert np.abs(y - lowered).max() <= bound
    assert gelu(np.float32([1.0]))[0] == pytest.approx(0.8413447, abs=1e-6)  # the tanh form gives 0.8411920


def test_patch_embed(rng, run_lowering):
    patches, weight = normal(rng, 6, 3 * 2 * 14 * 14), normal(rng, 5, 3, 2, 14, 14)
    y = patch_embed(patches, weight)
    volume = torch.tensor(patches).view(6, 3, 2, 14, 14)
    torch_y = torch.nn.functional.conv3d(volume, torch.tensor(weight), stride=(2, 14, 14)).view(6, 5).numpy()
    flat = weight.reshape(5, -1)
    # as for linear, n = 1176
    bound = 2 * 1176 * EPS * (np.abs(patches) @ np.abs(flat).T).max()
    assert np.abs(y - torch_y).max() <= bound
    (lowered,) = run_lowering(lambda g, n: lower_patch_embed(g, n["p"], n["w"]), {"p": patches, "w": flat})
    assert np.abs(y - lowered).max() <= bound


def test_bfloat16(rng):
    values = np.concatenate(
        [normal(rng, 1000) * 1e3, np.float32([0, -0.0, 1, 1.00390625, 1.01171875, 1e-40, 3e38])]
    )
    bits = from_float32(values)
    expected = torch.tensor(values).to(torch.bfloat16)
    np.testing.assert_array_equal(bits, expected.view(torch.uint16).numpy())
    np.testing.assert_array_equal(to_float32(bits), expected.float().numpy())
    assert to_float32(np.array([0x3F80, 0xC049], np.uint16)).tolist() == [1.0, -3.140625]
