"""Writes random-weight checkpoints of the published shapes, to prove sizes, memory and time without weights.

Run       python -m rexthinker_edge.benchmarks.make_random_checkpoint OUT --shape 7b --tokenizer FILE
          python -m rexthinker_edge.benchmarks.make_random_checkpoint OUT --shape swin-t --tokenizer FILE
Layout    OUT/config.json as the publisher writes it, sharded bf16 safetensors with an index, generation
          settings and, where given, the tokenizer. Shapes: Qwen2.5-VL 3b (tied), 7b, 32b and a tiny one;
          swin-t is Grounding DINO's.
Contract  Names, shapes, dtypes and bytes are those of the published checkpoint; the numbers are one block of
          normal values, scaled by each tensor's fan-in and written over and over, so that 17 GB take the time
          of writing them and 50 MB of memory. Every tensor begins at another place of the block: no two are
          equal, for ONNX Runtime keeps equal weights once and memory would look too small.
          `sparse` leaves holes (zeros) instead: the same files, no disk.
Elsewhere reading them: export/checkpoint.py; the detector's architecture: export/detector_graph.py.
Source    docs/full-size.md
"""

import argparse
import json
import shutil
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.export.config import ModelConfig, parse_config
from rexthinker_edge.kernels.bfloat16 import from_float32

SHARD_BYTES = 4_000_000_000
BLOCK_VALUES = (1 << 22) + 3  # odd, so that equal rows of a power-of-two width are not equal
VISION: dict[str, Any] = {
    "depth": 32, "hidden_act": "silu", "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
    "in_chans": 3, "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14, "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2, "temporal_patch_size": 2,
}  # fmt: skip
BASE: dict[str, Any] = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"], "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "vision_start_token_id": 151652, "vision_end_token_id": 151653,
    "vision_token_id": 151654, "image_token_id": 151655, "video_token_id": 151656, "hidden_act": "silu",
    "initializer_range": 0.02, "max_position_embeddings": 128000, "model_type": "qwen2_5_vl",
    "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768, "torch_dtype": "bfloat16",
    "transformers_version": "4.41.2", "use_cache": True, "use_sliding_window": False,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "vocab_size": 152064,
    "tie_word_embeddings": False,
}  # fmt: skip


def _decoder(hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "intermediate_size": intermediate, "max_window_layers": layers,
    }  # fmt: skip


# The published configurations of Qwen2.5-VL (Rex-Thinker is the 7b).
SHAPES: dict[str, dict[str, Any]] = {
    "3b": _decoder(2048, 36, 16, 2, 11008) | {"vocab_size": 151936, "tie_word_embeddings": True},
    "7b": _decoder(3584, 28, 28, 4, 18944),
    "32b": _decoder(5120, 64, 40, 8, 27648),
    "tiny": _decoder(256, 2, 2, 1, 512),
}
VISION_CHANGES: dict[str, dict[str, Any]] = {
    "32b": {"intermediate_size": 3456},
    "tiny": {
        "depth": 2, "hidden_size": 64, "num_heads": 2, "intermediate_size": 96, "fullatt_block_indexes": [1]
    },
}  # fmt: skip


def published_config(shape: str) -> dict[str, Any]:
    """`config.json` of a shape, as its publisher writes it (transformers 4, flat)."""
    text = BASE | SHAPES[shape]
    vision = VISION | {"out_hidden_size": text["hidden_size"]} | VISION_CHANGES.get(shape, {})
    return text | {"vision_config": vision}


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint of this configuration, by its published name, in file order."""
    text, vision = config.text, config.vision
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (text.vocab, text.hidden)}
    for layer in range(text.layers):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in _decoder_layer(config).items()}
    shapes["model.norm.weight"] = (text.hidden,)
    if not text.tied:
        shapes["lm_head.weight"] = (text.vocab, text.hidden)
    kernel = (vision.hidden, 3, vision.temporal_patch, vision.patch, vision.patch)
    shapes["visual.patch_embed.proj.weight"] = kernel
    for layer in range(vision.depth):
        shapes |= {f"visual.blocks.{layer}.{name}": shape for name, shape in _vision_layer(config).items()}
    width = vision.hidden * vision.merge**2
    return shapes | {
        "visual.merger.ln_q.weight": (vision.hidden,),
        "visual.merger.mlp.0.weight": (width, width), "visual.merger.mlp.0.bias": (width,),
        "visual.merger.mlp.2.weight": (vision.out_hidden, width),
        "visual.merger.mlp.2.bias": (vision.out_hidden,),
    }  # fmt: skip


def _decoder_layer(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    text = config.text
    kv_width = text.kv_heads * text.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (text.hidden,), "post_attention_layernorm.weight": (text.hidden,),
    }  # fmt: skip
    for name, width in (("q_proj", text.hidden), ("k_proj", kv_width), ("v_proj", kv_width)):
        shapes |= {f"self_attn.{name}.weight": (width, text.hidden), f"self_attn.{name}.bias": (width,)}
    wide = (text.intermediate, text.hidden)
    return shapes | {
        "self_attn.o_proj.weight": (text.hidden, text.hidden), "mlp.gate_proj.weight": wide,
        "mlp.up_proj.weight": wide, "mlp.down_proj.weight": wide[::-1],
    }  # fmt: skip


def _vision_layer(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    hidden, wide = config.vision.hidden, config.vision.intermediate
    linears = {
        "attn.qkv": (3 * hidden, hidden), "attn.proj": (hidden, hidden), "mlp.gate_proj": (wide, hidden),
        "mlp.up_proj": (wide, hidden), "mlp.down_proj": (hidden, wide),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"norm1.weight": (hidden,), "norm2.weight": (hidden,)}
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def write_language(
    out: Path, shape: str, sparse: bool = False, shard_bytes: int = SHARD_BYTES,
    changes: Mapping[str, Any] | None = None,
) -> int:  # fmt: skip
    """Write a Qwen2.5-VL checkpoint of `shape` into the directory `out`; returns its bytes of weights.

    Args:
        changes: keys of the configuration that differ from the published ones.
    """
    out.mkdir(parents=True, exist_ok=True)
    values = published_config(shape) | dict(changes or {})
    (out / "config.json").write_text(json.dumps(values, indent=2), "utf-8")
    (out / "generation_config.json").write_text('{"eos_token_id": [151645, 151643]}', "utf-8")
    shapes = tensor_shapes(parse_config(values))
    shards = list(_shards(shapes, shard_bytes))
    block = np.random.default_rng(0).standard_normal(BLOCK_VALUES, np.float32)
    weight_map: dict[str, str] = {}
    total = 0
    for number, members in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        weight_map |= dict.fromkeys(members, file)
        total += _write_shard(out / file, members, None if sparse else block)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), "utf-8")
    return total


def _shards(shapes: Mapping[str, tuple[int, ...]], shard_bytes: int) -> Iterator[dict[str, tuple[int, ...]]]:
    """Tensors in order, a new shard where the next would make it too large."""
    members: dict[str, tuple[int, ...]] = {}
    filled = 0
    for name, shape in shapes.items():
        size = 2 * _count(shape)
        if members and filled + size > shard_bytes:
            yield members
            members, filled = {}, 0
        members[name], filled = shape, filled + size
    yield members


def _count(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def _write_shard(path: Path, shapes: Mapping[str, tuple[int, ...]], block: NDArray[np.float32] | None) -> int:
    """One safetensors file; without `block` its values are a hole."""
    entries, offset = {}, 0
    for name, shape in shapes.items():
        stop = offset + 2 * _count(shape)
        entries[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, stop]}
        offset = stop
    header = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header)
        if block is None:
            stream.truncate(8 + len(header) + offset)
        else:
            for name, shape in shapes.items():
                for piece in _values(name, shape, block):
                    stream.write(piece.data)
    return offset


def _values(name: str, shape: tuple[int, ...], block: NDArray[np.float32]) -> Iterator[NDArray[np.uint16]]:
    """The bf16 values of one tensor, in pieces; every part of the model shows in its output."""
    left = _count(shape)
    shifted = np.roll(block, zlib.crc32(name.encode()) % len(block))[:left]
    if len(shape) > 1:
        made = shifted * np.float32((left // shape[0]) ** -0.5)
    else:
        is_norm = "norm" in name or "ln_q" in name
        made = shifted * np.float32(0.02) + np.float32(is_norm)
    piece = from_float32(made)
    while left:
        yield piece[:left]
        left -= min(left, len(piece))


def write_detector_checkpoint(out: Path, noise: float = 0.01) -> int:
    """Save a random Grounding DINO Swin-T in bf16, transformers' own form; returns its parameters.

    Args:
        noise: standard deviation of what is added to the values that transformers begins with.
    """
    import torch  # noqa: PLC0415
    from transformers import (  # noqa: PLC0415
        BertConfig,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        SwinConfig,
    )

    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    backbone = SwinConfig(
        image_size=224, embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7,
        out_indices=[2, 3, 4],
    )  # fmt: skip
    config = GroundingDinoConfig(backbone_config=backbone, text_config=BertConfig())
    model = GroundingDinoForObjectDetection(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    model.save_pretrained(out, state_dict={n: t.bfloat16() for n, t in model.state_dict().items()})
    pixels = {
        "size": {"shortest_edge": 800, "longest_edge": 1333}, "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }  # fmt: skip
    (out / "preprocessor_config.json").write_text(json.dumps(pixels), "utf-8")
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    """Read the command line, write, say what was written."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=[*SHAPES, "swin-t"], required=True)
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json to copy in")
    parser.add_argument("--sparse", action="store_true", help="leave holes instead of numbers")
    given = parser.parse_args()
    if given.shape == "swin-t":
        print(f"{given.out}: {write_detector_checkpoint(given.out):,} parameters")
    else:
        print(f"{given.out}: {write_language(given.out, given.shape, given.sparse):,} bytes of weights")
    if given.tokenizer is not None:
        shutil.copyfile(given.tokenizer, given.out / "tokenizer.json")


if __name__ == "__main__":
    main()
