"""Writes the blueprints of `bench --shape`: graphs without weights, made by the exporter itself.

Run       python -m rexthinker_edge.benchmarks.make_blueprints [SHAPE …]
Layout    benchmarks/blueprints/NAME.zip holds `blueprint.json` and the ONNX files of an export, whose weights
          lie in other files. `blueprint.json` lists those files' tensors: what each is, where it begins, and
          how wide random values in it must spread for activations to stay finite.
Contract  Only this script needs torch and onnx; who fills a blueprint needs neither. Graphs are those of
          `export --precision int4 --head-bits 8 --embeddings int8 --vision int8` and of a bf16 detector, to
          the byte. A test holds the committed ones to what the exporter writes today.
Elsewhere filling them: random_bundle.py; the checkpoints they are exported from: make_random_checkpoint.py.
"""

import argparse
import json
import math
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from rexthinker_edge.benchmarks.make_random_checkpoint import write_detector_checkpoint, write_language
from rexthinker_edge.benchmarks.random_bundle import BLUEPRINTS, DETECTORS, Blueprint, Kind, Spot
from rexthinker_edge.export.checkpoint import Checkpoint, Tensor
from rexthinker_edge.export.config import ModelConfig, read_config
from rexthinker_edge.export.decoder_graph import write_decoder
from rexthinker_edge.export.quantize import IntegerRecipe, QuantisedLinear, choose_block
from rexthinker_edge.export.vision_graph import write_vision
from rexthinker_edge.kernels.matmul_nbits import BlockWeight
from rexthinker_edge.runtime.strict_json import to_json

MIN_PIXELS = 16 * 784
MAX_PIXELS = {"7b": 1280 * 784, "3b": 1280 * 784, "tiny": 78_400}
MAX_LENGTH = {"7b": 8192, "3b": 8192, "tiny": 2048}
CHANGES: Mapping[str, Mapping[str, Any]] = {"tiny": {"vocab_size": 4096}}
HEAD_BITS = 8
DTYPES = {
    onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.BFLOAT16: "bfloat16",
    onnx.TensorProto.UINT8: "uint8", onnx.TensorProto.INT8: "int8",
}  # fmt: skip
# Standard deviation of what codes stand for: uniform over 0 … 15, 0 … 255 and -63 … 63.
SPREADS = {4: math.sqrt((16**2 - 1) / 12), 8: math.sqrt((256**2 - 1) / 12), 7: math.sqrt((127**2 - 1) / 12)}


class Hollow:
    """Linear layers of the right shape, all codes 0."""

    def __init__(self, checkpoint: Checkpoint, recipe: IntegerRecipe) -> None:
        self.checkpoint, self.recipe = checkpoint, recipe

    def linear(self, name: str, shape: tuple[int, int], head: bool = False) -> QuantisedLinear | Tensor:
        """The layer; its zero points are not the operator's own, so that they are stored."""
        rows, columns = shape
        blocks = -(-columns // self.recipe.block)
        bits = self.recipe.head_bits if head else self.recipe.bits
        codes = np.zeros((rows, blocks * self.recipe.block), np.uint8)
        scales, zeros = np.ones((rows, blocks), np.float32), np.zeros((rows, blocks), np.uint8)
        return QuantisedLinear(BlockWeight(codes, scales, zeros, bits, self.recipe.block, columns))


def language_blueprint(shape: str, scratch: Path) -> tuple[dict[str, Path], Blueprint]:
    """Graphs and tensors of decoder and vision tower; `scratch` gets a bundle's size of zeros."""
    write_language(scratch / "checkpoint", shape, sparse=True, changes=CHANGES.get(shape))
    config = read_config(scratch / "checkpoint")
    checkpoint = Checkpoint(scratch / "checkpoint")
    block = choose_block([config.text.hidden, config.text.intermediate])
    recipe = IntegerRecipe(4, HEAD_BITS, block)
    decoder = write_decoder(
        checkpoint, config.text, scratch, MAX_LENGTH[shape], recipe, weights=Hollow(checkpoint, recipe)
    )
    vision = write_vision(checkpoint, config.vision, scratch, MAX_PIXELS[shape], precision="int8")
    graphs = {name: scratch / name for name in ("decoder.onnx", "vision.onnx")}
    files = {
        "decoder.onnx.data": _spots(graphs["decoder.onnx"], config.text.rope_theta, 1),
        "vision.onnx.data": _spots(graphs["vision.onnx"], config.vision.rope_theta, 2),
        "embeddings.bin": _embeddings(config),
    }
    words = {
        "decoder.onnx": f"int4 random, block {block}, accuracy level {recipe.accuracy_level}; output layer "
        f"int{HEAD_BITS}; embeddings int8",
        "vision.onnx": "int8 per channel in all linear layers, activations int8 by rows, random",
    }
    return graphs, Blueprint(
        files, words, replace(decoder, embedding_dtype="int8"), vision, None, MIN_PIXELS, MAX_PIXELS[shape]
    )


def detector_blueprint(scratch: Path) -> tuple[dict[str, Path], Blueprint]:
    """Graphs and tensors of Grounding DINO Swin-T."""
    from rexthinker_edge.export.detector_graph import write_detector  # noqa: PLC0415 -- torch

    write_detector_checkpoint(scratch / "checkpoint", noise=0.0)
    geometry = write_detector(scratch / "checkpoint", scratch / "detector.onnx")
    graphs = {name: scratch / name for name in ("detector.onnx", "detector-text.onnx")}
    files = {f"{name}.data": _spots(path) for name, path in graphs.items()}
    words = {"detector.onnx": "fp32, weights stored as bfloat16 where that is exact, random"}
    return graphs, Blueprint(files, words, detector=geometry)


def _spots(path: Path, theta: float = 0.0, copies: int = 0) -> tuple[Spot, ...]:
    """Every tensor beside a graph, in the order of the file."""
    graph = onnx.load(str(path), load_external_data=False).graph
    found, fan_in = [], dict[str, int]()
    outside = [held for held in graph.initializer if held.data_location == onnx.TensorProto.EXTERNAL]
    for held in sorted(outside, key=_offset):
        shape, stem = tuple(held.dims), held.name.rpartition(".")[0]
        dtype, ending = DTYPES[held.data_type], held.name.rpartition(".")[2]
        bits = 7 if dtype == "int8" else _bits(held.name)
        kind, spread, middle = Kind.VALUES, 0.02, 0.0
        if ending == "codes":
            kind = Kind.SEVEN_BITS if bits == 7 else Kind.BYTES
            fan_in[stem] = shape[0] if bits == 7 else math.prod(shape[1:]) * 8 // bits
        elif ending == "zeros":
            kind, middle = Kind.CONSTANT, float(0x88 if bits == 4 else 0x80)
        elif ending == "scales":
            kind, spread = Kind.SCALES, fan_in[stem] ** -0.5 / SPREADS[bits]
        elif held.name in ("rotary.cos", "rotary.sin"):
            kind, spread, middle = Kind(ending), theta, float(copies)
        elif len(shape) > 1:
            spread = (math.prod(shape) // shape[0]) ** -0.5
        else:
            middle = float("norm" in held.name or "ln_q" in held.name)
        found.append(Spot(held.name, kind, dtype, shape, _offset(held), spread, middle))
    return tuple(found)


def _bits(name: str) -> int:
    """Of a decoder's integer layer; the output layer is the table's own where it is tied."""
    return HEAD_BITS if name.startswith(("lm_head.", "model.embed_tokens.")) else 4


def _offset(held: Any) -> int:
    return int({entry.key: entry.value for entry in held.external_data}["offset"])


def _embeddings(config: ModelConfig) -> tuple[Spot, ...]:
    """Scales and codes as export/embeddings.py writes them."""
    text = config.text
    return (
        Spot("scales", Kind.SCALES, "float32", (text.vocab,), 0, 0.02 / SPREADS[7], 0.0),
        Spot("codes", Kind.SEVEN_BITS, "int8", (text.vocab, text.hidden), 4 * text.vocab, 0.0, 0.0),
    )


def save(path: Path, graphs: Mapping[str, Path], plan: Blueprint) -> None:
    """Write a blueprint; the same input gives the same bytes."""
    members = {name: source.read_bytes() for name, source in graphs.items()}
    members["blueprint.json"] = json.dumps(to_json(plan), separators=(",", ":")).encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED, 9)


def main(arguments: Iterable[str] | None = None) -> None:
    """Make the blueprints named, all when none is."""
    names = [*MAX_PIXELS, *sorted({name for name in DETECTORS.values() if name is not None})]
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; all when left out")
    for name in parser.parse_args(None if arguments is None else list(arguments)).names or names:
        if name not in names:
            parser.error(f"no blueprint {name!r}, one of {', '.join(names)} is needed")
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as scratch:
            here = Path(scratch)
            graphs, plan = language_blueprint(name, here) if name in MAX_PIXELS else detector_blueprint(here)
            target = BLUEPRINTS / f"{name}.zip"
            target.parent.mkdir(exist_ok=True)
            save(target, graphs, plan)
            print(f"{target}: {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
