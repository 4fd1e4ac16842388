"""Writes GGUF files of random Q4_0 weights in the shape of a Qwen2 text decoder.

Layout    "GGUF", version 3, counts, key-value pairs, tensor descriptions, then data, each tensor aligned to
          32 bytes. A Q4_0 block is a float16 scale and 32 codes of 4 bits, 18 bytes; a tensor's sizes are
          named from the innermost out.
Contract  Names, shapes and types are those of llama.cpp's own conversion of Qwen2.5 with every matrix in Q4_0
          ("pure"). One tensor at a time is in memory.
Elsewhere who reads it: peer_llama_cpp.py, peer_openvino_genai.py; which shape: shape.py.
Source    docs/sources.md#gguf
"""

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.benchmarks.peers.shape import Shape

ALIGNMENT = 32
F32, Q4_0 = 0, 2  # of ggml's tensor types
BLOCK = 32
# Codes are uniform over 16 values around 0: their standard deviation.
CODE_DEVIATION = float(np.sqrt((16**2 - 1) / 12))
_TYPES: dict[type, int] = {bool: 7, int: 4, float: 6, str: 8}
_I32 = 5  # llama.cpp takes kinds of tokens in this type only
_NORMAL, _CONTROL, _UNUSED = 1, 3, 5  # kinds of tokens


def encode_value(value: Any) -> bytes:
    """A value with its type, as GGUF stores it: bool, u32, f32, string, or an array (of i32, f32, string)."""
    if isinstance(value, list):
        inner = _I32 if type(value[0]) is int else _TYPES[type(value[0])]
        return struct.pack("<IIQ", 9, inner, len(value)) + b"".join(_bare(item) for item in value)
    return struct.pack("<I", _TYPES[type(value)]) + _bare(value)


def _bare(value: Any) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<?", value)
    if isinstance(value, int):
        return struct.pack("<I", value)
    if isinstance(value, float):
        return struct.pack("<f", value)
    return _string(value)


def _string(text: str) -> bytes:
    stored = text.encode()
    return struct.pack("<Q", len(stored)) + stored


def tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and (out, in) or (size,) shapes, in file order."""
    hidden, wide, kv_width = shape.hidden, shape.intermediate, shape.kv_width
    yield "token_embd.weight", (shape.vocab, hidden)
    for layer in range(shape.layers):
        members: dict[str, tuple[int, ...]] = {
            "attn_norm.weight": (hidden,), "ffn_norm.weight": (hidden,), "attn_q.weight": (hidden, hidden),
            "attn_q.bias": (hidden,), "attn_k.weight": (kv_width, hidden), "attn_k.bias": (kv_width,),
            "attn_v.weight": (kv_width, hidden), "attn_v.bias": (kv_width,),
            "attn_output.weight": (hidden, hidden), "ffn_gate.weight": (wide, hidden),
            "ffn_up.weight": (wide, hidden), "ffn_down.weight": (hidden, wide),
        }  # fmt: skip
        for name, sizes in members.items():
            yield f"blk.{layer}.{name}", sizes
    yield "output_norm.weight", (hidden,)
    yield "output.weight", (shape.vocab, hidden)


def stored_bytes(sizes: tuple[int, ...]) -> int:
    """What a tensor takes: matrices in Q4_0, vectors in float32."""
    count = int(np.prod(sizes, dtype=np.int64))
    return count * 4 if len(sizes) == 1 else count // BLOCK * 18


def settings(shape: Shape, tokenizer: Path | None) -> dict[str, Any]:
    """The file's key-value pairs; without `tokenizer` (a tokenizer.json) the file knows token ids only."""
    pairs: dict[str, Any] = {
        "general.architecture": "qwen2", "general.name": f"random {shape.name}", "general.file_type": 2,
        "general.quantization_version": 2, "qwen2.block_count": shape.layers,
        "qwen2.context_length": shape.max_length, "qwen2.embedding_length": shape.hidden,
        "qwen2.feed_forward_length": shape.intermediate, "qwen2.attention.head_count": shape.heads,
        "qwen2.attention.head_count_kv": shape.kv_heads, "qwen2.vocab_size": shape.vocab,
        "qwen2.attention.layer_norm_rms_epsilon": shape.rms_norm_eps,
        "qwen2.rope.freq_base": shape.rope_theta,
    }  # fmt: skip
    if tokenizer is None:
        return pairs | {"tokenizer.ggml.model": "no_vocab"}
    return pairs | _vocabulary(json.loads(tokenizer.read_text("utf-8")), shape.vocab)


def _vocabulary(read: Mapping[str, Any], vocab: int) -> dict[str, Any]:
    """A byte-level BPE tokenizer in GGUF's words."""
    texts = [f"[PAD{index}]" for index in range(vocab)]
    kinds = [_UNUSED] * vocab
    for text, index in read["model"]["vocab"].items():
        texts[index], kinds[index] = text, _NORMAL
    for added in read["added_tokens"]:
        texts[added["id"]], kinds[added["id"]] = added["content"], _CONTROL
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in read["model"]["merges"]]
    end = texts.index("<|im_end|>")
    return {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2", "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": kinds, "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": end, "tokenizer.ggml.padding_token_id": end,
        "tokenizer.ggml.bos_token_id": end, "tokenizer.ggml.add_bos_token": False,
    }  # fmt: skip


def write_gguf(path: Path, shape: Shape, tokenizer: Path | None = None) -> None:
    """Write random weights of `shape` to `path`."""
    pairs, listed = settings(shape, tokenizer), list(tensors(shape))
    header = b"GGUF" + struct.pack("<IQQ", 3, len(listed), len(pairs))
    header += b"".join(_string(key) + encode_value(value) for key, value in pairs.items())
    offset = 0
    for name, sizes in listed:
        kind = F32 if len(sizes) == 1 else Q4_0
        header += _string(name) + struct.pack("<I", len(sizes))
        header += struct.pack(f"<{len(sizes)}Q", *reversed(sizes)) + struct.pack("<IQ", kind, offset)
        offset += _aligned(stored_bytes(sizes))
    with path.open("wb") as stream:
        stream.write(header + bytes(_aligned(len(header)) - len(header)))
        for name, sizes in listed:
            data = random_tensor(name, sizes)
            stream.write(data.data)
            stream.write(bytes(_aligned(data.nbytes) - data.nbytes))


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def random_tensor(name: str, sizes: tuple[int, ...]) -> NDArray[np.uint8]:
    """A tensor's bytes: norms near 1, biases near 0, matrices of deviation 1 / sqrt(columns)."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if len(sizes) == 1:
        values = rng.standard_normal(sizes[0], np.float32) * np.float32(0.02) + np.float32("norm" in name)
        return values.view(np.uint8)
    blocks = sizes[0] * sizes[1] // BLOCK
    stored = np.frombuffer(rng.bytes(blocks * 18), np.uint8).reshape(blocks, 18).copy()
    scale = np.float16(sizes[1] ** -0.5 / CODE_DEVIATION)
    stored[:, :2] = np.frombuffer(scale.tobytes(), np.uint8)
    return stored.reshape(-1)
