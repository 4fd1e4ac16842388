"""Group-wise integer weights of 4 or 8 bits: how they are stored, what they mean, how they multiply.

Layout    A weight is (out, in), each row cut into blocks of `block` columns that share one scale and one
          zero point; a last ragged block is filled up with zero points. Packed as MatMulNBits reads it:
          codes (out, blocks, block * bits / 8) uint8 and zero points (out, ceil(blocks * bits / 8)) uint8,
          4-bit ones two a byte, low nibble first.
Contract  `dequantize` is the meaning, (code - zero point) * scale; packing loses nothing.
Elsewhere choosing scales: export/quantize.py.
Source    docs/sources.md#int4
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.kernels.builder import CONTRIB, Builder


@dataclass(frozen=True)
class BlockWeight:
    """One quantised weight, unpacked.

    `codes` (out, blocks * block) uint8, `scales` (out, blocks) float32, `zero_points` (out, blocks) uint8,
    all codes below 2 ** bits; `columns` is the true input width.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zero_points: NDArray[np.uint8]
    bits: int
    block: int
    columns: int


def dequantize(weight: BlockWeight) -> NDArray[np.float32]:
    """The (out, in) float32 weight that the codes stand for."""
    rows = len(weight.codes)
    codes = weight.codes.reshape(rows, -1, weight.block).astype(np.float32)
    wide = (codes - weight.zero_points[..., None].astype(np.float32)) * weight.scales[..., None]
    return wide.reshape(rows, -1)[:, : weight.columns]


def pack(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Pack (..., n) codes into (..., ceil(n * bits / 8)) bytes, low nibble first; an odd last nibble is 0."""
    assert bits in (4, 8), bits
    if bits == 8:
        return values
    if values.shape[-1] % 2:
        values = np.concatenate([values, np.zeros_like(values[..., :1])], axis=-1)
    return values[..., 0::2] | (values[..., 1::2] << np.uint8(4))


def unpack(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """The first `count` codes of each packed row: the inverse of `pack`."""
    assert bits in (4, 8), bits
    if bits == 8:
        return packed[..., :count]
    pairs = np.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=-1)
    return pairs.reshape(*packed.shape[:-1], -1)[..., :count]


def packed_tensors(weight: BlockWeight) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    """Codes, scales and zero points as MatMulNBits reads them; see the module's layout."""
    rows, blocks = weight.scales.shape
    codes = pack(weight.codes.reshape(rows, blocks, weight.block), weight.bits)
    return codes, weight.scales, pack(weight.zero_points, weight.bits)


def by_groups(
    codes: NDArray[np.uint8], scales: NDArray[np.float32], zeros: NDArray[np.uint8], bits: int, group: int
) -> BlockWeight:
    """A weight by groups as blocks that MatMulNBits has: one scale a row is repeated, a ragged end filled.

    Args:
        codes: (out, in); scales, zeros: (out, groups); group: columns that share a scale, or -1.
    """
    rows, columns = codes.shape
    block = group
    if group < 0:
        block = 128 if columns % 128 == 0 else 32
        scales = np.repeat(scales, -(-columns // block), axis=1)
        zeros = np.repeat(zeros, -(-columns // block), axis=1)
    blocks = -(-columns // block)
    assert scales.shape == zeros.shape == (rows, blocks), (scales.shape, zeros.shape, blocks)
    filled = np.repeat(zeros, block, axis=1)
    filled[:, :columns] = codes
    return BlockWeight(
        filled, np.ascontiguousarray(scales), np.ascontiguousarray(zeros), bits, block, columns
    )


def matmul_nbits(x: NDArray[np.float32], weight: BlockWeight) -> NDArray[np.float32]:
    """(..., in) float32 times the dequantised weight's transpose, to (..., out)."""
    return x @ dequantize(weight).T


def lower_matmul_nbits(
    graph: Builder, x: str, tensors: tuple[str, str, str], shape: tuple[int, int],
    bits: int, block: int, accuracy_level: int, bias: str | None = None, domain: str = CONTRIB,
) -> str:  # fmt: skip
    """The definition as MatMulNBits.

    Args:
        tensors: names of packed codes, scales and packed zero points.
        shape: (out, in).
        accuracy_level: 0 multiplies in float32; 4 rounds x to 8 bits a block first, which is faster.
        domain: whose operator: ONNX Runtime's, or ours (native_operators.py).
    """
    rows, columns = shape
    inputs = [x, *tensors] if bias is None else [x, *tensors, "", bias]
    return graph.node(
        "MatMulNBits", inputs, domain,
        K=columns, N=rows, bits=bits, block_size=block, accuracy_level=accuracy_level,
    )  # fmt: skip
