"""Reads a Qwen2.5-VL `config.json`: every key is honoured, known to be irrelevant, or refused by name.

Layout    transformers 4 wrote the text model's keys flat beside `vision_config` (later also nested);
          transformers 5 nests them in `text_config` and gathers the rotary settings in `rope_parameters`.
Contract  Nothing is ignored in silence: an unknown key, or a known key with a value that the graphs do not
          compute, is a ConfigError that names both. A key stated twice must say the same twice.
Elsewhere taking keys: config_keys.py; the tensors: checkpoint.py; what is built of it: decoder_graph.py,
          vision_graph.py.
Source    docs/sources.md#config
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rexthinker_edge.export.config_keys import IRRELEVANT, Keys
from rexthinker_edge.runtime.errors import ConfigError

ARCHITECTURE = "Qwen2_5_VLForConditionalGeneration"

# Keys that may stand there with this value only.
TEXT_FIXED: Mapping[str, Any] = {
    "hidden_act": "silu",
    "use_sliding_window": False,
    "attention_bias": True,
    "mlp_bias": False,
}
VISION_FIXED: Mapping[str, Any] = {
    "hidden_act": "silu", "in_channels": 3, "in_chans": 3, "temporal_patch_size": 2,
}  # fmt: skip


@dataclass(frozen=True)
class TextConfig:
    """The decoder's shape."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    rms_norm_eps: float
    rope_theta: float
    mrope_section: tuple[int, int, int]
    max_position_embeddings: int
    tied: bool

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden // self.heads


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower's shape. Its norms use 1e-6 whatever the text model says."""

    hidden: int
    depth: int
    heads: int
    intermediate: int
    out_hidden: int
    patch: int
    temporal_patch: int
    merge: int
    window: int
    full_attention: frozenset[int]
    rope_theta: float

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden // self.heads

    @property
    def patch_volume(self) -> int:
        """Numbers in one patch: three channels, two frames."""
        return 3 * self.temporal_patch * self.patch**2


@dataclass(frozen=True)
class ModelConfig:
    """A whole checkpoint's configuration."""

    text: TextConfig
    vision: VisionConfig
    image_token: int
    vision_start_token: int
    vision_end_token: int


def read_config(directory: Path) -> ModelConfig:
    """The configuration of a checkpoint directory.

    Raises:
        ConfigError: the file is missing or no JSON, the architecture is another, or a key is not honoured.
    """
    path = directory / "config.json"
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{directory.name}/config.json: {error}; needed the checkpoint's configuration. "
            "Give the directory of a Hugging Face checkpoint."
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"{directory.name}/config.json: {type(values).__name__}, needed an object. Download it again."
        )
    return parse_config(values)


def parse_config(values: Mapping[str, Any]) -> ModelConfig:
    """As `read_config`, of the parsed JSON."""
    top = Keys("config.json", values)
    architectures = top.values.pop("architectures", [ARCHITECTURE])
    model_type = top.values.pop("model_type", None)
    if architectures != [ARCHITECTURE] or model_type != "qwen2_5_vl":
        raise ConfigError(
            f"config.json: architecture {architectures!r}, model_type {model_type!r}; needed {ARCHITECTURE} "
            "(qwen2_5_vl). Give a Qwen2.5-VL or Rex-Thinker checkpoint."
        )
    quantised = top.values.pop("quantization_config", None)
    method = quantised.get("quant_method") if isinstance(quantised, dict) else None
    if quantised is not None and method not in ("gptq", "compressed-tensors"):
        raise ConfigError(
            f"config.json: 'quantization_config' names the method {method!r}, needed 'gptq', "
            "'compressed-tensors' or unquantised weights. Export from the bf16 checkpoint."
        )
    tokens = [top.take(f"{name}_token_id", int) for name in ("image", "vision_start", "vision_end")]
    vision = _vision(Keys("config.json/vision_config", top.take("vision_config", dict)))
    tied = [top.take("tie_word_embeddings", bool)] if "tie_word_embeddings" in top.values else []
    if "text_config" in top.values:
        text_keys = Keys("config.json/text_config", top.take("text_config", dict))
        _drop_repeats(top, text_keys)
        for name in ("image_token_id", "vision_start_token_id", "vision_end_token_id"):
            text_keys.values.pop(name, None)  # transformers 4.5x copied them, often as null
        top.finish()
    else:
        text_keys = top
    text = _text(text_keys, tied)
    if vision.out_hidden != text.hidden:
        raise top.fail("out_hidden_size", vision.out_hidden, f"the decoder's width {text.hidden}")
    return ModelConfig(text, vision, *tokens)


def _drop_repeats(top: Keys, text: Keys) -> None:
    """Transformers 4.5x repeated text keys beside text_config; they must agree with it."""
    for key in sorted(top.values.keys() & text.values.keys() - IRRELEVANT.keys()):
        seen = top.values.pop(key)
        if seen != text.values[key]:
            raise top.fail(key, seen, f"what text_config says, {text.values[key]!r},")


def _text(keys: Keys, tied: list[bool]) -> TextConfig:
    """The decoder's keys, flat or nested."""
    if (seen := keys.values.pop("model_type", "qwen2_5_vl_text")) != "qwen2_5_vl_text":
        raise keys.fail("model_type", seen, "'qwen2_5_vl_text'")
    if keys.values.pop("architectures", None) not in (None, [ARCHITECTURE]):
        raise keys.fail("architectures", "another", ARCHITECTURE)
    keys.fixed(TEXT_FIXED)
    # With use_sliding_window false (fixed above) neither of these is read.
    keys.values.pop("sliding_window", None)
    keys.values.pop("max_window_layers", None)
    # transformers 5 ties when either place says so.
    if "tie_word_embeddings" in keys.values:
        tied = [*tied, keys.take("tie_word_embeddings", bool)]
    hidden, heads = keys.take("hidden_size", int), keys.take("num_attention_heads", int)
    layers = keys.take("num_hidden_layers", int)
    kv_heads = keys.take("num_key_value_heads", int, heads)
    if hidden % heads or heads % kv_heads:
        raise keys.fail("num_attention_heads", heads, f"divisors of {hidden} and multiples of {kv_heads}")
    if keys.values.pop("layer_types", None) not in (None, ["full_attention"] * layers):
        raise keys.fail("layer_types", "mixed", f"'full_attention' in all {layers} layers")
    theta, section = _rope(keys, hidden // heads)
    config = TextConfig(
        hidden=hidden, layers=layers, heads=heads, kv_heads=kv_heads,
        intermediate=keys.take("intermediate_size", int), vocab=keys.take("vocab_size", int),
        rms_norm_eps=keys.take("rms_norm_eps", float), rope_theta=theta, mrope_section=section,
        max_position_embeddings=keys.take("max_position_embeddings", int), tied=any(tied),
    )  # fmt: skip
    keys.finish()
    return config


def _rope(keys: Keys, head_dim: int) -> tuple[float, tuple[int, int, int]]:
    """Base and sections of M-RoPE, from `rope_parameters` (5) or `rope_scaling` and `rope_theta` (4)."""
    given = {
        name: keys.values.pop(name) for name in ("rope_parameters", "rope_scaling") if keys.values.get(name)
    }
    keys.values.pop("rope_scaling", None)
    if not given:
        raise keys.fail("rope_scaling", None, "M-RoPE with an mrope_section")
    name, values = next(iter(given.items()))
    rope = Keys(f"{keys.where}/{name}", values)
    for key in ("rope_type", "type"):
        if (seen := rope.values.pop(key, "default")) not in ("default", "mrope"):
            raise rope.fail(key, seen, "'default' or 'mrope'")
    section = rope.take("mrope_section", list)
    thetas = [k.take("rope_theta", float) for k in (rope, keys) if "rope_theta" in k.values]
    if (
        len(section) != 3
        or any(not isinstance(n, int) or n < 0 for n in section)
        or 2 * sum(section) != head_dim
    ):
        raise rope.fail("mrope_section", section, f"three parts that add up to {head_dim // 2}")
    if not thetas or len(set(thetas)) != 1:
        raise rope.fail("rope_theta", thetas, "one stated value")
    rope.finish()
    return thetas[0], (section[0], section[1], section[2])


def _vision(keys: Keys) -> VisionConfig:
    """The vision tower's keys."""
    if (seen := keys.values.pop("model_type", "qwen2_5_vl_vision")) not in (
        "qwen2_5_vl",
        "qwen2_5_vl_vision",
    ):
        raise keys.fail("model_type", seen, "'qwen2_5_vl'")
    keys.fixed(VISION_FIXED)
    rope = Keys(f"{keys.where}/rope_parameters", keys.values.pop("rope_parameters", None) or {})
    theta = rope.take("rope_theta", float, 10000.0)
    rope.fixed({"rope_type": "axial"})
    rope.finish()
    config = VisionConfig(
        hidden=keys.take("hidden_size", int), depth=keys.take("depth", int),
        heads=keys.take("num_heads", int),
        intermediate=keys.take("intermediate_size", int), out_hidden=keys.take("out_hidden_size", int),
        patch=keys.take("patch_size", int, 14), temporal_patch=2,
        merge=keys.take("spatial_merge_size", int, 2),
        window=keys.take("window_size", int, 112),
        full_attention=frozenset(keys.take("fullatt_block_indexes", list, [7, 15, 23, 31])), rope_theta=theta,
    )  # fmt: skip
    if keys.values.pop("spatial_patch_size", config.patch) != config.patch:
        raise keys.fail("spatial_patch_size", "another", f"patch_size {config.patch}")
    if config.hidden % config.heads or config.head_dim % 4:
        raise keys.fail("num_heads", config.heads, f"divisors of {config.hidden} with heads divisible by 4")
    if not config.full_attention <= set(range(config.depth)):
        raise keys.fail(
            "fullatt_block_indexes", sorted(config.full_attention), f"layers below {config.depth}"
        )
    if config.window < config.patch * config.merge:
        raise keys.fail("window_size", config.window, f"windows of at least {config.patch * config.merge} px")
    keys.finish()
    return config
