"""The bundled language model: its shape, its stages of training, in one place.

Layout    `Shape` becomes transformers' `Qwen2_5_VLConfig`, nothing of the architecture changed;
          `Recipe` is a list of `Stage`s run one after another by sft.py.
Contract  rope_theta and mrope_section are chosen for small pictures: with the 7B's theta of 1e6 the
          axis w would turn by 0.002 rad over ten cells at head_dim 32 and could not be told apart.
Elsewhere the loop: sft.py; the samples: vlm_data.py; the words: tokenizer.py.
Source    docs/sources.md#small-model
"""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """Sizes of the small Qwen2.5-VL."""

    hidden: int = 192
    layers: int = 6
    heads: int = 6
    kv_heads: int = 2
    feed_forward: int = 384
    rope_theta: float = 1000.0
    mrope_section: tuple[int, int, int] = (1, 4, 11)
    max_positions: int = 4096
    vision_depth: int = 4
    vision_hidden: int = 96
    vision_heads: int = 3
    vision_feed_forward: int = 256
    vision_window: int = 112
    vision_full_attention: tuple[int, ...] = (1, 3)

    def to_config(self, vocab_size: int, token_id: dict[str, int]) -> dict[str, Any]:
        """Keyword arguments of `Qwen2_5_VLConfig`."""
        return {
            "text_config": {
                "vocab_size": vocab_size,
                "hidden_size": self.hidden,
                "intermediate_size": self.feed_forward,
                "num_hidden_layers": self.layers,
                "num_attention_heads": self.heads,
                "num_key_value_heads": self.kv_heads,
                "max_position_embeddings": self.max_positions,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": self.rope_theta,
                    "mrope_section": list(self.mrope_section),
                },
                "tie_word_embeddings": True,
                "rms_norm_eps": 1e-6,
                "bos_token_id": token_id["<|endoftext|>"],
                "eos_token_id": token_id["<|im_end|>"],
                "pad_token_id": token_id["<|endoftext|>"],
            },
            "vision_config": {
                "depth": self.vision_depth,
                "hidden_size": self.vision_hidden,
                "intermediate_size": self.vision_feed_forward,
                "num_heads": self.vision_heads,
                "out_hidden_size": self.hidden,
                "window_size": self.vision_window,
                "fullatt_block_indexes": list(self.vision_full_attention),
                "hidden_act": "silu",
            },
            "image_token_id": token_id["<|image_pad|>"],
            "video_token_id": token_id["<|video_pad|>"],
            "vision_start_token_id": token_id["<|vision_start|>"],
            "vision_end_token_id": token_id["<|vision_end|>"],
            "tie_word_embeddings": True,
        }


@dataclass(frozen=True)
class Pixels:
    """The picture sizes the model sees: smart_resize limits, in pixels."""

    min_pixels: int = 16 * 28 * 28
    max_pixels: int = 100 * 28 * 28


@dataclass(frozen=True)
class Stage:
    """One stretch of training.

    Attributes:
        steps: optimiser steps.
        scenes: pictures with turns a step; with none the stage trains the vision tower alone.
        expressions: traces a picture, and one turn of dense labels of its candidates; all share its prefix.
        describe: share of pictures that come with dense labels of everything, and no traces.
        full: share of pictures of the level `full`.
        pictures: pictures of crowded letters, and as many of things in contact, a step for the vision tower
            alone; they cost a fifteenth of a picture with traces.
        auxiliary: weight of the auxiliary losses on picture and hint tokens.
        learning_rate: at the start of the stage; `final_rate` at its end, linear between.
    """

    name: str
    steps: int
    scenes: int
    expressions: int
    describe: float
    full: float
    pictures: int
    auxiliary: float
    learning_rate: float
    final_rate: float


@dataclass(frozen=True)
class Recipe:
    """Everything `train sft` needs to know."""

    shape: Shape = Shape()
    pixels: Pixels = Pixels()
    stages: tuple[Stage, ...] = (
        Stage("see", 1900, 0, 0, 0.0, 0.0, 16, 1.0, 2.0e-3, 2.0e-3),
        Stage("tie", 400, 16, 1, 1.0, 0.3, 6, 1.0, 2.5e-3, 2.5e-3),
        Stage("traces", 2400, 12, 2, 0.05, 0.45, 6, 0.5, 2.5e-3, 1.2e-3),
        Stage("settle", 800, 12, 3, 0.0, 0.5, 2, 0.2, 1.2e-3, 0.0),
    )
    warmup: int = 60
    weight_decay: float = 0.02
    clip: float = 1.0
    seed: int = 7
    max_new_tokens: int = 640

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for the log's first line."""
        return asdict(self)
