"""4- and 8-bit weights in the two formats others write: GPTQ's and compressed-tensors' pack-quantized.

Layout    GPTQ: `qweight` int32 (in * bits / 32, out), codes packed down the input; `qzeros` int32 (groups,
          out * bits / 32), zero points packed along the output; `scales` (groups, out); `g_idx` int32 (in,),
          the group of each input. compressed-tensors: `weight_packed` int32 (out, in * bits / 32),
          `weight_scale` (out, groups), `weight_zero_point` int32 (out * bits / 32, groups) where asymmetric,
          `weight_shape` int64 (2,), and formerly `weight_g_idx`. Low bits first in every word.
Contract  Version 1 of GPTQ stores zero point - 1, subtracted from whole words with borrow, as its writers do;
          version 2 stores it as it is. Reading and writing are inverse to the last bit; scales that float16
          cannot hold are refused when writing.
Elsewhere whole checkpoints: packed_checkpoint.py, packed_writer.py; what the integers mean:
          kernels/matmul_nbits.py.
Source    docs/sources.md#packed-formats
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.export.quantize import QuantisedLinear, column_codes, regrouped
from rexthinker_edge.kernels.matmul_nbits import pack, unpack
from rexthinker_edge.runtime.errors import CheckpointError, OptionError

Arrays = dict[str, NDArray[Any]]
ONES = {4: 0x11111111, 8: 0x01010101}  # a one in every field of a word
GROUPS = (16, 32, 64, 128, 256)


def pack_words(codes: NDArray[np.uint8], bits: int) -> NDArray[np.int32]:
    """(rows, n) codes as (rows, ceil(n * bits / 32)) little-endian words, low bits first, zeros behind."""
    fields = 32 // bits
    missing = -codes.shape[1] % fields
    packed = pack(np.pad(codes, ((0, 0), (0, missing))), bits)
    return np.ascontiguousarray(packed).view("<i4")


def unpack_words(words: NDArray[np.int32], bits: int, count: int) -> NDArray[np.uint8]:
    """The first `count` codes of each row: the inverse of `pack_words`."""
    return unpack(np.ascontiguousarray(words).view(np.uint8), bits, count)


def read_gptq(name: str, arrays: Arrays, shape: tuple[int, int], version: int) -> QuantisedLinear:
    """One linear layer of a GPTQ checkpoint.

    Args:
        name: for messages.
        arrays: qweight, qzeros, scales (float32), and g_idx where the checkpoint has one.
        shape: (out, in) that the configuration asks for.
        version: 1 or 2, of the zero points' convention.

    Raises:
        CheckpointError: the arrays do not fit together, or ask for what cannot be computed.
    """
    rows, columns = shape
    words, scales = arrays["qweight"], np.ascontiguousarray(arrays["scales"].T, np.float32)
    bits = words.shape[0] * 32 // columns
    groups = scales.shape[1]
    fits = words.shape == (columns * bits // 32, rows) and bits in ONES and scales.shape[0] == rows
    if not fits or arrays["qzeros"].shape != (groups, -(-rows * bits // 32)):
        raise _misfit(name, arrays, shape)
    zero_words = arrays["qzeros"].view(np.uint32)
    if version == 1:
        zero_words = zero_words + np.uint32(ONES[bits])
    codes = unpack_words(words.T, bits, columns)
    zeros = unpack_words(zero_words.view(np.int32), bits, rows).T
    group_of, group = _groups(name, arrays.get("g_idx"), columns, groups)
    return regrouped(codes, group_of, scales, np.ascontiguousarray(zeros), bits, group)


def gptq_arrays(linear: QuantisedLinear, version: int) -> Arrays:
    """A linear layer as GPTQ writes it; scales float16.

    Raises:
        OptionError: rows or columns do not fill whole words, or a scale is no float16 number.
    """
    weight = linear.weight
    codes, block_of = column_codes(linear)
    rows, columns = codes.shape
    if rows * weight.bits % 32 or columns * weight.bits % 32:
        raise OptionError(
            f"gptq: a layer of {rows} x {columns}, needed multiples of {32 // weight.bits}. "
            "Write compressed-tensors instead."
        )
    zero_words = pack_words(np.ascontiguousarray(weight.zero_points.T), weight.bits).view(np.uint32)
    if version == 1:
        zero_words = zero_words - np.uint32(ONES[weight.bits])
    return {
        "qweight": np.ascontiguousarray(pack_words(codes, weight.bits).T),
        "qzeros": zero_words.view(np.int32),
        "scales": np.ascontiguousarray(half_scales(weight.scales).T),
        "g_idx": block_of.astype(np.int32),
    }


def read_compressed(name: str, arrays: Arrays, shape: tuple[int, int]) -> QuantisedLinear:
    """One linear layer of a pack-quantized checkpoint; arguments and errors as `read_gptq`."""
    rows, columns = shape
    words, scales = arrays["weight_packed"], np.ascontiguousarray(arrays["weight_scale"], np.float32)
    bits = next((b for b in ONES if words.shape == (rows, -(-columns * b // 32))), 0)
    stated = tuple(int(side) for side in arrays["weight_shape"])
    if not bits or stated != shape or scales.ndim != 2 or scales.shape[0] != rows:
        raise _misfit(name, arrays, shape)
    groups = scales.shape[1]
    zeros: NDArray[np.uint8] = np.full((rows, groups), 1 << (bits - 1), np.uint8)
    if "weight_zero_point" in arrays:
        packed = arrays["weight_zero_point"]
        if packed.shape != (-(-rows * bits // 32), groups):
            raise _misfit(name, arrays, shape)
        zeros = np.ascontiguousarray(unpack_words(packed.T, bits, rows).T)
    group_of, group = _groups(name, arrays.get("weight_g_idx"), columns, groups)
    return regrouped(unpack_words(words, bits, columns), group_of, scales, zeros, bits, group)


def compressed_arrays(linear: QuantisedLinear, symmetric: bool) -> Arrays:
    """A linear layer as compressed-tensors writes it; scales float16.

    Args:
        symmetric: leave the zero points out; all are the middle then.

    Raises:
        OptionError: columns are permuted, which the format no longer knows, or do not fill whole blocks, or
            a scale is no float16 number.
    """
    weight = linear.weight
    if linear.order is not None or weight.columns % weight.block:
        raise OptionError(
            f"compressed-tensors: {weight.columns} columns in blocks of {weight.block}"
            f"{', permuted' if linear.order is not None else ''}; needed whole neighbouring blocks. "
            "Write gptq instead, or quantise with --act-order static."
        )
    arrays: Arrays = {
        "weight_packed": pack_words(weight.codes, weight.bits),
        "weight_scale": half_scales(weight.scales).astype(np.float32),  # what they are multiplied in
        "weight_shape": np.array([len(weight.codes), weight.columns], np.int64),
    }
    if not symmetric:
        zeros = pack_words(np.ascontiguousarray(weight.zero_points.T), weight.bits)
        arrays["weight_zero_point"] = np.ascontiguousarray(zeros.T)
    else:
        assert is_symmetric(linear), "zero points other than the middle"
    return arrays


def is_symmetric(linear: QuantisedLinear) -> bool:
    """Whether every zero point is the middle."""
    return bool((linear.weight.zero_points == 1 << (linear.weight.bits - 1)).all())


def half_scales(scales: NDArray[np.float32]) -> NDArray[np.float16]:
    """Scales as float16; OptionError where that would change one."""
    with np.errstate(over="ignore"):
        half = scales.astype(np.float16)
    if not (half.astype(np.float32) == scales).all():
        raise OptionError(
            "quantised checkpoint: scales are no float16 numbers, needed for the format. "
            "Calibrate (--calibration), which makes them so."
        )
    return half


def _groups(
    name: str, g_idx: NDArray[Any] | None, columns: int, groups: int
) -> tuple[NDArray[np.int64], int]:
    """The group of each column, and columns a group (-1 for a single one); see `read_gptq` for errors."""
    if groups == 1:
        return np.zeros(columns, np.int64), -1
    group = next((size for size in GROUPS if -(-columns // size) == groups), 0)
    usual: NDArray[np.int64] = np.arange(columns) // max(group, 1)
    found = usual if g_idx is None else g_idx.astype(np.int64)
    if not group or found.shape != (columns,) or not (np.sort(found) == usual).all():
        raise CheckpointError(
            f"{name}: {columns} columns in {groups} groups, needed groups of equal size, one of "
            f"{', '.join(map(str, GROUPS))} or a whole row. Quantise the model with such groups."
        )
    return found, group


def _misfit(name: str, arrays: Arrays, shape: tuple[int, int]) -> CheckpointError:
    seen = ", ".join(f"{key} {list(array.shape)}" for key, array in arrays.items())
    return CheckpointError(
        f"{name}: {seen}; needed 4- or 8-bit codes of a layer of {shape[0]} x {shape[1]}. "
        "Is config.json the checkpoint's own, and its weights of 4 or 8 bits?"
    )
