"""The prompt up to the cut, as the segments that are kept: system turn, picture, hints.

Layout    system … <|vision_start|> | <|image_pad|>×N <|vision_end|> | Hint: … \\n
          Both bars stand at special tokens, so each segment is tokenised alone and means the same.
Contract  A picture's key is over its pixels after resizing and its grid, a text's over its token ids: whole
          contents, never samples. Features and pixels are computed again when nothing kept them.
Elsewhere the words: prompt.py; keeping: prefix_tree.py; the pixels: qwen_pixels.py.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.runtime.deadline import Deadline
from rexthinker_edge.runtime.decoder import Decoder
from rexthinker_edge.runtime.embeddings import place_image
from rexthinker_edge.runtime.positions import mrope_positions
from rexthinker_edge.runtime.prefix_tree import PrefixTree, Segment, content_key
from rexthinker_edge.runtime.qwen_pixels import VisionInput

Encode = Callable[[Deadline], NDArray[np.float32]]


@dataclass(frozen=True)
class PromptPath:
    """Everything left of the cut."""

    segments: tuple[Segment, ...]
    next_position: int  # of the first token right of the cut

    @property
    def length(self) -> int:
        """Its tokens."""
        return sum(segment.count for segment in self.segments)


@dataclass(frozen=True)
class SeenPicture:
    """What the language model's side knows of a picture without its pixels."""

    key: bytes
    grid_thw: tuple[int, int, int]
    tokens: int  # merged patches


def seen_picture(pixels: VisionInput, merge: int) -> SeenPicture:
    """Name a resized picture by its content."""
    grid = np.array(pixels.grid_thw, np.int64)
    return SeenPicture(
        content_key("picture", grid, pixels.patches), pixels.grid_thw, pixels.merged_tokens(merge)
    )


def prompt_path(
    decoder: Decoder, tree: PrefixTree, token_ids: list[int], image_pad: int, seen: SeenPicture, merge: int,
    encode: Encode, salt: bytes = b"",
) -> PromptPath:  # fmt: skip
    """Cut a prefix into its segments.

    Args:
        token_ids: the whole prefix; its one run of `image_pad` is the picture.
        encode: gives the picture's features (N, hidden) when they are not kept.
        salt: keeps the segments apart from equal ones of another origin; empty for our own.
    """
    ids = np.array(token_ids, np.int64)
    positions, following = mrope_positions(ids, image_pad, [seen.grid_thw], merge)
    start = token_ids.index(image_pad)
    stop = start + seen.tokens + 1  # <|vision_end|> goes with its picture

    def text(part: slice) -> Segment:
        own = ids[part]
        salted = content_key("text", own, np.frombuffer(salt, np.uint8))
        return Segment(salted, positions[:, part], lambda _deadline: decoder.embed(own))

    def picture(deadline: Deadline) -> NDArray[np.float32]:
        own = ids[start:stop]
        features = tree.features(seen.key, lambda: encode(deadline))
        return place_image(decoder.embed(own), own, image_pad, features)

    key = content_key("picture", np.frombuffer(seen.key + salt, np.uint8))
    middle = Segment(key, positions[:, start:stop], picture)
    return PromptPath((text(slice(0, start)), middle, text(slice(stop, len(ids)))), following)
