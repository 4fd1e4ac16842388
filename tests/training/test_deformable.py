"""The compiled sampling gives transformers' values and gradients."""

import shutil

import pytest
import torch

from rexthinker_edge.training import deformable

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler"
)


@pytest.fixture(scope="module")
def sample():
    return deformable.native_function(deformable.compile_library())


@pytest.mark.parametrize("depth", [8, 16, 24, 32])
def test_values_and_gradients_equal_transformers(sample, depth):
    from transformers.models.grounding_dino.modeling_grounding_dino import (  # noqa: PLC0415
        MultiScaleDeformableAttention,
    )

    torch.manual_seed(depth)
    shapes = [(5, 7), (3, 4), (1, 2)]
    cells = sum(h * w for h, w in shapes)
    value = torch.randn(2, cells, 3, depth, requires_grad=True)
    where = (torch.rand(2, 9, 3, 3, 4, 2) * 1.6 - 0.3).requires_grad_()  # some outside
    weights = torch.rand(2, 9, 3, 3, 4, requires_grad=True)
    sides = torch.tensor(shapes)
    wanted = MultiScaleDeformableAttention()(value, sides, shapes, None, where, weights, 64)
    given = sample.apply(value, where, weights, sides)
    assert given.shape == (2, 9, 3 * depth)
    # 36 products of numbers around 1 per value, summed in another order: 36 * 2**-24 * a few
    torch.testing.assert_close(given, wanted, atol=2e-5, rtol=1e-5)
    flow = torch.randn_like(wanted)
    inputs = (value, where, weights)
    for ours, theirs in zip(
        torch.autograd.grad(given, inputs, flow), torch.autograd.grad(wanted, inputs, flow), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=5e-4, rtol=1e-4)


def test_far_outside_is_zero(sample):
    value, weights = torch.ones(1, 4, 1, 8), torch.ones(1, 1, 1, 1, 1)
    where = torch.tensor([1e6, -1e6]).view(1, 1, 1, 1, 1, 2)
    assert sample.apply(value, where, weights, torch.tensor([[2, 2]])).abs().max() == 0


def test_no_compiler_is_told(monkeypatch):
    monkeypatch.setattr(deformable.shutil, "which", lambda name: None)
    with pytest.raises(deformable.DeviceError, match=r"no g\+\+ or clang\+\+ found"):
        deformable.compile_library()
