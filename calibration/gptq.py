"""GPTQ: integers for a linear layer that keep its outputs on given inputs, not its weights.

Layout    A weight W is (out, in); a Hessian H is (in, in), the mean of x xᵀ over the layer's inputs x.
          Inside, everything is transposed, so that one input column is one contiguous row.
Contract  Minimises tr((W - Q) H (W - Q)ᵀ) greedily, column by column: with H = R Rᵀ, R upper triangular, the
          objective is the sum over j of R_jj² (w_j + Σ_{i<j} e_i R_ij / R_jj - q_j)², e = w - q, so column j
          is rounded after adding what the columns before it left over. That is GPTQ's update without
          inverting H: one Cholesky factor and nothing after it. Scales are float16 numbers: every file
          format keeps them.
Elsewhere where inputs come from: export/gptq_layers.py; what integers mean: kernels/matmul_nbits.py.
Source    docs/sources.md#gptq
"""

from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rexthinker_edge.kernels.matmul_nbits import BlockWeight, by_groups
from rexthinker_edge.runtime.errors import OptionError

SMALLEST_SCALE = 2.0**-14  # float16's smallest normal number
WIDE_COLUMNS = 8192  # up to here the factor is computed in float64
STRIDE = 128  # columns finished before their errors are added to the rest at once


class ActOrder(StrEnum):
    """In which order columns are rounded; later ones make up for earlier ones."""

    NONE = "none"  # as they stand
    STATIC = "static"  # largest inputs first; groups stay neighbours, so nothing changes at run time
    GROUP = "group"  # largest inputs first and grouped so: the layer's input is permuted at run time


@dataclass(frozen=True)
class GptqOptions:
    """How weights become integers.

    Attributes:
        bits: 4 or 8.
        block: columns that share a scale; -1 for a whole row.
        symmetric: every zero point is the middle, 2 ** (bits - 1).
        damping: share of H's mean diagonal added to its diagonal; above 0.
        act_order: see ActOrder.
        shrink_steps: how many smaller ranges are tried for each block (1 takes the full range only).
    """

    bits: int = 4
    block: int = 128
    symmetric: bool = False
    damping: float = 0.01
    act_order: ActOrder = ActOrder.STATIC
    shrink_steps: int = 16

    def __post_init__(self) -> None:
        """Raises OptionError on a value that has no meaning."""
        allowed = {
            "bits": (self.bits in (4, 8), "4 or 8"),
            "block": (self.block in (-1, 16, 32, 64, 128, 256), "-1, 16, 32, 64, 128 or 256"),
            "damping": (0 < self.damping <= 10, "above 0, at most 10"),
            "shrink_steps": (self.shrink_steps >= 1, "1 or more"),
        }
        for name, (fits, needed) in allowed.items():
            if not fits:
                raise OptionError(
                    f"{name}: {getattr(self, name)}, needed {needed}. Leave it out for the usual one."
                )


@dataclass(frozen=True)
class Rounded:
    """One weight, quantised.

    Attributes:
        weight: the integers; column k of it multiplies input `order[k]`.
        order: (in,) int64, or None where columns stand as they were.
        loss: the objective over the same of a weight of zeros, so that 0 is perfect.
    """

    weight: BlockWeight
    order: NDArray[np.int64] | None
    loss: float


class Gram:
    """Sums x xᵀ over a layer's inputs."""

    def __init__(self, columns: int, device: str = "cpu") -> None:
        self.total = torch.zeros(columns, columns, device=device)
        self.count = 0.0

    def add(self, inputs: Tensor, weights: Tensor | None = None) -> None:
        """Add (tokens, columns) float32 inputs, each counted `weights` (tokens,) times, by default once."""
        if weights is not None:
            inputs = inputs * weights[:, None].sqrt()
        self.total.addmm_(inputs.T, inputs)
        self.count += len(inputs) if weights is None else float(weights.sum())

    def mean(self) -> Tensor:
        """The Hessian, (columns, columns); the sum's own memory, so nothing may be added afterwards."""
        return self.total.div_(max(self.count, 1.0))


class Solver:
    """One Hessian, factored once, for every weight that reads the same inputs."""

    def __init__(self, hessian: Tensor, options: GptqOptions) -> None:
        """Factor `hessian` (in, in), whose memory is used up.

        Raises:
            OptionError: it is not finite, or not positive definite even when damped.
        """
        self.options = options
        diagonal = hessian.diagonal()
        if not bool(torch.isfinite(diagonal).all()):
            raise OptionError(
                "calibration: a layer's inputs are not finite, finite ones are needed. "
                "Is the checkpoint intact, and read in the right dtype?"
            )
        mean = float(diagonal.mean())
        diagonal.add_(options.damping * mean if mean > 0 else 1.0)
        self.order: Tensor | None = None
        if options.act_order is not ActOrder.NONE:
            self.order = torch.argsort(diagonal, descending=True, stable=True)
            hessian = hessian[self.order][:, self.order]
        self.factor = _upper_factor(hessian)

    def pulled(self, weight: Tensor, pull: Tensor) -> Tensor:
        """The weight whose outputs come closest to other outputs than its own.

        Args:
            weight: (out, in).
            pull: (out, in), the mean of (wanted output - weight's output) xᵀ over the inputs x.

        Returns:
            weight + pull H⁻¹, H damped: least squares, drawn towards `weight`.
        """
        ordered = (pull if self.order is None else pull[:, self.order]).T
        half = torch.linalg.solve_triangular(self.factor, ordered, upper=True)
        moved = torch.linalg.solve_triangular(self.factor.T, half, upper=False).T
        if self.order is not None:
            moved = torch.empty_like(moved).index_copy_(1, self.order, moved)
        found: Tensor = weight + moved
        return found

    def round(self, weight: NDArray[np.float32], slice_rows: int = 8192, bits: int | None = None) -> Rounded:
        """Quantise (out, in) float32; rows are independent and done in slices.

        `bits` is for this weight alone; None: the options'.
        """
        options = self.options if bits is None else replace(self.options, bits=bits)
        device = self.factor.device
        parts = [
            self._round_rows(torch.from_numpy(weight[start : start + slice_rows]).to(device), options)
            for start in range(0, len(weight), slice_rows)
        ]
        codes, scales, zeros = (torch.cat([part[k] for part in parts], 1).T for k in range(3))
        order = self.order if self.options.act_order is ActOrder.GROUP else None
        spent, whole = (sum(float(part[k]) for part in parts) for k in (3, 4))
        return Rounded(
            by_groups(
                codes.numpy(), scales.cpu().numpy(), zeros.cpu().numpy(), options.bits, options.block
            ),
            None if order is None else order.cpu().numpy(),
            spent / whole if whole else 0.0,
        )  # fmt: skip

    def _round_rows(
        self, weight: Tensor, options: GptqOptions
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Codes (in, rows), scales and zero points (groups, rows), the objective, and that of zeros."""
        factor, columns = self.factor, weight.shape[1]
        group = options.block if options.block > 0 else columns
        wanted = (weight if self.order is None else weight[:, self.order]).T.contiguous()
        scales = torch.empty(-(-columns // group), len(weight), device=weight.device)
        zeros = torch.empty_like(scales)
        of_column = torch.arange(columns, device=weight.device) // group
        ahead = options.act_order is ActOrder.STATIC or group == columns  # grids come from W itself
        if ahead:
            importance = factor.diagonal()
            if self.order is not None:
                importance = torch.empty_like(importance).scatter_(0, self.order, importance)
                of_column = self.order // group
            for number, start in enumerate(range(0, columns, group)):
                part = slice(start, start + group)
                scales[number], zeros[number] = choose_grid(weight.T[part], importance[part], options)
        errors, codes = torch.empty_like(wanted), torch.empty(wanted.shape, dtype=torch.uint8)
        spent = torch.zeros((), device=weight.device)
        stride = STRIDE if ahead else group
        for start in range(0, columns, stride):
            part = slice(start, start + stride)
            local = factor[part, part]
            left_over = factor[:start, part].T @ errors[:start]
            if not ahead:
                # What the group's columns would best be, were they not rounded: the errors so far settled.
                moved = wanted[part] + torch.linalg.solve_triangular(local.T, left_over, upper=False)
                scales[start // group], zeros[start // group] = choose_grid(moved, local.diagonal(), options)
            mine = of_column[part]
            spent += _round_part(
                wanted[part], left_over, local, (scales[mine], zeros[mine]), 2**options.bits - 1,
                errors[part], codes[part],
            )  # fmt: skip
        whole = (factor.T @ wanted).square().sum()
        if self.order is not None and options.act_order is ActOrder.STATIC:
            codes = torch.empty_like(codes).index_copy_(0, self.order.cpu(), codes)
        return codes, scales, zeros.to(torch.uint8), spent, whole


def _upper_factor(hessian: Tensor) -> Tensor:
    """R, upper triangular, with R Rᵀ = `hessian`, float32: a Cholesky factor begun at the last column."""
    turned = hessian.flip(0, 1)
    if len(turned) <= WIDE_COLUMNS:
        turned = turned.double()
    lower, failed = torch.linalg.cholesky_ex(turned)
    if int(failed):
        raise OptionError(
            "damping: the inputs' Hessian is not positive definite with it, it must be. "
            "Give a larger --damping or more samples."
        )
    factor: Tensor = lower.flip(0, 1).float()
    return factor


def choose_grid(wanted: Tensor, importance: Tensor, options: GptqOptions) -> tuple[Tensor, Tensor]:
    """Scale and zero point of one group of columns, for every row.

    Args:
        wanted: (columns, rows) values to represent.
        importance: (columns,) factor an error in that column counts with.

    Returns:
        Scales (float16 numbers) and zero points (whole numbers), both (rows,) float32: of the ranges tried,
        from the full one down to half of it, that of the least weighted squared error.
    """
    top = 2**options.bits - 1
    low, high = wanted.amin(0).clamp(max=0), wanted.amax(0).clamp(min=0)
    if options.symmetric:
        high = torch.maximum(high, -low)
        low = -high
    best = torch.full_like(low, torch.inf)
    best_scale, best_zero = torch.ones_like(low), torch.zeros_like(low)
    for step in range(options.shrink_steps):
        share = 1 - 0.5 * step / options.shrink_steps
        scale = ((high - low) * (share / top)).half().float().clamp(min=SMALLEST_SCALE)
        zero = torch.full_like(scale, 2 ** (options.bits - 1))
        if not options.symmetric:
            zero = (-low * share / scale).round().clamp(0, top)
        kept = ((wanted / scale).round() + zero).clamp(0, top)
        error = (((kept - zero) * scale - wanted) * importance[:, None]).square().sum(0)
        better = error < best
        best = torch.where(better, error, best)
        best_scale, best_zero = torch.where(better, scale, best_scale), torch.where(better, zero, best_zero)
    return best_scale, best_zero


def _round_part(
    wanted: Tensor, left_over: Tensor, factor: Tensor, grid: tuple[Tensor, Tensor], top: int,
    errors: Tensor, codes: Tensor,
) -> Tensor:  # fmt: skip
    """Round neighbouring columns one by one, filling `errors` and `codes`; the objective's part.

    Args:
        wanted, left_over: (columns, rows); `left_over` is what earlier parts' errors add, times R_jj.
        factor: (columns, columns) the diagonal block of R.
        grid: scales and zero points, (columns, rows) each.
    """
    spent = torch.zeros((), device=wanted.device)
    scales, zeros = grid
    for j in range(len(wanted)):
        goal = wanted[j] + (left_over[j] + factor[:j, j] @ errors[:j]) / factor[j, j]
        code = ((goal / scales[j]).round() + zeros[j]).clamp(0, top)
        kept = (code - zeros[j]) * scales[j]
        errors[j] = wanted[j] - kept
        spent += ((goal - kept) * factor[j, j]).square().sum()
        codes[j] = code
    return spent
