"""onnxruntime-genai's model of random weights: its own builder's graph, whose wide matrices are grown here.

Layout    A narrow checkpoint (few tokens, a narrow MLP, everything else in full size) goes through the
          builder; then the output layer, the token table and the MLP's matrices get their real sizes and
          random numbers in the form that the builder gave them. Straight through the builder the slice of 4
          layers takes 10 GB and more of memory, most of it for the output layer.
Contract  Operators, attributes, types and block sizes are the builder's. int4, accuracy level 4, blocks of
          128 (a GPTQ checkpoint packed as it is), the output layer computed for the last token only
          (`prune_lm_head`).
Elsewhere other peers' files: models.py; who opens it: peer_onnxruntime_genai.py.
"""

import json
import math
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.benchmarks.peers.models import BLOCK_VALUES, made, ran
from rexthinker_edge.benchmarks.peers.shape import Shape

GPTQ_GROUP = 128
NARROW = {"vocab": 768, "intermediate": 640}  # no other size of a shape is one of these
ALIGNMENT = 4096
MIDDLE = 0x88  # two zero points of 8

_FIND_BUILDER = (
    "import importlib.util as u, pathlib as p;"
    "print(p.Path(u.find_spec('onnxruntime_genai').origin).parent / 'models' / 'builder.py')"
)


def genai(place: Path, shape: Shape, tokenizer: Path, python: str, builder_python: str) -> Path:
    """The model, made where it does not stand yet.

    Args:
        python: the interpreter that has the package, whose builder is taken.
        builder_python: one that has torch and transformers, which the builder needs.

    Raises:
        OptionError: the package is not there, or its builder failed; its last words are told.
    """

    def make(out: Path) -> None:
        builder = ran([python, "-c", _FIND_BUILDER], "onnxruntime-genai").strip()
        out.mkdir()
        source, narrow = out / "checkpoint", out / "narrow"
        small = replace(shape, vocab=NARROW["vocab"], intermediate=NARROW["intermediate"])
        write_checkpoint(source, small, tokenizer)
        command = [
            builder_python, builder, "-i", str(source), "-o", str(narrow), "-p", "int4", "-e", "cpu",
            "-c", str(out / "cache"), "--extra_options", "accuracy_level=4", "prune_lm_head=true",
        ]  # fmt: skip
        ran(command, "onnxruntime-genai's builder")
        grow(narrow, out, {NARROW[name]: getattr(shape, name) for name in NARROW})
        for used in (source, narrow, out / "cache"):
            shutil.rmtree(used, ignore_errors=True)

    return made(place / "onnxruntime-genai", make)


def grow(narrow: Path, out: Path, sizes: dict[int, int]) -> None:
    """Write the model in directory `narrow` to `out` with other sizes, `sizes` by the narrow ones.

    Grown are the rows and columns of `MatMulNBits` and the rows of a table that `Gather` reads; everything
    else is copied.
    """
    import onnx  # noqa: PLC0415

    model = onnx.load(str(narrow / "model.onnx"), load_external_data=False)
    grown = dict(_grown(model.graph, sizes))
    with (narrow / "model.onnx.data").open("rb") as old, (out / "model.onnx.data").open("wb") as new:
        for tensor in model.graph.initializer:
            if tensor.name in grown:
                _append(tensor, grown[tensor.name].dims, grown[tensor.name].pieces(), new)
            elif tensor.data_location == onnx.TensorProto.EXTERNAL:
                _append(tensor, tuple(tensor.dims), [_stored(tensor, old)], new)
    del model.graph.value_info[:]
    for output in model.graph.output:
        last = output.type.tensor_type.shape.dim[-1]
        if last.dim_value in sizes:
            last.dim_value = sizes[last.dim_value]
    onnx.save(model, str(out / "model.onnx"))
    config = json.loads((narrow / "genai_config.json").read_text("utf-8"))
    config["model"]["vocab_size"] = sizes[NARROW["vocab"]]
    (out / "genai_config.json").write_text(json.dumps(config), "utf-8")
    for path in narrow.glob("tokenizer*"):
        shutil.copyfile(path, out / path.name)


@dataclass(frozen=True)
class Filled:
    """A tensor of `dims` that repeats a block of numbers."""

    dims: tuple[int, ...]
    block: NDArray[Any]

    def pieces(self) -> Iterator[bytes]:
        """Its bytes, a block at a time."""
        left = math.prod(self.dims)
        while left:
            piece = self.block[:left]
            yield piece.tobytes()
            left -= len(piece)


def _grown(graph: Any, sizes: dict[int, int]) -> Iterator[tuple[str, Filled]]:
    """Initializers that become larger, by name; the nodes' sizes are set."""
    from onnx import helper  # noqa: PLC0415

    by_name = {tensor.name: tensor for tensor in graph.initializer}
    rng = np.random.default_rng(0)
    numbers = rng.standard_normal(BLOCK_VALUES, np.float32) * np.float32(0.02)
    codes = np.frombuffer(rng.bytes(BLOCK_VALUES), np.uint8)
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            given = {attribute.name: attribute for attribute in node.attribute}
            if not {given["N"].i, given["K"].i} & sizes.keys():
                continue
            for name in ("N", "K"):
                given[name].i = sizes.get(given[name].i, given[name].i)
            rows, columns, bits = given["N"].i, given["K"].i, given["bits"].i
            blocks = columns // given["block_size"].i
            scales = by_name[node.input[2]]
            scale = np.array(columns**-0.5 / np.sqrt((4**bits - 1) / 12))
            kind = helper.tensor_dtype_to_np_dtype(scales.data_type)
            packed = -(-blocks * bits // 8)  # bytes of a row's zero points
            flat = len(scales.dims) == 1
            yield node.input[1], Filled((rows, blocks, given["block_size"].i * bits // 8), codes)
            sides = (rows * blocks,) if flat else (rows, blocks)
            yield node.input[2], Filled(sides, np.resize(scale.astype(kind), BLOCK_VALUES))
            if len(node.input) > 3 and node.input[3]:
                sides = (rows * packed,) if flat else (rows, packed)
                yield node.input[3], Filled(sides, np.full(BLOCK_VALUES, MIDDLE, np.uint8))
        elif node.op_type == "Gather" and node.input[0] in by_name:
            table = by_name[node.input[0]]
            if table.dims[0] in sizes:
                kind = helper.tensor_dtype_to_np_dtype(table.data_type)
                yield table.name, Filled((sizes[table.dims[0]], table.dims[1]), numbers.astype(kind))


def _stored(tensor: Any, data: BinaryIO) -> bytes:
    """An external tensor's bytes."""
    where = {entry.key: entry.value for entry in tensor.external_data}
    data.seek(int(where.get("offset", 0)))
    return data.read(int(where["length"]))


def _append(tensor: Any, dims: tuple[int, ...], pieces: Iterable[bytes], data: BinaryIO) -> None:
    """Make `tensor` an external one of these bytes, appended to `data`."""
    import onnx  # noqa: PLC0415

    data.write(bytes(-data.tell() % ALIGNMENT))
    offset = data.tell()
    for piece in pieces:
        data.write(piece)
    kept = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=dims)
    kept.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("offset", offset), ("length", data.tell() - offset)):
        kept.external_data.add(key=key, value=str(value))
    kept.external_data.add(key="location", value="model.onnx.data")
    tensor.CopyFrom(kept)


def write_checkpoint(out: Path, shape: Shape, tokenizer: Path) -> None:
    """A Hugging Face checkpoint of Qwen2 (the same layers without a vision tower), GPTQ integers inside:
    groups of 128, symmetric, output layer included."""
    from safetensors.numpy import save_file  # noqa: PLC0415

    out.mkdir()
    config: dict[str, Any] = {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu",
        "hidden_size": shape.hidden, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads, "intermediate_size": shape.intermediate,
        "vocab_size": shape.vocab, "rms_norm_eps": shape.rms_norm_eps, "rope_theta": shape.rope_theta,
        "max_position_embeddings": shape.max_length, "tie_word_embeddings": False,
        "dtype": "float16", "bos_token_id": shape.vocab - 1, "eos_token_id": shape.vocab - 1,
        "quantization_config": {
            "bits": 4, "group_size": GPTQ_GROUP, "desc_act": False, "sym": True, "quant_method": "gptq",
            "checkpoint_format": "gptq", "lm_head": True,
        },
    }  # fmt: skip
    (out / "config.json").write_text(json.dumps(config), "utf-8")
    save_file(packed_tensors(shape), out / "model.safetensors", {"format": "pt"})
    shutil.copyfile(tokenizer, out / "tokenizer.json")
    kind = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (out / "tokenizer_config.json").write_text(json.dumps(kind), "utf-8")


def packed_tensors(shape: Shape) -> dict[str, NDArray[Any]]:
    """Every tensor by its published name, linear layers as GPTQ stores them."""
    rng = np.random.default_rng(0)
    hidden, wide, kv_width = shape.hidden, shape.intermediate, shape.kv_width
    found: dict[str, NDArray[Any]] = {
        "model.embed_tokens.weight": np.resize(
            (rng.standard_normal(BLOCK_VALUES, np.float32) * 0.02).astype(np.float16), (shape.vocab, hidden)
        ),
        "model.norm.weight": np.ones(hidden, np.float16),
    }
    layers: dict[str, tuple[int, int]] = {"lm_head": (shape.vocab, hidden)}
    for layer in range(shape.layers):
        name = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"{name}.{norm}.weight"] = np.ones(hidden, np.float16)
        for part, rows in (("q", hidden), ("k", kv_width), ("v", kv_width)):
            layers[f"{name}.self_attn.{part}_proj"] = (rows, hidden)
            found[f"{name}.self_attn.{part}_proj.bias"] = np.full(rows, 0.01, np.float16)
        layers[f"{name}.self_attn.o_proj"] = (hidden, hidden)
        layers |= {f"{name}.mlp.gate_proj": (wide, hidden), f"{name}.mlp.up_proj": (wide, hidden)}
        layers[f"{name}.mlp.down_proj"] = (hidden, wide)
    for name, (rows, columns) in layers.items():
        groups = columns // GPTQ_GROUP
        codes = np.frombuffer(rng.bytes(rows * columns // 2), np.int32)
        found[f"{name}.qweight"] = codes.reshape(columns // 8, rows)
        found[f"{name}.qzeros"] = np.full((groups, rows // 8), 0x77777777, np.int32)  # 8, stored less one
        scale = columns**-0.5 / np.sqrt((4**4 - 1) / 12)
        found[f"{name}.scales"] = (scale * rng.uniform(0.9, 1.1, (groups, rows))).astype(np.float16)
        found[f"{name}.g_idx"] = (np.arange(columns) // GPTQ_GROUP).astype(np.int32)
    return found
