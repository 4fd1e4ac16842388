"""Muon: momentum whose matrices are orthogonalised before each step.

Layout    Matrices of one shape are orthogonalised together, in float32.
Contract  Updates have the root mean square of AdamW's (factor 0.2 * sqrt(larger side)), so that both share
          one learning rate. `torch.optim.Muon` computes the same in bfloat16, which has no matrix units on
          most CPUs: there it is 200 times slower, hence this file.
Source    docs/sources.md#muon
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # quintic Newton-Schulz; singular values end in about [0.7, 1.2]
ITERATIONS = 5


def orthogonalise(matrices: Tensor) -> Tensor:
    """Replace the singular values of (N, rows, columns) matrices by values near 1."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    made: Tensor = x.mT if tall else x
    return made


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; for two-dimensional parameters only."""

    def __init__(
        self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        assert all(p.ndim == 2 for group in self.param_groups for p in group["params"])

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update; parameters without a gradient are passed over."""
        assert closure is None
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append((p, self._direction(p, group["momentum"])))
            for shape, pairs in by_shape.items():
                updates = orthogonalise(torch.stack([direction for _, direction in pairs]))
                scale = 0.2 * max(shape) ** 0.5
                for (p, _), update in zip(pairs, updates, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(update, alpha=-group["lr"] * scale)

    def _direction(self, p: Tensor, momentum: float) -> Tensor:
        state: dict[str, Any] = self.state[p]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(p)
        state["momentum"].lerp_(p.grad, 1 - momentum)
        assert p.grad is not None
        return p.grad.lerp(state["momentum"], momentum)
