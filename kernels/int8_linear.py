"""A linear layer with 8-bit weights and activations rounded to 8 bits as they come.

Layout    Codes are (in, out) int8, one scale per output channel, no zero point: the order in which
          DynamicQuantizeMatMul reads them. Codes stay within -63 … 63.
Contract  y = s_x s_w ((x_q - z) @ codes) + bias with x_q = round(x / s_x) + z in 0 … 255, s_x and z one pair
          for all of x, from its least and greatest value with 0 among them. By rows, every row is first
          divided by its greatest magnitude and the product multiplied by it, so that one loud row does not
          silence the others: 8 % slower at a width of 1,280, 25 % at 256. Seven bits of weight, because
          AVX2 adds products of 8 bits in pairs of 16: 2 · 255 · 63 fits, 2 · 255 · 127 does not and is cut
          off without a word. So the same numbers come out on every processor, with VNNI and without.
Elsewhere 4 and 8 bits per block, for the decoder: matmul_nbits.py; which layers of the detector:
          export/detector_int8.py.
Source    docs/sources.md#int8-linear
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.kernels.builder import CONTRIB, Builder

MOST = 63
LEAST = 1e-30  # so that a row of zeros is not divided by zero


@dataclass(frozen=True)
class ChannelWeight:
    """A weight of 8-bit codes with a scale per output channel."""

    codes: NDArray[np.int8]  # (in, out)
    scales: NDArray[np.float32]  # (out,)


def round_channels(weight: NDArray[np.float32]) -> ChannelWeight:
    """Round an (out, in) weight to the nearest codes; a row of zeros gets the scale 1."""
    most = np.abs(weight).max(axis=1)
    scales = np.where(most > 0, most / np.float32(MOST), 1).astype(np.float32)
    codes = np.clip(np.rint(weight / scales[:, None]), -MOST, MOST).astype(np.int8)
    return ChannelWeight(np.ascontiguousarray(codes.T), scales)


def dequantize_channels(weight: ChannelWeight) -> NDArray[np.float32]:
    """The (out, in) float32 weight that the codes stand for."""
    return (weight.codes.astype(np.float32) * weight.scales).T


def round_activations(x: NDArray[np.float32]) -> tuple[NDArray[np.uint8], np.float32, np.uint8]:
    """Codes, scale and zero point of x, as ONNX's DynamicQuantizeLinear defines them."""
    least, most = min(0.0, float(x.min())), max(0.0, float(x.max()))
    scale = np.float32((most - least) / 255) or np.float32(1)
    zero = np.uint8(np.clip(np.rint(-least / scale), 0, 255))
    return np.clip(np.rint(x / scale) + zero, 0, 255).astype(np.uint8), scale, zero


def int8_linear(
    x: NDArray[np.float32], weight: ChannelWeight, bias: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """(..., in) float32 to (..., out), as the contract says."""
    codes, scale, zero = round_activations(x)
    whole = (codes.astype(np.int32) - int(zero)) @ weight.codes.astype(np.int32)
    y: NDArray[np.float32] = whole.astype(np.float32) * (scale * weight.scales)
    return y if bias is None else y + bias


def even_rows(x: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(..., in) to rows whose greatest magnitude is 1, and what to multiply each with (..., 1)."""
    gain = np.maximum(np.abs(x).max(axis=-1, keepdims=True), np.float32(LEAST))
    return x / gain, gain


def int8_rows_linear(
    x: NDArray[np.float32], weight: ChannelWeight, bias: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """`int8_linear` by rows."""
    even, gain = even_rows(x)
    y = int8_linear(even, weight) * gain
    return y if bias is None else y + bias


def lower_even_rows(graph: Builder, x: str) -> tuple[str, str]:
    """`even_rows`; several products of the same x share it."""
    axis = graph.constant(np.array([-1], np.int64))
    most = graph.node("ReduceMax", [x, axis], keepdims=1)
    least = graph.node("Neg", [graph.node("ReduceMin", [x, axis], keepdims=1)])
    gain = graph.node("Max", [most, least, graph.constant(np.array(LEAST, np.float32))])
    return graph.node("Div", [x, gain]), gain


def lower_int8_rows_linear(
    graph: Builder, even: tuple[str, str], codes: str, scales: str, bias: str | None = None
) -> str:
    """`int8_rows_linear` of what `lower_even_rows` gave."""
    y = graph.node("Mul", [lower_int8_linear(graph, even[0], codes, scales), even[1]])
    return y if bias is None else graph.node("Add", [y, bias])


def lower_int8_linear(graph: Builder, x: str, codes: str, scales: str, bias: str | None = None) -> str:
    """The definition as DynamicQuantizeMatMul."""
    inputs = [x, codes, scales, ""] + ([] if bias is None else [bias])
    return graph.node("DynamicQuantizeMatMul", inputs, CONTRIB)
