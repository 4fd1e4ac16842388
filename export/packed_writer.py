"""The calibrated integers written as a checkpoint that transformers and others load.

Layout    One shard a decoder layer, one with the rest, an index, and config.json with its
          `quantization_config`; the output layer of a tied model is untied.
Contract  Integers are written as they are; what is no linear layer of the decoder comes unchanged from the
          source. Shards are written one at a time: memory stays near one layer.
Elsewhere the formats: packed.py; reading such checkpoints: packed_checkpoint.py; the integers: quantize.py.
Source    docs/sources.md#packed-formats
"""

import json
import re
import shutil
import struct
from pathlib import Path
from typing import Any

from rexthinker_edge.export import packed
from rexthinker_edge.export.checkpoint import Checkpoint, Tensor
from rexthinker_edge.export.config import TextConfig
from rexthinker_edge.export.packed_checkpoint import CONFIG, PackedFormat, read_object
from rexthinker_edge.export.quantize import QuantisedLinear, Weights, head_name, linear_shapes

INDEX = "model.safetensors.index.json"
STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int32": "I32", "int64": "I64"}


def write_packed(
    checkpoint: Checkpoint,
    config: TextConfig,
    weights: Weights,
    layout: PackedFormat,
    out_dir: Path,
    symmetric: bool = False,
    head_integers: bool = False,
) -> None:
    """Write a checkpoint with the same integers that transformers and others load.

    Args:
        checkpoint: the unquantised one: everything that is not a linear layer of the decoder comes from it.
        weights: the integers.
        out_dir: a new or empty directory.
        symmetric: every zero point is the middle.
        head_integers: of gptq and gptq_v2: the output layer in integers too, which GPTQModel reads and
            transformers does not: it would make up an output layer of its own. Otherwise, and in asymmetric
            compressed-tensors, it is stored as the float32 values of its integers. (transformers decodes
            asymmetric layers with dequantize=True only, and then all by one scheme.)

    Raises:
        OptionError: the format cannot hold them.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    shards, names = _Shards(out_dir), linear_shapes(config)
    found: dict[str, QuantisedLinear] = {}
    for number in range(config.layers):
        prefix = f"model.layers.{number}."
        tensors = [
            _kept(checkpoint, name)
            for name in checkpoint.names(prefix)
            if name.removeprefix(prefix).removesuffix(".weight") not in names
        ]
        for name, shape in names.items():
            made = weights.linear(f"{prefix}{name}", shape)
            assert isinstance(made, QuantisedLinear), "only integers are packed"
            tensors += _tensors(f"{prefix}{name}", made, layout, symmetric)
            found["layers"] = made
        shards.add(f"layer-{number:05d}", tensors)
    tied = head_name(config)
    head = weights.linear(tied, (config.vocab, config.hidden), head=True)
    assert isinstance(head, QuantisedLinear), "only integers are packed"
    found["head"] = head
    rest = ["model.embed_tokens.weight", "model.norm.weight", *checkpoint.names("visual.")]
    tensors = [_kept(checkpoint, name) for name in rest]
    packed_head = symmetric if layout is PackedFormat.COMPRESSED else head_integers
    if not packed_head:
        tensors.append(Tensor.from_array("lm_head.weight", head.dense()))
    else:
        tensors += _tensors("lm_head", head, layout, symmetric)
    shards.add("rest", tensors)
    shards.finish()
    quantisation = _quantisation(layout, found["layers"], head if packed_head else None, symmetric)
    _write_configs(checkpoint.directory, out_dir, quantisation)


def _kept(checkpoint: Checkpoint, name: str) -> Tensor:
    shape, _ = checkpoint.shape_and_bytes(name)
    return checkpoint.tensor(name, shape)


def _tensors(name: str, linear: QuantisedLinear, layout: PackedFormat, symmetric: bool) -> list[Tensor]:
    if layout is PackedFormat.COMPRESSED:
        arrays = packed.compressed_arrays(linear, symmetric)
    else:
        arrays = packed.gptq_arrays(linear, 2 if layout is PackedFormat.GPTQ_V2 else 1)
    return [Tensor.from_array(f"{name}.{part}", array) for part, array in arrays.items()]


class _Shards:
    """Safetensors files, one at a time, and their index."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.weight_map: dict[str, str] = {}
        self.bytes = 0

    def add(self, name: str, tensors: list[Tensor]) -> None:
        """Write one file; names in the form of transformers 5."""
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        place = 0
        for tensor in tensors:
            end = place + tensor.raw.nbytes
            known = _newer_name(tensor.name)
            header[known] = {
                "dtype": STORED[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [place, end],
            }  # fmt: skip
            self.weight_map[known] = f"model-{name}.safetensors"
            place = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (self.directory / f"model-{name}.safetensors").open("wb") as stream:
            stream.write(struct.pack("<Q", len(text)) + text)
            for tensor in tensors:
                stream.write(tensor.raw.data)
        self.bytes += place

    def finish(self) -> None:
        """Write the index."""
        index = {"metadata": {"total_size": self.bytes}, "weight_map": self.weight_map}
        (self.directory / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")


def _newer_name(name: str) -> str:
    """The name transformers 5 gives a tensor that is known here by its older one."""
    if name.startswith("visual."):
        return f"model.{name}"
    return re.sub(r"^model\.", "model.language_model.", name)


def _quantisation(
    layout: PackedFormat, layer: QuantisedLinear, head: QuantisedLinear | None, symmetric: bool
) -> dict[str, Any]:
    """The `quantization_config` of what was written; `head` None: the output layer is in values."""
    if layout is not PackedFormat.COMPRESSED:
        values = {
            "quant_method": "gptq", "bits": layer.weight.bits, "group_size": layer.weight.block,
            "checkpoint_format": layout.value, "desc_act": layer.order is not None, "sym": symmetric,
            "lm_head": head is not None,
        }  # fmt: skip
        if head is not None:
            values["dynamic"] = {"lm_head": {"bits": head.weight.bits, "group_size": head.weight.block}}
        return values
    targets = {"layers": r"re:.*layers\.\d+\.(self_attn|mlp)\.\w+_proj$", "head": r"re:.*lm_head$"}
    groups = {}
    for name, linear in (("layers", layer),) if head is None else (("layers", layer), ("head", head)):
        weights = {
            "num_bits": linear.weight.bits, "type": "int", "symmetric": symmetric, "strategy": "group",
            "group_size": linear.weight.block, "dynamic": False,
        }  # fmt: skip
        groups[name] = {
            "targets": [targets[name]], "weights": weights,
            "input_activations": None, "output_activations": None,
        }  # fmt: skip
    return {
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "quantization_status": "compressed", "config_groups": groups,
        "ignore": ["lm_head"] if head is None else [],
    }  # fmt: skip


def _write_configs(source: Path, out_dir: Path, quantisation: dict[str, Any]) -> None:
    """config.json with the recipe, untied, and the source's other small files."""
    for file in source.iterdir():
        if file.is_file() and file.suffix in (".json", ".txt", ".jinja") and file.name != INDEX:
            shutil.copyfile(file, out_dir / file.name)
    values = read_object(source / CONFIG)
    values |= {"tie_word_embeddings": False, "quantization_config": quantisation}
    if isinstance(text := values.get("text_config"), dict):
        values["text_config"] = text | {"tie_word_embeddings": False}
    (out_dir / CONFIG).write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
