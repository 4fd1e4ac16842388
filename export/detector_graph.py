"""Writes `detector.onnx` and `detector-text.onnx`: Grounding DINO for any picture size and any caption.

Layout    `detector-text.onnx` depends on the caption alone (detector_text.py). `detector.onnx` takes the
          pixels, padded to whole patches; the caption's text, text_positions and text_bias; and the tables
          that the picture's size decides (runtime/detector_tables.py). It gives logits (queries, T) and
          pred_boxes (queries, 4). Each has its weights beside it, in `.data`.
Contract  Written out layer by layer, with standard operators but for 8-bit layers; no batch axis. Weights
          that bfloat16 holds without loss are stored so and cast at load: half the bytes, the same numbers.
          What the exporter does not honour in a configuration is an error.
Elsewhere the layers: detector_swin.py, detector_encoder.py, detector_decoder.py; running it:
          runtime/detector.py.
Source    docs/sources.md#detector
"""

import json
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rexthinker_edge.export.detector_decoder import write_decoder
from rexthinker_edge.export.detector_encoder import Words, write_encoder, write_levels, write_proposals
from rexthinker_edge.export.detector_swin import write_swin
from rexthinker_edge.export.detector_text import write_text
from rexthinker_edge.export.detector_writer import DetectorWriter
from rexthinker_edge.export.graph import GraphWriter
from rexthinker_edge.runtime.detector import DetectorGeometry, text_path
from rexthinker_edge.runtime.detector_tables import TableRules
from rexthinker_edge.runtime.errors import CheckpointError, ConfigError, OptionError

WEIGHTS = ("bf16", "fp32")
BOX_THRESHOLD = 0.25  # upstream's, for checkpoints that name none
HONOURED: dict[str, tuple[Any, ...]] = {
    "two_stage": (True,),
    "embedding_init_target": (True,),
    "position_embedding_type": ("sine",),
    "query_dim": (4,),
    "model_type": ("grounding-dino",),
}


def write_detector(
    checkpoint_dir: Path, out_path: Path, weights: str = "bf16", int8: Collection[str] = ()
) -> DetectorGeometry:
    """Export a Grounding DINO checkpoint.

    Args:
        checkpoint_dir: Hugging Face layout: config.json, model.safetensors, preprocessor_config.json.
        out_path: the graph; its text branch and the weights of both go beside it.
        weights: "bf16" stores what bfloat16 holds exactly in two bytes a value, "fp32" everything in four.
        int8: names of linear layers that get 8-bit weights, as detector_int8.py chooses them.

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
    detector = _load(checkpoint_dir)
    _write_text(detector.model, text_path(out_path), weights == "bf16")
    _write_detector(detector, out_path, weights == "bf16", int8)
    return replace(geometry, tables=table_rules(detector), int8=tuple(int8))


def table_rules(detector: Any) -> TableRules:
    """What the tables of a size depend on."""
    config, backbone = detector.config, detector.model.backbone.conv_encoder.model
    names = list(backbone.stage_names[1:])
    windows = {int(block.window_size) for stage in backbone.swin.encoder.layers for block in stage.blocks}
    shifts = {int(block.shift_size) for stage in backbone.swin.encoder.layers for block in stage.blocks}
    (window,) = windows
    if not shifts <= {0, window // 2}:
        raise ConfigError(
            f"config.json: windows of {window} shifted by {sorted(shifts)}, only 0 and half a window can be "
            "exported. Use a checkpoint of Grounding DINO's published form."
        )
    return TableRules(
        patch=int(backbone.swin.embeddings.patch_embeddings.projection.kernel_size[0]),
        window=window,
        stages=len(names),
        maps=tuple(names.index(name) for name in backbone.out_features),
        levels=int(config.num_feature_levels),
        width=int(config.d_model),
        temperature=float(config.positional_embedding_temperature),
    )


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
    with warnings.catch_warnings(), _no_bar():
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


@contextmanager
def _no_bar() -> Iterator[None]:
    """Keep transformers' own progress bar off standard error: the export shows its own."""
    from transformers.utils import logging  # noqa: PLC0415

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def write_both_precisions(checkpoint_dir: Path, out_path: Path) -> tuple[DetectorGeometry, list[str]]:
    """A detector to measure with: its input `rounded` says per linear layer whether it computes in 8 bits.

    Returns:
        As `write_detector`, and the layers' names in the order of that input.
    """
    geometry, detector = read_geometry(checkpoint_dir), _load(checkpoint_dir)
    _write_text(detector.model, text_path(out_path), halves=True)
    names = _write_detector(detector, out_path, True, (), switches=True)
    return replace(geometry, tables=table_rules(detector)), names


def _write_detector(
    detector: Any, out_path: Path, halves: bool, int8: Collection[str], switches: bool = False
) -> list[str]:
    """`detector.onnx`: pixels, words and the tables of a size in, logits and boxes out.

    Returns:
        The names of its linear layers.
    """
    model = detector.model
    width, queries = model.config.d_model, model.config.num_queries
    with torch.no_grad(), GraphWriter(out_path) as graph:
        writer = DetectorWriter(graph, halves, int8, switches)
        pixels = graph.input("pixel_values", "float32", [1, 3, "height", "width"])
        text = Words(
            graph.input("text", "float32", ["tokens", width]),
            graph.input("text_positions", "float32", ["tokens", width]),
            graph.input("text_bias", "float32", ["tokens", "tokens"]),
        )
        cells = write_levels(writer, model, write_swin(writer, model.backbone.conv_encoder.model, pixels))
        picture, words, levels = write_encoder(writer, model, cells, text)
        start = write_proposals(writer, model, picture, words)
        logits, boxes = write_decoder(writer, detector, (picture, words), levels, start)
        graph.output("logits", "float32", [queries, "tokens"], logits)
        graph.output("pred_boxes", "float32", [queries, 4], boxes)
        unknown = sorted(frozenset(int8) - writer.linears.keys())
        assert not unknown, f"no linear layer {unknown[0]}"
        graph.save()
    return list(writer.linears)


def _write_text(model: Any, out_path: Path, halves: bool) -> None:
    """`detector-text.onnx`: see detector_text.py."""
    with torch.no_grad(), GraphWriter(out_path) as graph:
        write_text(DetectorWriter(graph, halves), model)
        graph.save()
