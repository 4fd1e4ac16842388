"""GPTQ against the published algorithm, spelt out, and against what it promises."""

import numpy as np
import pytest
import torch

from rexthinker_edge.calibration.gptq import ActOrder, GptqOptions, Gram, Solver, choose_grid
from rexthinker_edge.kernels.matmul_nbits import BlockWeight, dequantize
from rexthinker_edge.runtime.errors import OptionError

COLUMNS, ROWS, BLOCK = 96, 12, 32


@pytest.fixture
def data():
    """Correlated inputs of very different size, as a transformer's are, and a weight."""
    rng = np.random.default_rng(3)
    mix = rng.standard_normal((COLUMNS, COLUMNS)) * rng.random(COLUMNS) ** 3
    inputs = (rng.standard_normal((400, COLUMNS)) @ mix).astype(np.float32)
    return inputs, rng.standard_normal((ROWS, COLUMNS)).astype(np.float32)


def hessian(inputs):
    gram = Gram(inputs.shape[1])
    for part in np.array_split(inputs, 3):
        gram.add(torch.from_numpy(part))
    return gram.mean()


def objective(weight, rounded, inputs):
    """Mean squared error of the layer's outputs."""
    return float(np.square(inputs.astype(np.float64) @ (weight - rounded).T).mean())


def dense(made):
    found = dequantize(made.weight)
    if made.order is None:
        return found
    columns = np.empty_like(found)
    columns[:, made.order] = found
    return columns


def optimal_brain_quantiser(weight, square, scales, zeros, order, top):
    """The method of the paper's section 2, by the letter: fix a column, spread its error over the columns
    that are left by the inverse of *their* Hessian, computed anew for every column."""
    left, out = weight.astype(np.float64).copy(), np.empty_like(weight, dtype=np.float64)
    for place, column in enumerate(order):
        rest = order[place:]
        inverse = np.linalg.inv(square[np.ix_(rest, rest)])
        scale, zero = scales[:, column // BLOCK], zeros[:, column // BLOCK]
        code = np.clip(np.rint(left[:, column] / scale) + zero, 0, top)
        out[:, column] = (code - zero) * scale
        error = (left[:, column] - out[:, column]) / inverse[0, 0]
        left[:, rest] -= np.outer(error, inverse[0])
    return out


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_equals_the_paper_column_by_column(data, symmetric, bits):
    """With grids that do not depend on the errors (static), codes must be those of the naive form."""
    inputs, weight = data
    square = hessian(inputs).double().numpy()
    options = GptqOptions(bits=bits, block=BLOCK, symmetric=symmetric)
    made = Solver(torch.from_numpy(square).float(), options).round(weight)
    damped = square + options.damping * np.diag(square).mean() * np.eye(COLUMNS)
    order = np.argsort(-np.diag(damped), kind="stable")
    scales, zeros = made.weight.scales.astype(np.float64), made.weight.zero_points.astype(np.float64)
    naive = optimal_brain_quantiser(weight, damped, scales, zeros, order, 2**bits - 1)
    # A value within float32's error of a step's middle may fall to the other side, and changes what follows
    # in its row: a row in twelve may, as 96 columns with errors of some 1e-5 of a step meet one in a hundred
    # rows at 4 bits, one in ten at 8.
    different = (dense(made) != naive.astype(np.float32)).any(1)
    assert different.sum() <= 1 + (bits == 8)


@pytest.mark.parametrize("order", list(ActOrder))
@pytest.mark.parametrize("block", [32, -1])
@pytest.mark.parametrize("symmetric", [False, True])
def test_outputs_move_less_than_by_rounding_to_the_same_grid(data, order, block, symmetric):
    inputs, weight = data
    options = GptqOptions(block=block, symmetric=symmetric, act_order=order)
    made = Solver(hessian(inputs), options).round(weight)
    kept = made.weight
    columns = np.arange(COLUMNS) if made.order is None else made.order
    grid = columns.argsort() // kept.block
    scales, zeros = kept.scales[:, grid], kept.zero_points[:, grid].astype(np.float32)
    nearest = (np.clip(np.rint(weight / scales) + zeros, 0, 15) - zeros) * scales
    assert objective(weight, dense(made), inputs) < 0.7 * objective(weight, nearest, inputs)
    assert (kept.zero_points == 8).all() == symmetric
    assert (kept.scales.astype(np.float16).astype(np.float32) == kept.scales).all()
    # the loss it tells is the damped objective over that of a weight of zeros
    square = inputs.T.astype(np.float64) @ inputs / len(inputs)
    square += options.damping * np.diag(square).mean() * np.eye(COLUMNS)
    error = weight - dense(made).astype(np.float64)
    told = np.trace(error @ square @ error.T) / np.trace(weight @ square @ weight.T.astype(np.float64))
    # sums of 96 float32 products, of values up to ten times the sum's
    assert made.loss == pytest.approx(told, rel=96 * 10 * float(np.finfo(np.float32).eps))


def test_rows_are_independent_and_slices_change_nothing(data):
    inputs, weight = data
    whole = Solver(hessian(inputs), GptqOptions(block=BLOCK)).round(weight)
    sliced = Solver(hessian(inputs), GptqOptions(block=BLOCK)).round(weight, slice_rows=5)
    # matrix products of other shapes may differ in a last bit, and a code with it
    assert (whole.weight.codes != sliced.weight.codes).mean() < 0.01
    np.testing.assert_array_equal(whole.weight.scales, sliced.weight.scales)


def test_pulled_is_least_squares(data):
    """W plus the ridge solution of the normal equations, drawn towards W, for outputs wanted of it."""
    inputs, weight = data
    others = inputs + 0.1 * np.random.default_rng(8).standard_normal(inputs.shape).astype(np.float32)
    pull = ((others - inputs) @ weight.T).T @ inputs / len(inputs)
    square = inputs.T.astype(np.float64) @ inputs / len(inputs)
    damped = square + 0.01 * np.diag(square).mean() * np.eye(COLUMNS)
    wanted = weight + np.linalg.solve(damped, pull.T.astype(np.float64)).T
    for order in (ActOrder.NONE, ActOrder.STATIC):
        solver = Solver(hessian(inputs), GptqOptions(block=BLOCK, act_order=order))
        moved = solver.pulled(torch.from_numpy(weight), torch.from_numpy(pull)).numpy()
        # conditioned at most 96 / 0.01, so a float32 solution is good to 9,600 eps of the largest change
        assert np.abs(moved - wanted).max() <= 9600 * 1.2e-7 * np.abs(wanted - weight).max()
    missed = [np.square(inputs @ w.T - others @ weight.T).sum() for w in (weight, wanted)]
    assert missed[1] < missed[0]


def test_inputs_that_are_always_zero_cost_nothing(data):
    inputs, weight = data
    inputs[:, 5] = 0
    made = Solver(hessian(inputs), GptqOptions(block=BLOCK)).round(weight)
    assert np.isfinite(dense(made)).all()
    silent = Solver(torch.zeros(COLUMNS, COLUMNS), GptqOptions(block=BLOCK)).round(weight)
    assert np.abs(dense(silent) - weight).max() < 1.0


def test_a_token_counted_twice_is_two_tokens():
    x = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    counted, repeated = Gram(2), Gram(2)
    counted.add(x, torch.tensor([2.0, 1.0]))
    repeated.add(torch.cat([x[:1], x]))
    assert torch.allclose(counted.mean(), repeated.mean())


def test_grid_pinned():
    """-1 … 2 in 15 steps of 0.2: 1.0 sits on code 10, zero on 5. A symmetric one has 8 as its zero."""
    wanted = torch.tensor([[-1.0], [0.0], [2.0]])
    scale, zero = choose_grid(wanted, torch.ones(3), GptqOptions(shrink_steps=1))
    assert (float(scale), float(zero)) == (float(np.float16(0.2)), 5.0)
    scale, zero = choose_grid(wanted, torch.ones(3), GptqOptions(shrink_steps=1, symmetric=True))
    assert (float(scale), float(zero)) == (float(np.float16(4 / 15)), 8.0)


def test_one_scale_a_row_is_repeated_over_blocks(data):
    inputs, weight = data
    made = Solver(hessian(inputs), GptqOptions(block=-1)).round(weight).weight
    assert isinstance(made, BlockWeight)
    assert made.block == 32
    assert (made.scales == made.scales[:, :1]).all()


def test_messages(data):
    for wrong, told in [
        ({"bits": 3}, "bits: 3, needed 4 or 8"), ({"block": 48}, "block: 48, needed -1, 16"),
        ({"damping": 0.0}, "damping: 0.0, needed above 0"),
        ({"shrink_steps": 0}, "shrink_steps: 0, needed 1"),
    ]:  # fmt: skip
        with pytest.raises(OptionError, match=told):
            GptqOptions(**wrong)
    square = torch.eye(4)
    square[0, 1] = square[1, 0] = 9
    with pytest.raises(OptionError, match=r"damping: .* not positive definite"):
        Solver(square, GptqOptions())
    with pytest.raises(OptionError, match="inputs are not finite"):
        Solver(torch.full((4, 4), torch.nan), GptqOptions())
