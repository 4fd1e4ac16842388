"""The shape that every peer computes: Qwen2.5-VL's text decoder, whole or a slice of its layers.

Contract  A slice has exactly the layers of the whole model, only fewer of them, and its whole output layer.
          So a slice's head weighs more than the whole model's: `layers` says how much was computed.
Elsewhere files of random weights in this shape: models.py; what is asked: work.py.
"""

from dataclasses import dataclass

from rexthinker_edge.benchmarks.make_random_checkpoint import published_config
from rexthinker_edge.export.config import TextConfig, parse_config
from rexthinker_edge.runtime.errors import OptionError

SHAPES = ("7b", "3b", "tiny")
SLICE_LAYERS = 4


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes; the output layer is never tied, so that all peers compute the same."""

    name: str
    layers: int
    whole_layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    rms_norm_eps: float
    rope_theta: float
    max_length: int

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden // self.heads

    @property
    def kv_width(self) -> int:
        """Width of one token's keys."""
        return self.kv_heads * self.head_dim

    @property
    def layer_parameters(self) -> int:
        """Numbers in the matrices of one layer."""
        return 2 * self.hidden * (self.hidden + self.kv_width) + 3 * self.hidden * self.intermediate

    @property
    def matrix_parameters(self) -> int:
        """Numbers in all matrices that one token meets: layers and output layer."""
        return self.layers * self.layer_parameters + self.vocab * self.hidden


def choose_shape(name: str, layers: int, max_length: int) -> Shape:
    """A published shape with its first `layers` layers; 0 means all of them.

    Raises:
        OptionError: there is no such shape, or it has fewer layers.
    """
    if name not in SHAPES:
        raise OptionError(f"--shape {name}: not known. Needed: one of {', '.join(SHAPES)}.")
    text = text_config(name)
    if not 0 <= layers <= text.layers:
        raise OptionError(
            f"--layers {layers}: the {name} shape has {text.layers}. Give 1 to {text.layers}, or 0 for all."
        )
    return Shape(
        name, layers or text.layers, text.layers, text.hidden, text.heads, text.kv_heads, text.intermediate,
        text.vocab, text.rms_norm_eps, text.rope_theta, max_length,
    )  # fmt: skip


def text_config(name: str) -> TextConfig:
    """The published text configuration."""
    return parse_config(published_config(name)).text
