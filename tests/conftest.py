"""A bundle of stand-ins: every file is there and hashed, but the graphs are replaced by scripted models."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from rexthinker_edge.runtime import bundle as bundles
from rexthinker_edge.runtime import manifest as manifests
from rexthinker_edge.runtime import thinker as thinkers
from rexthinker_edge.runtime.deadline import NEVER
from rexthinker_edge.runtime.decoder_geometry import DecoderGeometry
from rexthinker_edge.runtime.detector import DetectorGeometry
from rexthinker_edge.runtime.language import Language
from rexthinker_edge.runtime.parts import Parts
from rexthinker_edge.runtime.positions import mrope_positions
from rexthinker_edge.runtime.prompt import SYSTEM, Wording
from rexthinker_edge.runtime.result import BundleInfo
from rexthinker_edge.runtime.tokens import TextTokenizer
from rexthinker_edge.runtime.vision import VisionGeometry

SPECIALS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
]
DETECTED = [[10.0, 20.0, 60.0, 80.0], [70.0, 20.0, 120.0, 80.0], [130.0, 20.0, 190.5, 80.0]]
VOCABULARY = 400
SURE = 20.0  # logit of what is said, all others 0: a probability of 1 - 8e-7


def write_tokenizer(path: Path) -> None:
    """A byte-level BPE of the Qwen kind, trained on two lines."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIALS, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(
        ["Please detect the red ball in the image.", "- Ball 1: red ✅"] * 3, trainer
    )
    tokenizer.save(str(path))


def make_manifest(max_length: int = 2000) -> manifests.Manifest:
    """A manifest without files, of a model one number wide."""
    return manifests.Manifest(
        format_version=1,
        name="stand-in",
        model=manifests.ModelCard("Stand-in", "tests", "1", "Apache-2.0", "None."),
        prompt=manifests.PromptSettings(SYSTEM, Wording.DETECT, 16 * 784, 400 * 784, 900),
        tokens=manifests.TokenIds(
            image_pad=SPECIALS.index("<|image_pad|>"), eos=(SPECIALS.index("<|im_end|>"),)
        ),
        vision=VisionGeometry(patch=14, temporal_patch=2, merge=2, window=112, hidden=1, max_patches=10_000),
        decoder=DecoderGeometry(1, 1, 1, 1, 2, VOCABULARY, (1, 0, 0), 1e4, max_length, "float32"),
        detector=DetectorGeometry(800, 1333, 32, (0.5,) * 3, (0.5,) * 3, 9, 256, 0.25),
        files={},
        quantisation={"decoder.onnx": "fp32"},
        calibration=None,
        targets=("cpu",),
        golden=(),
    )


def write_bundle(directory: Path, manifest: manifests.Manifest | None = None) -> Path:
    """A sealed bundle with stand-in files."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in manifests.REQUIRED:
        (directory / name).write_bytes(f"stand-in for {name}".encode())
    (directory / manifests.EMBEDDINGS).write_bytes(bytes(4 * VOCABULARY))
    write_tokenizer(directory / manifests.TOKENIZER)
    bundles.seal(directory, manifest or make_manifest())
    return directory


@dataclass
class FakeCache:
    """Token ids and positions instead of keys and values."""

    ids: list[int] = field(default_factory=list)
    positions: list[list[int]] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.ids)

    def rewind(self, length: int) -> None:
        assert 0 <= length <= self.length
        del self.ids[length:], self.positions[length:]

    @property
    def nbytes(self) -> int:
        return self.length * 16  # a key and a value, two numbers wide

    def reserve(self, capacity: int, branches: bool = False) -> None:
        assert capacity >= self.length

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Id and positions of each token, in place of keys and values."""
        packed = [[i, *p] for i, p in zip(self.ids[start:stop], self.positions[start:stop], strict=True)]
        return np.array(packed, np.float32).reshape(-1, 2, 2).transpose(1, 0, 2)[:, None]

    def append(self, rows: np.ndarray) -> None:
        for row in rows[:, 0].transpose(1, 0, 2).reshape(-1, 4).astype(int).tolist():
            self.ids.append(row[0])
            self.positions.append(row[1:])

    def fork(self, length: int, capacity: int) -> "FakeCache":
        assert capacity >= length
        return FakeCache(self.ids[:length], self.positions[:length])


class FakeDecoder:
    """Says what its script says to a prompt; checks that every pass sees the right positions."""

    rows_alike = False  # as a decoder without our own operators

    def __init__(
        self, tokenizer: TextTokenizer, geometry: DecoderGeometry, script: Callable[[str], str]
    ) -> None:
        self.tokenizer, self.geometry, self.script = tokenizer, geometry, script
        self.start, self.end = (tokenizer.special_id(name) for name in ("<|im_start|>", "<|im_end|>"))
        self.read = 0  # tokens of prompts, over all passes that choose nothing but a first token
        self.answer: list[int] = []
        self.prompts: list[list[int]] = []

    def new_cache(self, capacity: int) -> FakeCache:
        assert capacity > 0
        return FakeCache()

    def embed(self, token_ids: list[int]) -> np.ndarray:
        return np.array(token_ids, np.float32)[:, None]

    def run(self, embeds, positions, cache, last_only=True, deadline=NEVER) -> np.ndarray:
        deadline.check()
        logits = np.zeros((len(embeds), self.geometry.vocab), np.float32)
        for row, (id_, position) in enumerate(zip(embeds[:, 0].astype(int), positions.T, strict=True)):
            cache.ids.append(int(id_))
            cache.positions.append(position.tolist())
            logits[row, self._next(cache)] = SURE
        self.read += len(embeds) if last_only else 0
        return logits[-1:] if last_only else logits

    def _next(self, cache: FakeCache) -> int:
        last = len(cache.ids) - 1 - cache.ids[::-1].index(self.start)
        opening = [self.start, *self.tokenizer.encode_plain("assistant\n")]
        begun = last + len(opening)
        if cache.ids[last:begun] != opening:
            return self.end  # the prefix alone: what it says is not read
        if begun == len(cache.ids):
            self._check_positions(cache)
            self.prompts.append(list(cache.ids))
            question = self.tokenizer.decode([id_ for id_ in cache.ids if id_ >= 0])
            self.answer = [*self.tokenizer.encode_plain(self.script(question)), self.end]
        elif begun < len(cache.ids):
            assert cache.positions[-1] == [value + 1 for value in cache.positions[-2]]
        return self.answer[min(len(cache.ids) - begun, len(self.answer) - 1)]

    def _check_positions(self, cache: FakeCache) -> None:
        pad = -1  # features of the picture, as FakeVision makes them
        runs = sum(id_ == pad for id_ in cache.ids)
        side = FakeVision.last_grid
        assert runs == side[1] * side[2] // 4
        expected, _ = mrope_positions(cache.ids, pad, [side])
        assert cache.positions == expected.T.tolist()


class FakeVision:
    """Features of -1 for every merged patch."""

    last_grid = (1, 0, 0)

    def __init__(self) -> None:
        self.session = SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
        self.encoded = 0

    def encode(self, vision, deadline=NEVER) -> np.ndarray:
        deadline.check()
        self.encoded += 1
        type(self).last_grid = vision.grid_thw
        return np.full((vision.merged_tokens(), 1), -1, np.float32)


class FakeDetector:
    """Finds what it is told to find."""

    def __init__(self) -> None:
        self.boxes, self.asked = DETECTED, []

    def detect(self, pixels_HWC, category, deadline=NEVER):
        deadline.check()
        self.asked.append((pixels_HWC.shape, category))
        rows = np.array(self.boxes, np.float32).reshape(-1, 4)
        return rows, np.linspace(0.9, 0.5, len(rows), dtype=np.float32)


@dataclass
class World:
    """A loaded thinker of stand-ins, and the handles to script it."""

    directory: Path
    thinker: thinkers.Thinker
    decoder: FakeDecoder
    vision: FakeVision
    detector: FakeDetector


def hinted(prompt: str) -> list[list[int]]:
    """The boxes of a prompt's hint."""
    line = prompt.split("image: ", 1)[1].split("\n", 1)[0]
    return next(iter(json.loads(line).values()))


def second_is_it(prompt: str) -> str:
    """A trace that chooses the second candidate, boxes copied from the hint."""
    box = hinted(prompt)[1]
    return (
        "<think>OK, the user needs us to detect it:\n- Step 1: look.\n\n# Step 1: Look at the color.\n"
        "- Ball 1: blue ❌\n- Ball 2: red ✅\n- Ball 3: beside the mug ⚠️\n\n"
        "# Summarize and Re-Check answer\n- Ball 1: blue → ❌\n- Ball 2: red → ✅\n"
        f'</think><answer>json\n[{{"bbox_2d": {box}, "label": "it"}}]\n</answer>'
    )


@pytest.fixture
def sealed_bundle(tmp_path):
    """A whole bundle whose graphs are none."""
    return write_bundle(tmp_path / "bundles" / "stand-in")


@pytest.fixture
def make_world(tmp_path, monkeypatch):
    """Make a world: `make_world(script, max_length=…)`. `load` of its directory gives the stand-ins."""

    def make(script: Callable[[str], str] = second_is_it, max_length: int = 2000, **prompt: object) -> World:
        manifest = make_manifest(max_length)
        manifest = replace(manifest, prompt=replace(manifest.prompt, **prompt))
        directory = write_bundle(tmp_path / "bundles" / "stand-in", manifest)
        tokenizer = TextTokenizer(directory / manifests.TOKENIZER)
        decoder = FakeDecoder(tokenizer, manifest.decoder, script)
        vision, detector = FakeVision(), FakeDetector()

        def open_parts(opened, options, device):
            info = BundleInfo(opened.manifest.name, opened.digest)
            prompt, tokens = opened.manifest.prompt, opened.manifest.tokens
            language = Language(tokenizer, decoder, prompt, tokens, info, risk=opened.manifest.risk)
            return Parts(detector, vision, language)

        monkeypatch.setattr(thinkers, "open_parts", open_parts)
        monkeypatch.setattr(thinkers, "small_bundle", lambda: directory)
        return World(directory, thinkers.load(directory, threads=1), decoder, vision, detector)

    return make
