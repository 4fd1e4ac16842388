"""What a decoder costs before it has computed anything: a token of models that are too small to take time.

What      Two decoders of 64 channels, one shallow and one deep, are asked for tokens by the very code that
          answers questions. What the deep one takes longer is its operators' starting; what is left of the
          shallow one is the call: Python, binding, threads that wake, choosing a token.
Contract  Half a CPU second. The quickest token counts, as the quickest run does in rates.py.
Elsewhere who adds it up: roofline.py; bandwidth and arithmetic: rates.py.
Source    docs/sources.md#roofline
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from rexthinker_edge.kernels.grouped_query_attention import lower_grouped_query_attention
from rexthinker_edge.kernels.linear import lower_linear
from rexthinker_edge.kernels.matmul_nbits import lower_matmul_nbits
from rexthinker_edge.kernels.mrope import lower_mrope, rotary_table
from rexthinker_edge.kernels.rms_norm import lower_rms_norm, lower_skip_rms_norm
from rexthinker_edge.kernels.swiglu import lower_swiglu
from rexthinker_edge.runtime.decoder import Decoder
from rexthinker_edge.runtime.decoder_geometry import DecoderGeometry
from rexthinker_edge.runtime.embeddings import Embeddings
from rexthinker_edge.runtime.generate import Generation, Limits
from rexthinker_edge.runtime.positions import text_positions
from rexthinker_edge.runtime.tiny_onnx import TinyGraph, read_contents

HEADS, KV_HEADS, DEPTH, SECTION, VOCAB, LENGTH = 4, 2, 16, (2, 3, 3), 256, 64
WIDTH = HEADS * DEPTH
SHALLOW, DEEP = 2, 10
TOKENS, RUNS = 24, 12
BLOCK = 32


@dataclass(frozen=True)
class Overhead:
    """Seconds."""

    call: float  # of one pass, whatever its size
    node: float  # of one operator in it


def measure_overhead(int4: bool, threads: int | None = None) -> Overhead:
    """Measure this machine; arguments as `measure_cpu`."""
    with tempfile.TemporaryDirectory() as scratch:
        pairs = [_token(Path(scratch), layers, int4, threads) for layers in (SHALLOW, DEEP)]
    (shallow, few), (deep, many) = pairs
    node = max(deep - shallow, 0.0) / (many - few)
    return Overhead(max(shallow - few * node, 0.0), node)


def _token(folder: Path, layers: int, int4: bool, threads: int | None) -> tuple[float, int]:
    """Seconds of the quickest token, and nodes, of a decoder with so many layers."""
    geometry = DecoderGeometry(
        layers, WIDTH, HEADS, KV_HEADS, DEPTH, VOCAB, SECTION, 1e4, LENGTH, "float32", branches=False
    )
    path, table = folder / f"{layers}.onnx", folder / "embeddings.bin"
    path.write_bytes(tiny_decoder(layers, int4))
    table.write_bytes(np.zeros((VOCAB, WIDTH), np.float32).tobytes())
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads or 0, 3
    decoder = Decoder(path, Embeddings(table, geometry), geometry, options)
    best = float("inf")
    for _ in range(RUNS):
        cache, prompt = decoder.new_cache(LENGTH), [1, 2, 3, 4]
        logits = decoder.run(decoder.embed(prompt), text_positions(0, len(prompt)), cache)
        generation = Generation(decoder, cache, logits, len(prompt), Limits(frozenset(), TOKENS))
        tokens = iter(generation)
        next(tokens)  # chosen from the prompt's logits, without a pass
        began = time.perf_counter()
        for _ in tokens:  # one by one: an interruption spoils one of them, not all
            ends = time.perf_counter()
            best, began = min(best, ends - began), ends
    return best, read_contents(path).nodes


def tiny_decoder(layers: int, int4: bool) -> bytes:
    """A decoder of the same operators as a bundle's, with weights of no meaning."""
    graph = TinyGraph()
    ones = graph.constant(np.ones(WIDTH, np.float32))
    tables = tuple(graph.constant(table) for table in rotary_table(1e4, DEPTH, LENGTH))
    x, positions = graph.free_input("embeds"), graph.free_input("positions", "int64")
    last, total = graph.free_input("last_index", "int32"), graph.free_input("total_length", "int32")
    rows = graph.free_input("rows", "int64")
    residual, branch = x, ""
    for layer in range(layers):
        if branch:
            normed, residual = lower_skip_rms_norm(graph, residual, branch, ones, 1e-6)
        else:
            normed = lower_rms_norm(graph, residual, ones, 1e-6)
        query, key, value = (_dense(graph, normed, n * DEPTH, int4) for n in (HEADS, KV_HEADS, KV_HEADS))
        query = lower_mrope(graph, query, positions, tables[0], tables[1], SECTION, HEADS)
        key = lower_mrope(graph, key, positions, tables[0], tables[1], SECTION, KV_HEADS)
        past = [graph.free_input(f"{part}.{layer}") for part in ("keys", "values")]
        kept = [graph.output(f"new_{part}.{layer}") for part in ("keys", "values")]
        attended = lower_grouped_query_attention(
            graph, query, key, value, (past[0], past[1], kept[0], kept[1]), last, total, "", HEADS, KV_HEADS
        )
        attended = _dense(graph, attended, WIDTH, int4)
        normed, residual = lower_skip_rms_norm(graph, residual, attended, ones, 1e-6)
        gate, up = (_dense(graph, normed, WIDTH, int4) for _ in range(2))
        branch = _dense(graph, lower_swiglu(graph, gate, up), WIDTH, int4)
    residual, branch = (graph.node("Gather", [v, rows], axis=1) for v in (residual, branch))
    normed, _ = lower_skip_rms_norm(graph, residual, branch, ones, 1e-6)
    logits = _dense(graph, normed, VOCAB, int4)
    graph.output(graph.nodes("Identity", [logits], ["logits"])[0])
    return graph.serialise()


def _dense(graph: TinyGraph, x: str, rows: int, int4: bool) -> str:
    """A linear layer from `WIDTH` to `rows`, in either form of a bundle."""
    if not int4:
        weight: NDArray[np.float32] = np.full((rows, WIDTH), 1 / WIDTH, np.float32)
        return lower_linear(graph, x, graph.constant(weight), graph.constant(np.zeros(rows, np.float32)))
    blocks = WIDTH // BLOCK
    codes = graph.constant(np.full((rows, blocks, BLOCK // 2), 0x99, np.uint8))
    scales = graph.constant(np.full((rows, blocks), 1 / WIDTH, np.float32))
    zeros = graph.constant(np.full((rows, blocks // 2), 0x88, np.uint8))
    return lower_matmul_nbits(graph, x, (codes, scales, zeros), (rows, WIDTH), 4, BLOCK, accuracy_level=4)
