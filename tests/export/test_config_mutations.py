"""Thirty random changes of a configuration: each is honoured, as transformers honours it, or refused."""

import copy
import json
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from rexthinker_edge.export.checkpoint import Checkpoint
from rexthinker_edge.export.config import read_config
from rexthinker_edge.export.vision_graph import write_vision
from rexthinker_edge.runtime.errors import CheckpointError, ConfigError
from rexthinker_edge.runtime.positions import text_positions
from rexthinker_edge.runtime.qwen_pixels import VisionInput
from rexthinker_edge.runtime.vision import VisionTower

from .conftest import MAX_PIXELS, make_model, one_thread, open_decoder

MUTATIONS = 30
SEED = 20
IDS = [5, 17, 40, 3, 88, 61]
GRID = (1, 12, 10)  # ragged windows
# What a published configuration may say, and what nobody should: each key with values to draw from.
VALUES: dict[str, tuple[Any, ...]] = {
    "text_config.hidden_size": (32, 96, 63, 0, -64, "64", None),
    "text_config.intermediate_size": (32, 80, 97, 0, 1.5, True),
    "text_config.num_hidden_layers": (1, 3, 0, "2"),
    "text_config.num_attention_heads": (2, 8, 3, 0),
    "text_config.num_key_value_heads": (1, 4, 3, None, 0),
    "text_config.vocab_size": (97, 300, -1),
    "text_config.rms_norm_eps": (1e-5, 1e-2, 0.0, -1e-6, "small"),
    "text_config.hidden_act": ("gelu", "relu", "silu", None),
    "text_config.max_position_embeddings": (64, 1024, 0),
    "text_config.rope_parameters.rope_theta": (1e4, 5e5, 0.0, "x"),
    "text_config.rope_parameters.rope_type": ("linear", "yarn", "default"),
    "text_config.rope_parameters.mrope_section": ([2, 3, 3], [3, 3, 2], [4, 4], [8, 8, 8], [-1, 4, 5], "x"),
    "text_config.rope_parameters.factor": (2.0,),
    "text_config.use_sliding_window": (True, False, "no"),
    "text_config.sliding_window": (4, None),
    "text_config.attention_dropout": (0.5,),
    "text_config.initializer_range": (1.0,),
    "text_config.head_dim": (16, 32),
    "text_config.tie_word_embeddings": (True, False),
    "text_config.novelty": (1,),
    "tie_word_embeddings": (True, False, "yes"),
    "image_token_id": (7, -1),
    "model_type": ("qwen2_vl", "llava"),
    "architectures": (["Qwen2VLForConditionalGeneration"], []),
    "quantization_config": ({"quant_method": "awq"},),
    "vision_config.depth": (2, 5, 0),
    "vision_config.hidden_size": (16, 64, 30),
    "vision_config.num_heads": (1, 4, 3),
    "vision_config.intermediate_size": (64, 0),
    "vision_config.fullatt_block_indexes": ([0], [0, 1, 2], [], [9], [-1], [0.5], "all"),
    "vision_config.window_size": (56, 84, 224, 20, 0, 100),
    "vision_config.spatial_merge_size": (1, 4, 0),
    "vision_config.patch_size": (7, 28, 0),
    "vision_config.temporal_patch_size": (1, 4),
    "vision_config.in_channels": (1, 4),
    "vision_config.out_hidden_size": (32, 65),
    "vision_config.hidden_act": ("gelu", "quick_gelu"),
    "vision_config.tokens_per_second": (9,),
    "vision_config.novelty": (True,),
}  # fmt: skip


def drawn() -> list[tuple[str, Any]]:
    """Distinct keys in random order, each with one of its values."""
    choose = random.Random(SEED)
    return [(key, choose.choice(VALUES[key])) for key in choose.sample(sorted(VALUES), MUTATIONS)]


def mutated(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The configuration with one value set."""
    whole = copy.deepcopy(values)
    *path, last = key.split(".")
    inner = whole
    for step in path:
        inner = inner[step]
    inner[last] = value
    return whole


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> dict[str, Any]:
    """The configuration that is changed."""
    directory = tmp_path_factory.mktemp("plain")
    make_model(directory, {}, {}, tied=False)
    found: dict[str, Any] = json.loads((directory / "config.json").read_text())
    return found


def reference(directory: Path, values: dict[str, Any]) -> Qwen2_5_VLForConditionalGeneration | None:
    """What transformers makes of the configuration, saved with random weights; None when it makes nothing."""
    torch.manual_seed(3)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**copy.deepcopy(values)))
    except Exception:  # noqa: BLE001 - whatever it raises, it does not make a model of this
        return None
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.3
            parameter.normal_(float("norm" in name or "ln_q" in name), spread)
    tied = model.config.tie_word_embeddings or model.config.text_config.tie_word_embeddings
    tensors = {n: t.contiguous() for n, t in model.state_dict().items() if not (tied and "lm_head" in n)}
    save_file(tensors, directory / "model.safetensors")
    return model.eval()


def assert_same(model: Qwen2_5_VLForConditionalGeneration, directory: Path, out: Path) -> None:
    """Logits and features of the export and of transformers agree to float32 rounding."""
    config = read_config(directory)
    decoder = open_decoder(directory, out)
    cache = decoder.new_cache(len(IDS))
    seen = decoder.run(decoder.embed(IDS), text_positions(0, len(IDS)), cache, last_only=False)
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor([IDS])).logits[0].numpy()
    # Sums of at most 100 products of numbers near 1: some hundred roundings of 6e-8.
    np.testing.assert_allclose(seen, wanted, rtol=0, atol=2e-4 * max(1.0, float(np.abs(wanted).max())))
    checkpoint = Checkpoint(directory)
    tower = VisionTower(
        out / "vision.onnx", write_vision(checkpoint, config.vision, out, MAX_PIXELS), one_thread()
    )
    grid = (1, 3 * config.vision.merge, 5 * config.vision.merge)
    patches = np.random.default_rng(1).standard_normal(
        (grid[1] * grid[2], config.vision.patch_volume), np.float32
    )
    size_px = (grid[2] * config.vision.patch, grid[1] * config.vision.patch)
    features = tower.encode(VisionInput(patches, grid, size_px))
    with torch.no_grad():
        made = model.model.visual(torch.from_numpy(patches), torch.tensor([grid]))
    wanted = getattr(made, "pooler_output", made).numpy()
    np.testing.assert_allclose(features, wanted, rtol=0, atol=2e-4 * max(1.0, float(np.abs(wanted).max())))


@pytest.mark.parametrize(("key", "value"), drawn(), ids=lambda v: str(v)[:40])
def test_honoured_or_refused(plain, tmp_path, key, value):
    values = mutated(plain, key, value)
    (tmp_path / "config.json").write_text(json.dumps(values))
    out = tmp_path / "out"
    out.mkdir()
    try:
        read_config(tmp_path)
    except ConfigError as refused:
        if not str(refused).startswith("config.json"):  # names the key, or the one it no longer fits
            pytest.fail(str(refused))
        return
    model = reference(tmp_path, values)
    assert model is not None, f"we read {key} = {value!r}, transformers cannot"
    try:
        assert_same(model, tmp_path, out)
    except CheckpointError as refused:
        pytest.fail(f"{key} = {value!r} was read, then {refused}")


def test_both_outcomes_are_met(plain, tmp_path):
    outcomes = set()
    for key, value in drawn():
        (tmp_path / "config.json").write_text(json.dumps(mutated(plain, key, value)))
        try:
            read_config(tmp_path)
            outcomes.add("honoured")
        except ConfigError:
            outcomes.add("refused")
    assert outcomes == {"honoured", "refused"}
    assert len(drawn()) == MUTATIONS == len({key for key, _ in drawn()})
