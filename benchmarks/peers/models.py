"""Files of random weights in one shape, in every form that a peer reads. Made once and kept.

Layout    WORK/SHAPE-LAYERS/: `rexthinker-head4/` (decoder.onnx, its data, embeddings.bin, draft.bin),
          `model.gguf`, `onnxruntime-genai/` and `openvino/`, which those projects' own tools make.
Contract  A directory or file is made beside its place and renamed, so what stands there is whole. Matrices
          have the same shapes everywhere; their numbers differ, which no time depends on.
Elsewhere shapes: shape.py; who opens them: the adapters; onnxruntime-genai's: genai_model.py.
"""

import json
import shutil
import subprocess
import zlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.benchmarks.peers.gguf_file import write_gguf
from rexthinker_edge.benchmarks.peers.shape import Shape, text_config
from rexthinker_edge.calibration.draft_table import write_table
from rexthinker_edge.export.checkpoint import Checkpoint, Tensor
from rexthinker_edge.export.config import TextConfig
from rexthinker_edge.export.decoder_graph import write_decoder
from rexthinker_edge.export.quantize import IntegerRecipe, QuantisedLinear
from rexthinker_edge.kernels.bfloat16 import from_float32
from rexthinker_edge.kernels.matmul_nbits import BlockWeight
from rexthinker_edge.runtime.errors import OptionError
from rexthinker_edge.runtime.tokens import TextTokenizer

BLOCK_VALUES = (1 << 22) + 3  # odd, so that rows of a power-of-two width are not equal
TRACES = 500  # that the draft table is learnt from
END_OF_TURN = "<|im_end|>"


class RandomCheckpoint(Checkpoint):
    """Answers for any tensor, without files."""

    def __init__(self) -> None:
        self._block = np.random.default_rng(0).standard_normal(BLOCK_VALUES, np.float32)

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Norms near 1, biases near 0, the token table in bfloat16 with deviation 0.02."""
        shifted = np.roll(self._block, zlib.crc32(name.encode()) % BLOCK_VALUES) * np.float32(0.02)
        if len(shape) == 1:
            return Tensor.from_array(name, shifted[: shape[0]] + np.float32("norm" in name))
        raw = np.resize(from_float32(shifted), shape)
        return Tensor(name, "bfloat16", shape, raw.reshape(-1).view(np.uint8))


class RandomIntegers:
    """Integers without a checkpoint, as rounding to nearest gives them: asymmetric, a scale a block."""

    def __init__(self, recipe: IntegerRecipe) -> None:
        self._recipe = recipe

    def linear(self, name: str, shape: tuple[int, int], head: bool = False) -> QuantisedLinear:
        """Uniform codes; a row's products have deviation near 1."""
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        bits = self._recipe.head_bits if head else self._recipe.bits
        rows, columns = shape
        blocks = -(-columns // self._recipe.block)
        codes = np.frombuffer(rng.bytes(rows * blocks * self._recipe.block), np.uint8) & np.uint8(2**bits - 1)
        scale = columns**-0.5 / np.sqrt((4**bits - 1) / 12)
        scales = (scale * rng.uniform(0.9, 1.1, (rows, blocks))).astype(np.float32)
        half = 1 << (bits - 1)
        zeros: NDArray[np.uint8] = rng.integers(half - 1, half + 1, (rows, blocks), np.uint8)
        return QuantisedLinear(
            BlockWeight(codes.reshape(rows, -1), scales, zeros, bits, self._recipe.block, columns)
        )


def made(path: Path, make: Callable[[Path], None]) -> Path:
    """`path`, made by `make` at a sibling place where it does not stand yet."""
    if path.exists():
        return path
    partial = path.with_name(f".{path.name}.partial")
    if partial.is_dir():
        shutil.rmtree(partial)
    path.parent.mkdir(parents=True, exist_ok=True)
    make(partial)
    partial.rename(path)
    return path


def rexthinker(place: Path, shape: Shape, head_bits: int, tokenizer: Path | None) -> Path:
    """Our own decoder, written by the exporter's own graph writer."""

    def make(out: Path) -> None:
        out.mkdir()
        recipe = IntegerRecipe(head_bits=head_bits)
        geometry = write_decoder(
            RandomCheckpoint(), _sliced(shape), out, shape.max_length, recipe, weights=RandomIntegers(recipe)
        )
        (out / "geometry.json").write_text(json.dumps(asdict(geometry)), "utf-8")
        if tokenizer is not None:
            text = TextTokenizer(tokenizer)
            end = text.special_id(END_OF_TURN)
            write_table(out / "draft.bin", "workbench", TRACES, text.encode_plain, shape.vocab, end)

    name = f"rexthinker-head{head_bits}" + ("-ids" if tokenizer is None else "")  # without a draft table
    return made(place / name, make)


def _sliced(shape: Shape) -> TextConfig:
    found = text_config(shape.name)
    values = {name: getattr(found, name) for name in found.__dataclass_fields__}
    return TextConfig(**values | {"layers": shape.layers, "tied": False})


def gguf(place: Path, shape: Shape, tokenizer: Path | None) -> Path:
    """Q4_0 for llama.cpp; OpenVINO GenAI reads it only with a tokenizer inside."""
    name = "model-ids.gguf" if tokenizer is None else "model.gguf"
    return made(place / name, lambda out: write_gguf(out, shape, tokenizer))


_CONVERT = "import sys, openvino_genai as g;g.LLMPipeline(sys.argv[1], 'CPU', enable_save_ov_model=True)"


def openvino(place: Path, shape: Shape, tokenizer: Path, python: str) -> Path:
    """OpenVINO GenAI's own conversion of the GGUF file, done by its reader.

    Raises:
        OptionError: it failed; its last words are told.
    """
    source = gguf(place, shape, tokenizer)

    def make(out: Path) -> None:
        out.mkdir()
        (out / source.name).hardlink_to(source)
        ran([python, "-c", _CONVERT, str(out / source.name)], "OpenVINO GenAI's GGUF reader")
        (out / source.name).unlink()

    return made(place / "openvino", make)


def ran(command: list[str], name: str) -> str:
    """Standard output of a command, or an OptionError with its last words."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = " ".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-3:])[-400:]
        raise OptionError(
            f"{name}: ended with {done.returncode} ({last}). Needed: an interpreter that has it. "
            "Install it as docs/peers.md says and name its interpreter with --python."
        )
    return done.stdout
