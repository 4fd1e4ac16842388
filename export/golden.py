"""The golden self-test: what this bundle answers to a few tiny pictures, recorded where it was made.

Contract  Pictures are stored as PNG inside the bundle, so no decoder's rounding comes between; candidates are
          given, so a wrong box and a wrong token are told apart; recorded on one thread.
Elsewhere the pictures: calibration/workbench/; replaying it on a device: package/commands/.
"""

from pathlib import Path

import onnxruntime as ort
from PIL import Image

from rexthinker_edge.calibration.workbench.items import Item, item_record, make_item
from rexthinker_edge.calibration.workbench.render import render
from rexthinker_edge.runtime import manifest as manifests
from rexthinker_edge.runtime.bundle import open_bundle
from rexthinker_edge.runtime.detector import Detector
from rexthinker_edge.runtime.image import read_picture
from rexthinker_edge.runtime.manifest import Golden
from rexthinker_edge.runtime.thinker import load

SEED = 2_000_000  # beyond the seeds of training and of the 1,000-item evaluations
QUESTIONS = 3
Box = tuple[float, float, float, float]
MAX_SIDE_PX = 224  # small pictures: the test is quick and its files are light


def golden_items(count: int = QUESTIONS) -> list[Item]:
    """The first `count` easy items whose picture is small."""
    items: list[Item] = []
    index = 0
    while len(items) < count:
        item = make_item("easy", SEED, index)
        if max(item.scene.width, item.scene.height) <= MAX_SIDE_PX:
            items.append(item)
        index += 1
    return items


def write_pictures(directory: Path, count: int = QUESTIONS) -> list[tuple[str, Item]]:
    """Paint the golden pictures into a bundle that is being filled; their file names and items."""
    named = [(f"golden-{number}.png", item) for number, item in enumerate(golden_items(count))]
    for name, item in named:
        Image.fromarray(render(item.scene)).save(directory / name, optimize=True)
    return named


def record_answers(
    directory: Path, pictures: list[tuple[str, Item]], most_tokens: int | None = None
) -> tuple[Golden, ...]:
    """Ask the sealed bundle in `directory` about its own pictures.

    Args:
        most_tokens: end an answer there (status truncated); None: the model's own limit.
    """
    found = _detected(directory, pictures)
    thinker = load(directory, threads=1) if pictures else None
    recorded = []
    for (name, item), detected in zip(pictures, found, strict=True):
        assert thinker is not None
        truth = item_record(item, 0)
        scene = thinker.look(directory / name, truth.category, truth.candidate_boxes)
        result = scene.refer(truth.referring, max_new_tokens=most_tokens)
        recorded.append(
            Golden(
                picture=name,
                category=truth.category,
                expression=truth.referring,
                candidates=truth.candidate_boxes,
                detected=detected,
                token_ids=result.token_ids,
                status=result.status.value,
                boxes=tuple(_row(box) for box in result.boxes),
            )
        )
    return tuple(recorded)


def _detected(directory: Path, pictures: list[tuple[str, Item]]) -> list[tuple[Box, ...]]:
    """What the detector alone finds in each picture: a language model of 7 B need not read it all."""
    bundle = open_bundle(directory)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    tokenizer = bundle.file(manifests.DETECTOR_TOKENIZER)
    detector = Detector(bundle.file(manifests.DETECTOR), tokenizer, bundle.manifest.detector, options)
    found = []
    for name, item in pictures:
        pixels = read_picture(directory / name).pixels_HWC
        boxes, _ = detector.detect(pixels, item_record(item, 0).category)
        found.append(tuple(_row(box) for box in boxes.tolist()))
    return found


def _row(box: list[float]) -> Box:
    x0, y0, x1, y1 = (float(value) for value in box)
    return (x0, y0, x1, y1)
