"""Writes `detector.onnx`: Grounding DINO for one picture of any size and one caption of any length.

Layout    inputs pixel_values, input_ids, token_type_ids, position_ids, text_self_attention_mask; outputs
          logits (1, queries, T), pred_boxes (1, queries, 4).
Contract  `torch.onnx` follows detector_modules.py. Weights that bfloat16 holds without loss are stored so and
          cast at load: half the bytes, the same numbers. What the exporter does not honour in a
          configuration is an error.
Elsewhere the model said for the tracer: detector_modules.py; running it: runtime/detector.py.
Source    docs/sources.md#detector
"""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from rexthinker_edge.export.detector_modules import ExportedDetector
from rexthinker_edge.runtime.caption import phrase_masks
from rexthinker_edge.runtime.detector import DetectorGeometry
from rexthinker_edge.runtime.errors import CheckpointError, ConfigError, OptionError

OPSET = 17
WEIGHTS = ("bf16", "fp32")
EXTERNAL_ABOVE_BYTES = 512 * 2**20
SMALLEST_STORED = 256  # weights of fewer values are not worth a Cast
BOX_THRESHOLD = 0.25  # upstream's, for checkpoints that name none
INPUTS = ("pixel_values", "input_ids", "token_type_ids", "position_ids", "text_self_attention_mask")
OUTPUTS = ("logits", "pred_boxes")
HONOURED: dict[str, tuple[Any, ...]] = {
    "two_stage": (True,),
    "embedding_init_target": (True,),
    "position_embedding_type": ("sine",),
    "query_dim": (4,),
    "model_type": ("grounding-dino",),
}


def write_detector(checkpoint_dir: Path, out_path: Path, weights: str = "bf16") -> DetectorGeometry:
    """Export a Grounding DINO checkpoint.

    Args:
        checkpoint_dir: Hugging Face layout: config.json, model.safetensors, preprocessor_config.json.
        out_path: the graph; above 512 MiB its weights go to `out_path`.data beside it.
        weights: "bf16" stores what bfloat16 holds exactly in two bytes a value, "fp32" everything in four.

    Returns:
        What the runtime must know; it belongs into the manifest.

    Raises:
        OptionError: `weights` is neither.
        CheckpointError: a file is missing or damaged.
        ConfigError: the configuration asks for something that is not honoured.
    """
    if weights not in WEIGHTS:
        raise OptionError(f"weights: {weights!r}, one of {WEIGHTS} is needed. Choose one.")
    geometry = read_geometry(checkpoint_dir)
    model = _trace(_load(checkpoint_dir), geometry, out_path)
    if weights == "bf16":
        store_bfloat16(model)
    _save(model, out_path)
    return geometry


def read_geometry(checkpoint_dir: Path) -> DetectorGeometry:
    """Sizes and thresholds from `config.json` and `preprocessor_config.json`.

    Raises:
        CheckpointError, ConfigError: as `write_detector`.
    """
    config, pixels = (_json(checkpoint_dir / name) for name in ("config.json", "preprocessor_config.json"))
    for key, honoured in HONOURED.items():
        if config.get(key, honoured[0]) not in honoured:
            raise ConfigError(
                f"{checkpoint_dir.name}/config.json: {key} is {config[key]!r}, only {honoured} can be "
                "exported. Use a checkpoint of Grounding DINO's published form."
            )
    expected = {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 2}
    for key, wanted in expected.items():
        if pixels.get(key, wanted) != wanted:
            raise ConfigError(
                f"{checkpoint_dir.name}/preprocessor_config.json: {key} is {pixels[key]!r}, the runtime does "
                f"{wanted!r}. Use a checkpoint of Grounding DINO's published form."
            )
    try:
        queries = int(config.get("num_queries", 900))
        size = pixels["size"]
        return DetectorGeometry(
            shortest_px=int(size["shortest_edge"]),
            longest_px=int(size["longest_edge"]),
            least_px=_least_side(queries, int(size["longest_edge"]), config),
            mean=_three(pixels["image_mean"]),
            std=_three(pixels["image_std"]),
            queries=queries,
            max_text_len=int(config.get("max_text_len", 256)),
            box_threshold=float(pixels.get("box_threshold", BOX_THRESHOLD)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{checkpoint_dir.name}/preprocessor_config.json: {error} is missing or wrong, size, image_mean "
            "and image_std are needed. Take the file from the published checkpoint."
        ) from error


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(v) for v in values)
    return red, green, blue


def _least_side(queries: int, longest_px: int, config: dict[str, Any]) -> int:
    """The smallest side, in steps of 32 px, at which the longest picture still has a cell per query.

    Only such long and thin pictures are brought to it. Strides are 8, 16, 32, ...
    """
    levels = int(config.get("num_feature_levels", 4))
    for side in range(32, longest_px + 1, 32):
        cells = sum((-(-side // (8 << n))) * (-(-longest_px // (8 << n))) for n in range(levels))
        if cells >= queries:
            return side
    raise ConfigError(
        f"config.json: {queries} queries, pictures up to {longest_px} px have fewer cells. "
        "Raise longest_edge."
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path.parent.name}/{path.name}: it cannot be read ({error}), JSON is needed. Download it again."
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.name}: no JSON object, one is needed. Download it again.")
    return content


def _load(checkpoint_dir: Path) -> Any:
    from transformers import GroundingDinoForObjectDetection  # noqa: PLC0415

    if not any(checkpoint_dir.glob("*.safetensors")):
        raise CheckpointError(
            f"{checkpoint_dir.name}: no .safetensors file, one is needed (pickles are not read). "
            "Convert the checkpoint with transformers' save_pretrained."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers on head widths that are no power of two
        detector, told = GroundingDinoForObjectDetection.from_pretrained(
            checkpoint_dir,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    if told["missing_keys"]:
        raise CheckpointError(
            f"{checkpoint_dir.name}: {len(told['missing_keys'])} weights are missing, the first is "
            f"{sorted(told['missing_keys'])[0]}. Download it again."
        )
    if (
        detector.config.backbone_config.model_type != "swin"
        or detector.config.text_config.model_type != "bert"
    ):
        raise ConfigError(
            f"{checkpoint_dir.name}/config.json: Swin and BERT backbones are needed. Use another checkpoint."
        )
    return detector.eval()


def example_inputs(geometry: DetectorGeometry) -> dict[str, torch.Tensor]:
    """Inputs of an odd size and a caption of two words, to trace with."""
    ids = [101, 1037, 1038, 1012, 102]
    mask, positions = phrase_masks(ids)
    height, width = geometry.shortest_px - 3, geometry.shortest_px + 10
    return {
        "pixel_values": torch.zeros(1, 3, height, width),
        "input_ids": torch.tensor([ids]),
        "token_type_ids": torch.zeros(1, len(ids), dtype=torch.int64),
        "position_ids": torch.from_numpy(positions)[None],
        "text_self_attention_mask": torch.from_numpy(mask)[None],
    }


def _trace(detector: Any, geometry: DetectorGeometry, out_path: Path) -> onnx.ModelProto:
    """Follow the model with torch.onnx into a file, and read it back."""
    inputs = example_inputs(geometry)
    axes: dict[str, dict[int, str]] = {name: {1: "tokens"} for name in INPUTS[1:]}
    axes |= {"pixel_values": {2: "height", 3: "width"}, "logits": {2: "tokens"}}
    axes["text_self_attention_mask"][2] = "tokens"
    part = out_path.with_suffix(".part")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer on shapes it follows as tensors; parity is tested
        torch.onnx.export(
            ExportedDetector(detector), tuple(inputs[name] for name in INPUTS), str(part), dynamo=False,
            opset_version=OPSET, input_names=list(INPUTS), output_names=list(OUTPUTS), dynamic_axes=axes,
        )  # fmt: skip
    model = onnx.load(part)
    part.unlink()
    return model


def store_bfloat16(model: onnx.ModelProto) -> int:
    """Store float32 weights that bfloat16 holds exactly as bfloat16, with a Cast each.

    Returns:
        How many bytes that saves.
    """
    graph, casts, saved = model.graph, [], 0
    for weight in list(graph.initializer):
        if weight.data_type != TensorProto.FLOAT or np.prod(weight.dims) < SMALLEST_STORED:
            continue
        bits: NDArray[np.uint32] = numpy_helper.to_array(weight).view(np.uint32)
        if np.any(bits & 0xFFFF):
            continue
        name = weight.name
        graph.initializer.remove(weight)
        stored = helper.make_tensor(
            name + ".bf16",
            TensorProto.BFLOAT16,
            list(weight.dims),
            (bits >> 16).astype(np.uint16).tobytes(),
            raw=True,
        )
        graph.initializer.append(stored)
        casts.append(
            helper.make_node("Cast", [stored.name], [name], to=TensorProto.FLOAT, name=name + ".cast")
        )
        saved += bits.size * 2
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend(casts + nodes)
    return saved


def _save(model: onnx.ModelProto, out_path: Path) -> None:
    large = model.ByteSize() > EXTERNAL_ABOVE_BYTES
    onnx.save(
        model, out_path, save_as_external_data=large, location=out_path.name + ".data" if large else None,
        all_tensors_to_one_file=True, size_threshold=1024,
    )  # fmt: skip
