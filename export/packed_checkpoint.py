"""Checkpoints that are quantised already: read as the export's weights, and written for transformers.

Layout    Read: `quantization_config` in config.json, or AutoGPTQ's quantize_config.json beside it; a layer is
          quantised where `NAME.qweight` or `NAME.weight_packed` stands in place of `NAME.weight`.
          Written: one shard a decoder layer, one with the rest, an index, and config.json with its
          `quantization_config`; the output layer of a tied model is untied.
Contract  Integers are taken as they are. Layers left in floating point stay so, but the output layer is
          rounded by the recipe. A method, bit width or zero-point convention that is not known is refused.
Elsewhere the formats: packed.py; which weights go where: quantize.py.
Source    docs/sources.md#packed-formats
"""

import json
import re
import shutil
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from rexthinker_edge.export import packed
from rexthinker_edge.export.checkpoint import Checkpoint, Tensor
from rexthinker_edge.export.config import TextConfig
from rexthinker_edge.export.quantize import IntegerRecipe, Nearest, QuantisedLinear, Weights, linear_shapes
from rexthinker_edge.runtime.errors import CheckpointError, ConfigError

GPTQ_PARTS = ("qweight", "qzeros", "scales")
COMPRESSED_PARTS = ("weight_packed", "weight_scale", "weight_shape")
INDEX, CONFIG, OLD_CONFIG = "model.safetensors.index.json", "config.json", "quantize_config.json"
STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int32": "I32", "int64": "I64"}


class PackedFormat(StrEnum):
    """What a quantised checkpoint is stored as."""

    GPTQ = "gptq"  # version 1: what AutoGPTQ, GPTQModel and vLLM read
    GPTQ_V2 = "gptq_v2"
    COMPRESSED = "compressed-tensors"  # what transformers itself loads


def packed_format(directory: Path) -> PackedFormat | None:
    """How the checkpoint in `directory` is quantised; None when it is not.

    Raises:
        ConfigError: by a method, in a bit width or a layout that is not read here.
    """
    values = _json(directory / CONFIG).get("quantization_config")
    if values is None and (directory / OLD_CONFIG).is_file():
        values = {"quant_method": "gptq"} | _json(directory / OLD_CONFIG)
    if values is None:
        return None
    if not isinstance(values, dict):
        raise _refuse("quantization_config", values, "an object")
    method = values.get("quant_method")
    if method == "gptq":
        stated = values.get("checkpoint_format", "gptq")
        if stated not in ("gptq", "gptq_v2"):
            raise _refuse("checkpoint_format", stated, "'gptq' or 'gptq_v2'")
        if values.get("pack_dtype", "int32") != "int32":
            raise _refuse("pack_dtype", values["pack_dtype"], "'int32'")
        if values.get("bits") not in (4, 8):
            raise _refuse("bits", values.get("bits"), "4 or 8")
        return PackedFormat(stated)
    if method == "compressed-tensors":
        _check_compressed(values)
        return PackedFormat.COMPRESSED
    raise _refuse("quant_method", method, "'gptq' or 'compressed-tensors'")


def _check_compressed(values: Mapping[str, Any]) -> None:
    if values.get("format") != "pack-quantized":
        raise _refuse("format", values.get("format"), "'pack-quantized'")
    groups = values.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise _refuse("config_groups", groups, "one group or more")
    for group in groups.values():
        weights = group.get("weights") or {}
        if weights.get("num_bits") not in (4, 8) or weights.get("type", "int") != "int":
            raise _refuse("num_bits", weights.get("num_bits"), "integers of 4 or 8")
        if group.get("input_activations") is not None:
            raise _refuse("input_activations", group["input_activations"], "null (weights only)")


@dataclass(frozen=True)
class Imported:
    """The integers of a quantised checkpoint; its output layer is rounded where it is not quantised."""

    checkpoint: Checkpoint
    layout: PackedFormat
    recipe: IntegerRecipe

    def linear(self, name: str, shape: tuple[int, int], head: bool = False) -> QuantisedLinear | Tensor:
        """The layer `name`; CheckpointError where it is missing or does not fit `shape`."""
        if f"{name}.qweight" in self.checkpoint:
            version = 2 if self.layout is PackedFormat.GPTQ_V2 else 1
            return packed.read_gptq(name, self._arrays(name, GPTQ_PARTS, "g_idx"), shape, version)
        if f"{name}.weight_packed" in self.checkpoint:
            optional = ("weight_zero_point", "weight_g_idx")
            return packed.read_compressed(name, self._arrays(name, COMPRESSED_PARTS, *optional), shape)
        if head:
            return Nearest(self.checkpoint, self.recipe).linear(name, shape, head)
        return self.checkpoint.tensor(f"{name}.weight", shape)

    def _arrays(self, name: str, parts: Iterable[str], *optional: str) -> packed.Arrays:
        present = [*parts, *(part for part in optional if f"{name}.{part}" in self.checkpoint)]
        return {part: _array(self.checkpoint, f"{name}.{part}") for part in present}


def _array(checkpoint: Checkpoint, name: str) -> NDArray[Any]:
    """A tensor as an array of its own type; floating-point ones as float32."""
    shape, _ = checkpoint.shape_and_bytes(name)
    tensor = checkpoint.tensor(name, shape)
    if tensor.dtype in ("int32", "int64"):
        found: NDArray[Any] = tensor.raw.view(tensor.dtype).reshape(shape)
        return found
    return tensor.float32()


def open_weights(checkpoint: Checkpoint, layout: PackedFormat, recipe: IntegerRecipe) -> Imported:
    """The integers of a quantised checkpoint.

    Raises:
        CheckpointError: its vision tower is quantised, which this exporter does not read.
    """
    parts = (".qweight", ".weight_packed")
    tower = [name for name in checkpoint.names("visual.") if name.endswith(parts)]
    if tower:
        raise CheckpointError(
            f"{checkpoint.directory.name}: {tower[0]!r} is quantised, the vision tower is needed in floating "
            "point. Quantise the language model only."
        )
    return Imported(checkpoint, layout, recipe)


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
    tied = "model.embed_tokens" if config.tied else "lm_head"
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
    values = _json(source / CONFIG) | {"tie_word_embeddings": False, "quantization_config": quantisation}
    if isinstance(text := values.get("text_config"), dict):
        values["text_config"] = text | {"tie_word_embeddings": False}
    (out_dir / CONFIG).write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path.parent.name}/{path.name}: {error}; needed JSON. Download it again."
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path.parent.name}/{path.name}: no object, needed one. Download it again.")
    return values


def _refuse(key: str, seen: object, needed: str) -> ConfigError:
    return ConfigError(
        f"config.json/quantization_config: {key!r} is {seen!r}, this exporter reads {needed}. "
        "Export the unquantised checkpoint, or one quantised so."
    )
