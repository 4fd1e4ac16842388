"""Multi-scale deformable attention on a CPU, compiled once, for training only.

What      transformers samples with `grid_sample` per level, then stacks, multiplies and sums: on a
          CPU that is half of a training step. Here one pass reads each sampled cell once.
Contract  the same function and gradients as transformers' `MultiScaleDeformableAttention`
          (tests/training/test_deformable.py compares them); float32, contiguous.
Layout    value (B, S, H, D); locations (B, Q, H, L, P, 2), (x, y) in [0, 1]; weights (B, Q, H, L, P).
Elsewhere the exported graph keeps GridSample: export/detector_graph.py.
Source    Deformable DETR, arXiv 2010.04159, equation 3; bilinear, zeros outside, corners not aligned.
"""

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rexthinker_edge.runtime.errors import DeviceError

SOURCE = r"""
#include <math.h>
#include <string.h>
typedef long long i64;
/* One sampled point: its four cells, their bilinear weights, and their slopes in x and y (cells). */
struct Point { i64 cell[4]; float weight[4], slope_x[4], slope_y[4]; };
static inline void locate(Point &p, float x, float y, i64 height, i64 width) {
    float px = x * width - 0.5f, py = y * height - 0.5f;
    px = fminf(fmaxf(px, -2.0f), width + 1.0f); py = fminf(fmaxf(py, -2.0f), height + 1.0f);
    i64 x0 = (i64)floorf(px), y0 = (i64)floorf(py);
    float fx = px - x0, fy = py - y0;
    for (int k = 0; k < 4; ++k) {
        i64 cx = x0 + (k & 1), cy = y0 + (k >> 1);
        float wx = (k & 1) ? fx : 1 - fx, wy = (k >> 1) ? fy : 1 - fy;
        bool inside = cx >= 0 && cy >= 0 && cx < width && cy < height;
        p.cell[k] = inside ? cy * width + cx : -1;
        p.weight[k] = wx * wy;
        p.slope_x[k] = ((k & 1) ? wy : -wy) * width;
        p.slope_y[k] = ((k >> 1) ? wx : -wx) * height;
    }
}
template <int D> static void forward(
        const float *value, const i64 *shapes, const float *where, const float *weights, float *out,
        i64 B, i64 S, i64 H, i64 Q, i64 L, i64 P) {
    for (i64 b = 0; b < B; ++b) for (i64 q = 0; q < Q; ++q) for (i64 h = 0; h < H; ++h) {
        i64 row = (b * Q + q) * H + h;
        float sum[D];
        for (int d = 0; d < D; ++d) sum[d] = 0;
        i64 start = 0;
        for (i64 l = 0; l < L; ++l) {
            i64 height = shapes[2 * l], width = shapes[2 * l + 1];
            for (i64 n = 0; n < P; ++n) {
                i64 at = (row * L + l) * P + n;
                Point p; locate(p, where[2 * at], where[2 * at + 1], height, width);
                for (int k = 0; k < 4; ++k) if (p.cell[k] >= 0) {
                    const float *v = value + ((b * S + start + p.cell[k]) * H + h) * D;
                    float w = weights[at] * p.weight[k];
                    for (int d = 0; d < D; ++d) sum[d] += w * v[d];
                }
            }
            start += height * width;
        }
        for (int d = 0; d < D; ++d) out[row * D + d] = sum[d];
    }
}
template <int D> static void backward(
        const float *value, const i64 *shapes, const float *where, const float *weights,
        const float *grad, float *grad_value, float *grad_where, float *grad_weights,
        i64 B, i64 S, i64 H, i64 Q, i64 L, i64 P) {
    for (i64 b = 0; b < B; ++b) for (i64 q = 0; q < Q; ++q) for (i64 h = 0; h < H; ++h) {
        i64 row = (b * Q + q) * H + h;
        const float *g = grad + row * D;
        i64 start = 0;
        for (i64 l = 0; l < L; ++l) {
            i64 height = shapes[2 * l], width = shapes[2 * l + 1];
            for (i64 n = 0; n < P; ++n) {
                i64 at = (row * L + l) * P + n;
                Point p; locate(p, where[2 * at], where[2 * at + 1], height, width);
                float to_weight = 0, to_x = 0, to_y = 0;
                for (int k = 0; k < 4; ++k) if (p.cell[k] >= 0) {
                    i64 cell = ((b * S + start + p.cell[k]) * H + h) * D;
                    const float *v = value + cell; float *gv = grad_value + cell;
                    float w = weights[at] * p.weight[k], dot = 0;
                    for (int d = 0; d < D; ++d) { dot += g[d] * v[d]; gv[d] += w * g[d]; }
                    to_weight += p.weight[k] * dot; to_x += p.slope_x[k] * dot; to_y += p.slope_y[k] * dot;
                }
                grad_weights[at] = to_weight;
                grad_where[2 * at] = to_x * weights[at]; grad_where[2 * at + 1] = to_y * weights[at];
            }
            start += height * width;
        }
    }
}
#define CASES(call) switch (D) { case 8: call(8); break; case 16: call(16); break; case 24: call(24); break; \
    case 32: call(32); break; case 48: call(48); break; case 64: call(64); break; \
    default: return 1; } return 0;
extern "C" int deformable_forward(
        const float *value, const i64 *shapes, const float *where, const float *weights, float *out,
        i64 B, i64 S, i64 H, i64 Q, i64 L, i64 P, i64 D) {
#define F(N) forward<N>(value, shapes, where, weights, out, B, S, H, Q, L, P)
    CASES(F)
}
extern "C" int deformable_backward(
        const float *value, const i64 *shapes, const float *where, const float *weights,
        const float *grad, float *grad_value, float *grad_where, float *grad_weights,
        i64 B, i64 S, i64 H, i64 Q, i64 L, i64 P, i64 D) {
#define G(N) backward<N>( \
    value, shapes, where, weights, grad, grad_value, grad_where, grad_weights, B, S, H, Q, L, P)
    CASES(G)
}
"""


def compile_library() -> ctypes.CDLL:
    """Compile `SOURCE` into a private temporary directory and load it.

    Raises:
        DeviceError: there is no C++ compiler, or it refuses the source.
    """
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise DeviceError("deformable attention: no g++ or clang++ found, training compiles its sampling; "
                          "install a C++ compiler, such as Debian's package g++.")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "deformable.cpp"), Path(folder, "deformable.so")
        source.write_text(SOURCE)
        command = [
            compiler,
            "-O3",
            "-march=native",
            "-ffast-math",
            "-shared",
            "-fPIC",
            str(source),
            "-o",
            str(library),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise DeviceError(f"deformable attention: {compiler} failed: {done.stderr.strip()[:400]}; "
                              "try another C++ compiler.")  # fmt: skip
        return ctypes.CDLL(str(library))


def native_function(library: ctypes.CDLL) -> type[torch.autograd.Function]:
    """The autograd function over a compiled library: (value, locations, weights, shapes) -> (B, Q, H * D)."""

    class Sample(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: Tensor, where: Tensor, weights: Tensor, shapes: Tensor) -> Tensor:
            value, where, weights = value.contiguous(), where.contiguous(), weights.contiguous()
            ctx.save_for_backward(value, where, weights, shapes)
            batch, queries, heads = where.shape[:3]
            out = torch.empty(batch, queries, heads * value.shape[-1])
            _call(library.deformable_forward, [value, shapes, where, weights, out], value, where)
            return out

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
            value, where, weights, shapes = ctx.saved_tensors
            to_value, to_where, to_weights = (
                torch.zeros_like(value),
                torch.empty_like(where),
                torch.empty_like(weights),
            )
            tensors = [value, shapes, where, weights, grads[0].contiguous(), to_value, to_where, to_weights]
            _call(library.deformable_backward, tensors, value, where)
            return to_value, to_where, to_weights, None

    return Sample


def _call(function: Any, tensors: Sequence[Tensor], value: Tensor, where: Tensor) -> None:
    batch, cells, heads, depth = value.shape
    _, queries, _, levels, points, _ = where.shape
    sizes = (batch, cells, heads, queries, levels, points, depth)
    failed = function(
        *(ctypes.c_void_p(t.data_ptr()) for t in tensors), *(ctypes.c_longlong(n) for n in sizes)
    )
    assert failed == 0, f"head width {depth} is not compiled in"


def use_native_sampling(model: nn.Module) -> int:
    """Let every deformable attention of `model` sample through the compiled function.

    Returns:
        How many were replaced. Saved weights are not affected.
    """
    from transformers.models.grounding_dino.modeling_grounding_dino import (  # noqa: PLC0415
        MultiScaleDeformableAttention,
    )

    sample = native_function(compile_library())

    def forward(value: Tensor, shapes: Tensor, _list: Any, _start: Tensor, where: Tensor, weights: Tensor,
                _step: int) -> Tensor:  # fmt: skip
        out: Tensor = sample.apply(value, where, weights, shapes)  # type: ignore[no-untyped-call]
        return out

    samplers = [m for m in model.modules() if isinstance(m, MultiScaleDeformableAttention)]
    for sampler in samplers:
        sampler.forward = forward
    return len(samplers)
