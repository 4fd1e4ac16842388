"""Muon against the definition: momentum, then singular values near one."""

import pytest
import torch

from rexthinker_edge.training.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(8, 8), (6, 12), (12, 6)])
def test_singular_values_end_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    matrices = torch.randn(3, *shape)
    values = torch.linalg.svdvals(orthogonalise(matrices))
    # the quintic's five iterations leave [0.68, 1.13] for values in [0.02, 1], see muon.py's source
    assert float(values.min()) > 0.6
    assert float(values.max()) < 1.2


def test_keeps_the_singular_vectors() -> None:
    torch.manual_seed(2)
    matrix = torch.randn(1, 5, 5)
    u, _, v = torch.linalg.svd(matrix[0])
    diagonal = u.T @ orthogonalise(matrix)[0] @ v.T
    # float32 products of five terms, five times over: 1e-4 is ten times what rounding makes of it
    assert float((diagonal - torch.diag(diagonal.diagonal())).abs().max()) < 1e-4


def test_one_step_has_the_size_adamw_would_have() -> None:
    torch.manual_seed(3)
    p = torch.nn.Parameter(torch.zeros(64, 64))
    p.grad = torch.randn(64, 64)
    Muon([p], lr=0.01).step()
    # an orthogonal 64 x 64 matrix has root mean square 1/8; times 0.2 * sqrt(64) that is 0.2; times the rate
    assert float(p.detach().pow(2).mean().sqrt()) == pytest.approx(0.002, rel=0.15)
    assert float((p.detach() * p.grad).sum()) < 0
