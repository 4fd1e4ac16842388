"""The small detector's sizes and schedule, in one place.

What      `DetectorRecipe` is everything a training run depends on; `model_config` turns its sizes into
          transformers' own configuration, nothing about the architecture changed.
Contract  One recipe and one seed give one run. An unknown key in a recipe file is an error.
Elsewhere pictures and captions: detector_data.py; loss: detector_loss.py; the loop: detector.py.
Source    Grounding DINO, arXiv 2303.05499; docs/training/detector.jsonl holds the run.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rexthinker_edge.runtime.errors import OptionError
from rexthinker_edge.runtime.strict_json import parse, to_dataclass

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, as every Grounding DINO checkpoint."""


@dataclass(frozen=True)
class DetectorRecipe:
    """Sizes of the model, sizes of its pictures, and how it is trained."""

    # pictures: shorter and longest side at inference; training starts smaller and ends at full size
    shortest_px: int = 192
    longest_px: int = 268
    # scores aim at the IoU and spare easy negatives, so the best cut is high: docs/training/detector.md
    box_threshold: float = 0.6
    pictures: int = 24_000
    data_seed: int = 0
    # model
    d_model: int = 96
    heads: int = 6
    ffn: int = 288
    encoder_layers: int = 2
    decoder_layers: int = 3
    queries: int = 40
    feature_levels: int = 3
    embed_dim: int = 32
    depths: tuple[int, ...] = (2, 2, 2)
    swin_heads: tuple[int, ...] = (2, 4, 8)
    window: int = 5
    mlp_ratio: float = 3.0
    text_hidden: int = 64
    text_layers: int = 1
    max_text_len: int = 64
    # optimisation
    steps: int = 5_800
    batch: int = 8
    learning_rate: float = 4e-4
    weight_decay: float = 0.02
    warm_up: int = 200
    clip: float = 1.0
    ema: float = 0.998
    seed: int = 1

    @staticmethod
    def read(path: Path) -> "DetectorRecipe":
        """A recipe from JSON; keys that are left out keep their defaults.

        Raises:
            OptionError: no JSON, an unknown key, or a value of another type.
        """
        try:
            return to_dataclass(DetectorRecipe, parse(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise OptionError(
                f"{path}: {error}, a recipe's fields are needed. Correct it; "
                f"known are {sorted(field.name for field in fields(DetectorRecipe))}."
            ) from error


def model_config(recipe: DetectorRecipe, vocabulary: int) -> Any:
    """transformers' `GroundingDinoConfig` of a recipe."""
    from transformers import BertConfig, GroundingDinoConfig, SwinConfig  # noqa: PLC0415

    backbone = SwinConfig(
        image_size=recipe.shortest_px, patch_size=4, embed_dim=recipe.embed_dim, depths=list(recipe.depths),
        num_heads=list(recipe.swin_heads), window_size=recipe.window, mlp_ratio=recipe.mlp_ratio,
        drop_path_rate=0.0, out_indices=list(range(2, len(recipe.depths) + 1)),
    )  # fmt: skip
    text = BertConfig(
        vocab_size=vocabulary, hidden_size=recipe.text_hidden, num_hidden_layers=recipe.text_layers,
        num_attention_heads=2, intermediate_size=2 * recipe.text_hidden,
        max_position_embeddings=recipe.max_text_len,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return GroundingDinoConfig(
        backbone_config=backbone, text_config=text, num_queries=recipe.queries,
        num_feature_levels=recipe.feature_levels, d_model=recipe.d_model,
        encoder_layers=recipe.encoder_layers, decoder_layers=recipe.decoder_layers,
        encoder_attention_heads=recipe.heads, decoder_attention_heads=recipe.heads,
        encoder_ffn_dim=recipe.ffn, decoder_ffn_dim=recipe.ffn,
        dropout=0.0, fusion_droppath=0.0, max_text_len=recipe.max_text_len,
    )  # fmt: skip
