"""Every configuration key is honoured, known to be irrelevant, or refused by name."""

import copy
import json

import pytest
from transformers import Qwen2_5_VLConfig

from rexthinker_edge.export.config import TextConfig, parse_config, read_config
from rexthinker_edge.export.config_keys import IRRELEVANT
from rexthinker_edge.runtime.errors import ConfigError

# Qwen/Qwen2.5-VL-7B-Instruct's config.json, which Rex-Thinker-GRPO-7B was trained from.
PUBLISHED_7B = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "max_position_embeddings": 128000,
    "max_window_layers": 28,
    "model_type": "qwen2_5_vl",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.41.2",
    "use_cache": True,
    "use_sliding_window": False,
    "vision_config": {
        "depth": 32,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 152064,
}
TEXT_7B = TextConfig(
    hidden=3584, layers=28, heads=28, kv_heads=4, intermediate=18944, vocab=152064, rms_norm_eps=1e-6,
    rope_theta=1e6, mrope_section=(16, 24, 24), max_position_embeddings=128000, tied=False,
)  # fmt: skip


def nested():
    """The same model as transformers 5 writes it."""
    return json.loads(Qwen2_5_VLConfig(**copy.deepcopy(PUBLISHED_7B)).to_json_string()) | {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"]
    }


def transitional():
    """As transformers 4.5x writes it: nested, with the flat keys repeated and rope stated both ways."""
    values = copy.deepcopy(PUBLISHED_7B)
    flat = {k: v for k, v in values.items() if k not in ("vision_config", "architectures", "vision_token_id")}
    text = flat | {
        "model_type": "qwen2_5_vl_text", "image_token_id": None, "vision_start_token_id": 151652,
        "architectures": ["Qwen2_5_VLForConditionalGeneration"], "_name_or_path": "somewhere",
        "layer_types": ["full_attention"] * 28,
        "rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": [16, 24, 24]},
    }  # fmt: skip
    values["vision_config"] |= {"model_type": "qwen2_5_vl", "in_channels": 3}
    return values | {"text_config": text, "rope_scaling": text["rope_scaling"]}


@pytest.mark.parametrize("layout", [lambda: copy.deepcopy(PUBLISHED_7B), nested, transitional])
def test_the_published_7b_in_every_layout(layout):
    config = parse_config(layout())
    assert config.text == TEXT_7B
    assert config.text.head_dim == 128
    vision = config.vision
    assert (vision.hidden, vision.depth, vision.heads, vision.intermediate) == (1280, 32, 16, 3420)
    assert vision.head_dim == 80
    assert vision.full_attention == {7, 15, 23, 31}
    assert (vision.window, vision.patch, vision.merge, vision.out_hidden) == (112, 14, 2, 3584)
    assert vision.patch_volume == 1176
    assert (config.image_token, config.vision_start_token, config.vision_end_token) == (
        151655,
        151652,
        151653,
    )


def changed(layout, *path, value):
    """The configuration with one key set."""
    values = layout()
    inner = values
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return values


HONOURED = [
    ("num_key_value_heads", 7, lambda c: c.text.kv_heads),
    ("rms_norm_eps", 1e-5, lambda c: c.text.rms_norm_eps),
    ("num_hidden_layers", 3, lambda c: c.text.layers),
    ("intermediate_size", 128, lambda c: c.text.intermediate),
    ("vocab_size", 999, lambda c: c.text.vocab),
    ("max_position_embeddings", 777, lambda c: c.text.max_position_embeddings),
    ("rope_theta", 5000.0, lambda c: c.text.rope_theta),
    ("tie_word_embeddings", True, lambda c: c.text.tied),
    ("image_token_id", 5, lambda c: c.image_token),
]
HONOURED_VISION = [
    ("depth", 40, lambda c: c.vision.depth),
    ("num_heads", 8, lambda c: c.vision.heads),
    ("intermediate_size", 100, lambda c: c.vision.intermediate),
    ("window_size", 56, lambda c: c.vision.window),
    ("fullatt_block_indexes", [0], lambda c: list(c.vision.full_attention)),
]


@pytest.mark.parametrize(("key", "value", "read"), HONOURED)
def test_text_keys_are_honoured(key, value, read):
    assert read(parse_config(changed(lambda: copy.deepcopy(PUBLISHED_7B), key, value=value))) == value


@pytest.mark.parametrize(("key", "value", "read"), HONOURED_VISION)
def test_vision_keys_are_honoured(key, value, read):
    values = changed(lambda: copy.deepcopy(PUBLISHED_7B), "vision_config", key, value=value)
    assert read(parse_config(values)) == value


def test_nested_tie_and_nested_rope_are_honoured():
    assert parse_config(changed(nested, "text_config", "tie_word_embeddings", value=True)).text.tied
    assert parse_config(changed(nested, "tie_word_embeddings", value=True)).text.tied
    values = changed(nested, "text_config", "rope_parameters", "rope_theta", value=123.0)
    assert parse_config(values).text.rope_theta == 123.0
    values = changed(nested, "vision_config", "rope_parameters", "rope_theta", value=77.0)
    assert parse_config(values).vision.rope_theta == 77.0


REFUSED = [
    (("hidden_act",), "gelu", "'hidden_act' is 'gelu'"),
    (("use_sliding_window",), True, "'use_sliding_window' is True"),
    (("architectures",), ["Qwen2VLForConditionalGeneration"], "Qwen2VLForConditionalGeneration"),
    (("model_type",), "qwen2_vl", "model_type 'qwen2_vl'"),
    (("quantization_config",), {"bits": 4}, "quantization_config"),
    (("rope_scaling",), None, "'rope_scaling' is None"),
    (("rope_scaling", "type"), "yarn", "'type' is 'yarn'"),
    (("rope_scaling", "factor"), 4.0, "unknown key 'factor'"),
    (("rope_scaling", "mrope_section"), [16, 24, 23], r"'mrope_section' is \[16, 24, 23\]"),
    (("rope_theta",), -1.0, "'rope_theta' is -1.0"),
    (("num_attention_heads",), 27, "'num_attention_heads' is 27"),
    (("num_hidden_layers",), "28", "'num_hidden_layers' is '28', needed int"),
    (("num_hidden_layers",), True, "'num_hidden_layers' is True, needed int"),
    (("tie_word_embeddings",), 0, "'tie_word_embeddings' is 0, needed bool"),
    (("head_dim",), 64, "unknown key 'head_dim'"),
    (("attention_bias",), False, "'attention_bias' is False"),
    (("surprise",), 1, "unknown key 'surprise'"),
    (("vision_config", "hidden_act"), "quick_gelu", "'hidden_act' is 'quick_gelu'"),
    (("vision_config", "in_chans"), 1, "'in_chans' is 1"),
    (("vision_config", "temporal_patch_size"), 1, "'temporal_patch_size' is 1"),
    (("vision_config", "spatial_patch_size"), 7, "'spatial_patch_size'"),
    (("vision_config", "out_hidden_size"), 2048, "'out_hidden_size' is 2048"),
    (("vision_config", "fullatt_block_indexes"), [32], r"'fullatt_block_indexes' is \[32\]"),
    (("vision_config", "window_size"), 14, "'window_size' is 14"),
    (("vision_config", "num_heads"), 6, "'num_heads' is 6"),
    (("vision_config", "num_position_embeddings"), 2304, "unknown key 'num_position_embeddings'"),
    (("vision_config", "model_type"), "siglip", "'model_type' is 'siglip'"),
]


@pytest.mark.parametrize(("path", "value", "message"), REFUSED)
def test_what_is_not_computed_is_refused_by_name(path, value, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(changed(lambda: copy.deepcopy(PUBLISHED_7B), *path, value=value))


def test_nested_refusals():
    with pytest.raises(ConfigError, match=r"text_config: unknown key 'query_scale'"):
        parse_config(changed(nested, "text_config", "query_scale", value=2))
    layers = ["full_attention"] * 27 + ["sliding_attention"]
    with pytest.raises(ConfigError, match="'layer_types'"):
        parse_config(changed(nested, "text_config", "layer_types", value=layers))
    with pytest.raises(ConfigError, match=r"'hidden_size' is 4096, .* text_config says, 3584"):
        parse_config(changed(transitional, "hidden_size", value=4096))
    with pytest.raises(ConfigError, match="'rope_type' is 'dynamic'"):
        parse_config(changed(nested, "vision_config", "rope_parameters", "rope_type", value="dynamic"))


def test_every_irrelevant_key_has_a_reason():
    assert all(reason.strip() for reason in IRRELEVANT.values())


def test_files(tmp_path):
    with pytest.raises(ConfigError, match=r"config.json: .*No such file"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ConfigError, match="list, needed an object"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED_7B))
    assert read_config(tmp_path).text == TEXT_7B
