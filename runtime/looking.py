"""Looking at a picture: candidates, features and the prompt up to the cut, as far as nothing kept them.

Layout    picture ─ detector ─ candidates ─┐
                 └─ vision tower ─ features ┴─ prompt prefix ─ decoder ─ rows kept in the prefix tree
Contract  With cores enough the detector and the vision tower run at the same time; the outcome is the same.
          A deadline that comes while the detector works leaves a scene that answers TIMEOUT; one that comes
          later leaves a scene that goes on with what is missing when it is asked.
Elsewhere asking: scene.py; keeping: prefix_tree.py; the models: parts.py.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rexthinker_edge.runtime.asking import ROOM
from rexthinker_edge.runtime.boxes import check_boxes, to_resized_px
from rexthinker_edge.runtime.deadline import Deadline, DeadlinePassed, monotonic_ms
from rexthinker_edge.runtime.errors import BoxError
from rexthinker_edge.runtime.image import Picture
from rexthinker_edge.runtime.parts import Parts
from rexthinker_edge.runtime.prefix_tree import PrefixTree
from rexthinker_edge.runtime.prompt import prefix
from rexthinker_edge.runtime.prompt_path import PromptPath, prompt_path, seen_picture
from rexthinker_edge.runtime.qwen_pixels import PixelLimits, VisionInput, qwen_pixels, smart_resize
from rexthinker_edge.runtime.result import Candidate, Milliseconds
from rexthinker_edge.runtime.scene import Scene
from rexthinker_edge.runtime.sight import Sight
from rexthinker_edge.runtime.vision import VisionTower

Detected = tuple[ArrayLike, Sequence[float] | NDArray[np.floating[Any]] | None]


class _Encoder:
    """A picture's features on demand; its patches are made again when they are needed again."""

    def __init__(self, vision: VisionTower, picture: Picture, limits: PixelLimits) -> None:
        self.vision, self.picture, self.limits = vision, picture, limits
        self.pixels: VisionInput | None = qwen_pixels(picture.pixels_HWC, limits)
        self.seen = seen_picture(self.pixels, limits.merge_size)
        self.ms = 0.0

    def __call__(self, deadline: Deadline) -> NDArray[np.float32]:
        begun = monotonic_ms()
        pixels = self.pixels or qwen_pixels(self.picture.pixels_HWC, self.limits)
        self.pixels = None
        features = self.vision.encode(pixels, deadline)
        self.ms += monotonic_ms() - begun
        return features


@dataclass(frozen=True)
class Looker:
    """Makes scenes of pictures."""

    parts: Parts
    tree: PrefixTree
    limits: PixelLimits
    at_once: bool  # detector and vision tower

    def look(
        self, seen: Picture, category: str, boxes: ArrayLike | None, deadline: Deadline, begun: float
    ) -> Scene:
        """See `Thinker.look`; `category` is checked, `begun` is when the caller called."""
        sides = smart_resize(
            seen.height, seen.width, self.limits.min_pixels, self.limits.max_pixels, self.limits.factor
        )
        given = None if boxes is None else check_boxes(boxes, seen.size)
        read = monotonic_ms()
        ms = Milliseconds(image=max(read - begun, seen.read_ms))  # a `Picture` was read before
        encoder = None
        try:
            if given is not None:
                found: Detected = (given, None)
            elif self.at_once:
                found, encoder, ms = self._detect_and_encode(seen, category, deadline, ms)
            else:
                found = self.parts.detector.detect(seen.pixels_HWC, category, deadline)
                ms = replace(ms, detect=monotonic_ms() - read)
        except DeadlinePassed:
            ms = replace(ms, detect=monotonic_ms() - read)
            nothing = Sight(seen, category, (), np.zeros((0, 4), np.int64), ms, late=True)
            return Scene(self.parts.language, nothing, self.tree, None)
        hints = to_resized_px(np.asarray(found[0]), seen.size, sides[::-1])
        sight = Sight(seen, category, _candidates(*found), hints, ms)
        if not sight.candidates:
            return Scene(self.parts.language, sight, self.tree, None)
        return self._read_prefix(sight, encoder, deadline)

    def path(self, sight: Sight, encoder: "_Encoder", salt: bytes = b"") -> PromptPath:
        """The prompt up to the cut.

        Raises:
            BoxError: the candidates make it longer than the bundle allows.
        """
        language, settings = self.parts.language, self.parts.language.prompt
        boxes = sight.hints.tolist()
        parts = prefix(settings.system, settings.wording, sight.category, boxes, encoder.seen.tokens)
        token_ids = language.tokenizer.encode_parts(parts)
        most = language.decoder.geometry.max_length
        if len(token_ids) >= most:
            raise BoxError(
                f"candidate boxes: {len(boxes)} of them and the picture make a prompt of {len(token_ids):,} "
                f"tokens, the bundle allows {most:,}. Keep fewer boxes, or give a smaller picture."
            )
        return prompt_path(
            language.decoder, self.tree, token_ids, language.tokens.image_pad, encoder.seen,
            self.limits.merge_size, encoder, salt,
        )  # fmt: skip

    def encoder(self, picture: Picture) -> "_Encoder":
        """What makes a picture's features when they are wanted."""
        return _Encoder(self.parts.vision, picture, self.limits)

    def _detect_and_encode(
        self, seen: Picture, category: str, deadline: Deadline, ms: Milliseconds
    ) -> tuple[Detected, "_Encoder", Milliseconds]:
        """Detector here, vision tower beside it."""
        begun = monotonic_ms()

        def encode() -> _Encoder:
            encoder = self.encoder(seen)
            with suppress(DeadlinePassed):  # the scene tries again when it is asked
                self.tree.features(encoder.seen.key, lambda: encoder(deadline))
            return encoder

        with ThreadPoolExecutor(1) as pool:
            beside = pool.submit(encode)
            found = self.parts.detector.detect(seen.pixels_HWC, category, deadline)
            detected = monotonic_ms()
            encoder = beside.result()
        encoder.ms = 0.0  # what it took beyond the detector is what it cost
        return found, encoder, replace(ms, detect=detected - begun, vision=monotonic_ms() - detected)

    def _read_prefix(self, sight: Sight, encoder: "_Encoder | None", deadline: Deadline) -> Scene:
        """Vision tower and prefill of everything left of the cut, as far as it is not kept."""
        begun = monotonic_ms()
        encoder = self.encoder(sight.picture) if encoder is None else encoder
        prompt = self.path(sight, encoder)
        resized = monotonic_ms()
        reused, language = 0, self.parts.language
        with (
            suppress(DeadlinePassed),
            self.tree.lend(prompt.segments, language.prompt.max_new_tokens + ROOM, deadline) as lent,
        ):
            reused = lent.reused
        took = Milliseconds(
            image=sight.ms.image + resized - begun,
            detect=sight.ms.detect,
            vision=sight.ms.vision + encoder.ms,
            prefill=monotonic_ms() - resized - encoder.ms,
        )
        return Scene(language, replace(sight, ms=took, reused=reused), self.tree, prompt)


def _candidates(
    boxes: ArrayLike, scores: Sequence[float] | NDArray[np.floating[Any]] | None
) -> tuple[Candidate, ...]:
    rows = np.asarray(boxes, dtype=np.float64).reshape(-1, 4).tolist()
    known = [None] * len(rows) if scores is None else [float(score) for score in scores]
    return tuple(Candidate(i, row, score) for i, (row, score) in enumerate(zip(rows, known, strict=True)))
