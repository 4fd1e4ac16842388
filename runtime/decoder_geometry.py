"""The decoder's sizes, as the manifest carries them.

Elsewhere the manifest: manifest.py; whether a graph agrees: session_check.py; who allocates by it:
          kv_cache.py, embeddings.py; the other graphs' sizes: vision.py, detector.py.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class DecoderGeometry:
    """What the runtime must know of the decoder; the manifest carries it.

    `max_length` is the number of positions the graph's rotary table holds, prompt and answer together.
    `branches`: the graph takes an attention bias, so that several answers can share one cache.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    mrope_section: tuple[int, int, int]
    rope_theta: float
    max_length: int
    embedding_dtype: str
    branches: bool = False
