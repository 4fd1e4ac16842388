"""Where the decoder's weights come from: as stored, rounded to nearest here, or integers made elsewhere.

Contract  A `Weights` gives one linear layer at a time by its checkpoint name, so memory stays small at any
          size. Rounding to nearest is asymmetric: a block's smallest and largest value (zero included) map
          to 0 and 2 ** bits - 1, so no value moves by more than half a step.
Elsewhere what integers mean and how they are packed: kernels/matmul_nbits.py; GPTQ: gptq_layers.py;
          checkpoints that are quantised already: packed_checkpoint.py; who asks: decoder_graph.py.
Source    docs/sources.md#int4
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.export.checkpoint import Checkpoint, Tensor
from rexthinker_edge.export.config import TextConfig
from rexthinker_edge.kernels.matmul_nbits import BlockWeight, by_groups, dequantize, pack, unpack


class Precision(StrEnum):
    """How a bundle's decoder weights are stored."""

    FP32 = "fp32"  # computed in float32; stored as the checkpoint has them
    INT8 = "int8"
    INT4 = "int4"


@dataclass(frozen=True)
class IntegerRecipe:
    """How weights become integers.

    `bits` for the layers, `head_bits` for the output layer, whose errors go straight to the token chosen;
    `wide` names linear layers, such as "v_proj", that take 8 bits in every decoder layer.
    """

    bits: int = 4
    head_bits: int = 8
    block: int = 128
    accuracy_level: int = 4
    wide: tuple[str, ...] = ()

    def bits_of(self, name: str) -> int:
        """Of a linear layer inside a decoder layer, by its name in the checkpoint."""
        return 8 if name.rpartition(".")[2] in self.wide else self.bits


@dataclass(frozen=True)
class QuantisedLinear:
    """A linear layer in integers; column k of `weight` multiplies input `order[k]` (None: input k)."""

    weight: BlockWeight
    order: NDArray[np.int64] | None = None

    def dense(self) -> NDArray[np.float32]:
        """The (out, in) float32 weight that the integers stand for, columns as in the checkpoint."""
        found = dequantize(self.weight)
        if self.order is None:
            return found
        dense = np.empty_like(found)
        dense[:, self.order] = found
        return dense


def regrouped(
    codes: NDArray[np.uint8],
    group_of: NDArray[np.int64],
    scales: NDArray[np.float32],
    zero_points: NDArray[np.uint8],
    bits: int,
    group: int,
) -> QuantisedLinear:
    """Integers by columns as the checkpoint has them, put into blocks of one group each.

    Args:
        codes: (out, in); scales, zero_points: (out, groups).
        group_of: (in,) the group of each column, every one but the last with `group` columns.
        group: columns a group; -1: one group.
    """
    order = np.argsort(group_of, kind="stable")
    plain = bool((order == np.arange(len(order))).all())
    weight = by_groups(codes if plain else codes[:, order], scales, zero_points, bits, group)
    return QuantisedLinear(weight, None if plain else order)


def column_codes(linear: QuantisedLinear) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The other way: (out, in) codes with columns as in the checkpoint, and (in,) the block of each."""
    weight = linear.weight
    codes = weight.codes[:, : weight.columns]
    blocks = np.arange(weight.columns) // weight.block
    if linear.order is None:
        return codes, blocks
    unordered, block_of = np.empty_like(codes), np.empty_like(blocks)
    unordered[:, linear.order], block_of[linear.order] = codes, blocks
    return unordered, block_of


class Weights(Protocol):
    """What decoder_graph.py asks for every linear layer."""

    def linear(self, name: str, shape: tuple[int, int], head: bool = False) -> QuantisedLinear | Tensor:
        """The layer `name` of (out, in) `shape`; `head` says that it is the output layer."""
        ...


@dataclass(frozen=True)
class AsStored:
    """The checkpoint's own weights."""

    checkpoint: Checkpoint

    def linear(self, name: str, shape: tuple[int, int], head: bool = False) -> Tensor:
        """The tensor; CheckpointError where it is missing or of another shape."""
        return self.checkpoint.tensor(f"{name}.weight", shape)


@dataclass(frozen=True)
class Nearest:
    """The checkpoint's weights, rounded to nearest."""

    checkpoint: Checkpoint
    recipe: IntegerRecipe

    def linear(self, name: str, shape: tuple[int, int], head: bool = False) -> QuantisedLinear:
        """As `AsStored`, rounded."""
        bits = self.recipe.head_bits if head else self.recipe.bits_of(name)
        return QuantisedLinear(
            round_to_nearest(self.checkpoint.tensor(f"{name}.weight", shape), bits, self.recipe.block)
        )


@dataclass(frozen=True)
class Saved:
    """Integers that `save_linear` left in a directory."""

    checkpoint: Checkpoint
    directory: Path

    def linear(self, name: str, shape: tuple[int, int], head: bool = False) -> QuantisedLinear:
        """The saved layer; the checkpoint's own tensor counts as used."""
        self.checkpoint.tensor(f"{name}.weight", shape)
        return load_linear(self.directory, name)


def save_linear(directory: Path, name: str, linear: QuantisedLinear) -> None:
    """Write one layer's integers to `directory`, packed."""
    weight = linear.weight
    arrays: dict[str, NDArray[Any]] = {
        "codes": pack(weight.codes, weight.bits),
        "scales": weight.scales,
        "zero_points": weight.zero_points,
        "shape": np.array([weight.bits, weight.block, weight.columns]),
    }
    if linear.order is not None:
        arrays["order"] = linear.order
    partial = directory / f".{name}.npz"
    with partial.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)
    partial.replace(directory / f"{name}.npz")  # whole or not there


def load_linear(directory: Path, name: str) -> QuantisedLinear:
    """Read what `save_linear` wrote."""
    with np.load(directory / f"{name}.npz", allow_pickle=False) as arrays:
        bits, block, columns = (int(value) for value in arrays["shape"])
        scales = arrays["scales"]
        codes = unpack(arrays["codes"], bits, scales.shape[1] * block)
        order = arrays.get("order")
        return QuantisedLinear(BlockWeight(codes, scales, arrays["zero_points"], bits, block, columns), order)


def linear_shapes(config: TextConfig) -> dict[str, tuple[int, int]]:
    """(out, in) of every linear layer inside a decoder layer."""
    hidden, wide, kv_width = config.hidden, config.intermediate, config.kv_heads * config.head_dim
    return {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv_width, hidden),
        "self_attn.v_proj": (kv_width, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (wide, hidden),
        "mlp.up_proj": (wide, hidden),
        "mlp.down_proj": (hidden, wide),
    }


def head_name(config: TextConfig) -> str:
    """The output layer's name in the checkpoint, which a tied one shares with the token table."""
    return "model.embed_tokens" if config.tied else "lm_head"


def choose_block(widths: Iterable[int]) -> int:
    """128 where every input width allows it (fastest, facts measured at 7B), else 32."""
    return 128 if all(width % 128 == 0 for width in widths) else 32


def round_to_nearest(weight: Tensor, bits: int, block: int, slice_rows: int = 1024) -> BlockWeight:
    """Quantise an (out, in) weight; see the module's contract."""
    rows, columns = weight.shape
    blocks = -(-columns // block)
    codes = np.empty((rows, blocks * block), np.uint8)
    scales = np.empty((rows, blocks), np.float32)
    zero_points = np.empty((rows, blocks), np.uint8)
    for start in range(0, rows, slice_rows):
        part = slice(start, min(start + slice_rows, rows))
        codes[part], scales[part], zero_points[part] = _round_rows(weight.float32(part), bits, block, blocks)
    return BlockWeight(codes, scales, zero_points, bits, block, columns)


def _round_rows(
    weight: NDArray[np.float32], bits: int, block: int, blocks: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    """The same for some rows: codes (rows, blocks * block), scales and zero points (rows, blocks)."""
    rows, columns = weight.shape
    top = np.float32(2**bits - 1)
    padded = np.zeros((rows, blocks * block), np.float32)
    padded[:, :columns] = weight
    grouped = padded.reshape(rows, blocks, block)
    low, high = np.minimum(grouped.min(-1), 0), np.maximum(grouped.max(-1), 0)
    scale = ((high - low) / top).astype(np.float32)
    scale[scale == 0] = 1.0  # a block of zeros: every code is the zero point
    zero = np.clip(np.rint(-low / scale), 0, top)
    codes = np.clip(np.rint(grouped / scale[..., None]) + zero[..., None], 0, top)
    return codes.astype(np.uint8).reshape(rows, -1), scale, zero.astype(np.uint8)
