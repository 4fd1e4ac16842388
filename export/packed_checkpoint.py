"""Checkpoints that are quantised already, read as the export's weights.

Layout    `quantization_config` in config.json, or AutoGPTQ's quantize_config.json beside it; a layer is
          quantised where `NAME.qweight` or `NAME.weight_packed` stands in place of `NAME.weight`.
Contract  Integers are taken as they are. Layers left in floating point stay so, but the output layer is
          rounded by the recipe. A method, bit width or zero-point convention that is not known is refused.
Elsewhere the formats: packed.py; writing such checkpoints: packed_writer.py; which weights go where:
          quantize.py.
Source    docs/sources.md#packed-formats
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from rexthinker_edge.export import packed
from rexthinker_edge.export.checkpoint import Checkpoint, Tensor
from rexthinker_edge.export.quantize import IntegerRecipe, Nearest, QuantisedLinear
from rexthinker_edge.runtime.errors import CheckpointError, ConfigError

GPTQ_PARTS = ("qweight", "qzeros", "scales")
COMPRESSED_PARTS = ("weight_packed", "weight_scale", "weight_shape")
CONFIG, OLD_CONFIG = "config.json", "quantize_config.json"


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
    values = read_object(directory / CONFIG).get("quantization_config")
    if values is None and (directory / OLD_CONFIG).is_file():
        values = {"quant_method": "gptq"} | read_object(directory / OLD_CONFIG)
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


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds one object; ConfigError where it does not."""
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
