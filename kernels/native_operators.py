"""MatMulNBits and GroupQueryAttention as operators of our own: the compiled library, and whether to use it.

Why       On a processor with AVX2 and no VNNI, ONNX Runtime's products are bound by arithmetic before memory,
          and it copies every weight into an order of its own at opening. Ours read weights as the bundle
          stores them and are quicker at every number of rows. And a row's numbers depend on that row and on
          what it sees alone, so drafted answers, and answers decoded together, are those of one by one.
Contract  `matmul_nbits_rounded` and grouped_query_attention.py are the meaning. The library is optional:
          `trouble` says why ONNX Runtime's operators are used instead.
Elsewhere the arithmetic: native/; giving a graph to it: runtime/native_graph.py.
Source    docs/native.md
"""

import ctypes
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.kernels.builder import CONTRIB
from rexthinker_edge.kernels.matmul_nbits import BlockWeight

DOMAIN, VERSION = "rexthinker_edge", 1
BLOCKS, BITS = (32, 64, 128, 256), (4, 8)
HEAD_STEP = 32  # widths of attention heads are its multiples
LEAST = np.float32(1e-30)  # a block of smaller activations counts as zeros
_NO, _YES = 0, 1


def matmul_nbits_rounded(x: NDArray[np.float32], weight: BlockWeight) -> NDArray[np.float32]:
    """(..., in) float32 times the weight's transpose, to (..., out), with x rounded to 8 bits a block.

    A block's scale is its largest size / 127; a block with an infinite or undefined number is undefined.
    """
    rows, blocks = weight.scales.shape
    padded = np.zeros((*x.shape[:-1], blocks * weight.block), np.float32)
    padded[..., : weight.columns] = x
    parts = padded.reshape(*x.shape[:-1], blocks, weight.block)
    most = np.abs(parts).max(axis=-1)
    with np.errstate(all="ignore"):
        scales = np.where(np.isfinite(most), np.where(most < LEAST, 0, most / np.float32(127)), np.nan)
        codes = np.rint(np.where(most < LEAST, 0, 1)[..., None] * parts * (np.float32(127) / most)[..., None])
    codes = np.nan_to_num(codes, posinf=0, neginf=0).astype(np.int64)
    stored = weight.codes.reshape(rows, blocks, weight.block).astype(np.int64)
    whole = np.einsum("...bk,nbk->...nb", codes, stored - weight.zero_points[..., None])
    exact: NDArray[np.float32] = (whole * scales[..., None, :] * weight.scales).sum(-1).astype(np.float32)
    return exact


@cache
def library_path() -> Path | None:
    """Where the compiled library lies; None where the package was built without it."""
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_native{suffix}")
        if path.is_file():
            return path
    return None


@cache
def trouble() -> str:
    """Why our operator is not used on this machine; empty where it is."""
    path = library_path()
    if path is None:
        return "the package was built without it (no C++ compiler)"
    try:
        supported: int = ctypes.CDLL(str(path)).rexthinker_edge_supported()
    except (OSError, AttributeError) as error:
        return f"{path.name} cannot be loaded ({error})"
    if supported == _YES:
        return ""
    if supported == _NO:
        return "the processor has no AVX2"
    return "the processor has VNNI, for which ONNX Runtime's own is made"


def product_domain() -> str:
    """The domain whose MatMulNBits runs here, at accuracy level 4 and in sizes that `serves` passes."""
    return CONTRIB if trouble() else DOMAIN


def attends(width: int | None) -> bool:
    """Whether GroupQueryAttention of ours has heads of such a width."""
    return width is not None and width > 0 and width % HEAD_STEP == 0


def serves(bits: int | None, block: int | None) -> bool:
    """Whether it computes weights of so many bits in blocks of so many columns."""
    return bits in BITS and block in BLOCKS
