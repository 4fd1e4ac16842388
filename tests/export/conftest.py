"""Small random Qwen2.5-VL checkpoints in both file layouts, made once a session."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from rexthinker_edge.export.checkpoint import Checkpoint
from rexthinker_edge.export.config import ModelConfig, read_config
from rexthinker_edge.export.decoder_graph import write_decoder
from rexthinker_edge.export.quantize import IntegerRecipe
from rexthinker_edge.export.vision_graph import write_vision
from rexthinker_edge.runtime.decoder import Decoder
from rexthinker_edge.runtime.embeddings import Embeddings
from rexthinker_edge.runtime.manifest import EMBEDDINGS
from rexthinker_edge.runtime.vision import VisionTower

IMAGE, VIDEO, START, END = 90, 91, 92, 93
MAX_PIXELS = 448 * 448
MAX_LENGTH = 256


@dataclass(frozen=True)
class Exported:
    """A checkpoint, the model transformers makes of it, and what we run."""

    directory: Path
    reference: Qwen2_5_VLForConditionalGeneration
    config: ModelConfig
    decoder: Decoder
    vision: VisionTower


def make_model(directory: Path, text: dict[str, Any], vision: dict[str, Any], tied: bool) -> None:
    """Save a random model in bf16; weights are large enough that every part of it shows in the output."""
    torch.manual_seed(5)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64, **text}
    half = heads["hidden_size"] // heads["num_attention_heads"] // 2
    section = heads.pop("mrope_section", [1, half // 4, half - 1 - half // 4])
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 101, "intermediate_size": 96, "num_hidden_layers": 2,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-6, "tie_word_embeddings": tied, "bos_token_id": 1, "eos_token_id": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0, "mrope_section": section},
            **heads,
        },
        vision_config={
            "depth": 3, "hidden_size": 32, "num_heads": 2, "intermediate_size": 40, "window_size": 112,
            "out_hidden_size": heads["hidden_size"], "fullatt_block_indexes": [1], **vision,
        },
        tie_word_embeddings=tied, image_token_id=IMAGE, video_token_id=VIDEO,
        vision_start_token_id=START, vision_end_token_id=END,
    )  # fmt: skip
    model = Qwen2_5_VLForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
            else:
                parameter.normal_(1.0 if "norm" in name or "ln_q" in name else 0.0, 0.3)
    model.to(torch.bfloat16).save_pretrained(directory)


def load_reference(directory: Path) -> Qwen2_5_VLForConditionalGeneration:
    """The checkpoint in float32; loaded, for a cast to bf16 would round rotary frequencies."""
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).eval()


def one_thread() -> ort.SessionOptions:
    """Session options for tests."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return options


def open_decoder(directory: Path, out: Path, recipe: IntegerRecipe | None = None) -> Decoder:
    """Export a checkpoint's decoder into `out` and open it."""
    geometry = write_decoder(Checkpoint(directory), read_config(directory).text, out, MAX_LENGTH, recipe)
    embeddings = Embeddings(out / EMBEDDINGS, geometry)
    return Decoder(out / "decoder.onnx", embeddings, geometry, one_thread())


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Exported]:
    """`exported(text={}, vision={}, tied=True)`: one exported model per distinct shape."""
    made: dict[str, Exported] = {}

    def get(
        text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None, tied: bool = True
    ) -> Exported:
        key = f"{text} {vision} {tied}"
        if key not in made:
            torch.set_num_threads(1)
            directory, out = tmp_path_factory.mktemp("vlm"), tmp_path_factory.mktemp("bundle")
            make_model(directory, text or {}, vision or {}, tied)
            config = read_config(directory)
            geometry = write_vision(Checkpoint(directory), config.vision, out, MAX_PIXELS)
            tower = VisionTower(out / "vision.onnx", geometry, one_thread())
            made[key] = Exported(
                directory, load_reference(directory), config, open_decoder(directory, out), tower
            )
        return made[key]

    return get


@pytest.fixture
def rng() -> np.random.Generator:
    """The same numbers in every run."""
    return np.random.default_rng(11)
