"""Proofs on the bundled model: the exported graphs are the checkpoint, and a prefix hit is a cold run.

The oracle is transformers on `checkpoints/small`. Its greedy answer equals ours if, and only if, at every
position of our own token sequence its largest logit is our next token; so one forward pass an item suffices.
"""

from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import Qwen2_5_VLForConditionalGeneration

import rexthinker_edge as rex
from rexthinker_edge.calibration.workbench.items import Item, hint_boxes, make_item, make_items_for_scene
from rexthinker_edge.calibration.workbench.render import render
from rexthinker_edge.runtime import prompt
from rexthinker_edge.runtime.positions import text_positions
from rexthinker_edge.runtime.qwen_pixels import PixelLimits, qwen_pixels

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints" / "small"
EVALUATION_SEED = 1_000_000


@pytest.fixture(scope="module")
def thinker() -> rex.Thinker:
    return rex.load(threads=1)


@pytest.fixture(scope="module")
def reference() -> Iterator[Qwen2_5_VLForConditionalGeneration]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Qwen2_5_VLForConditionalGeneration.from_pretrained(CHECKPOINTS / "vlm", dtype=torch.float32)
    torch.set_num_threads(threads)


def evaluation_items() -> list[Item]:
    return [make_item(level, EVALUATION_SEED, index) for level in ("easy", "full") for index in range(25)]


def true_boxes(item: Item) -> NDArray[np.float64]:
    return np.array([item.scene.things[k].box for k in item.candidates])


def prompt_ids(thinker: rex.Thinker, item: Item, image_tokens: int, boxes: NDArray[np.int64]) -> list[int]:
    """The whole prompt at once: no cut between prefix and suffix."""
    language = thinker._parts.language
    settings = language.prompt
    parts = prompt.prefix(settings.system, settings.wording, item.category, boxes.tolist(), image_tokens)
    parts += prompt.suffix(settings.wording, item.question.expression)
    return language.tokenizer.encode_parts(parts)


def test_every_generated_token_is_the_checkpoints(
    thinker: rex.Thinker, reference: Qwen2_5_VLForConditionalGeneration
) -> None:
    settings = thinker._parts.language.prompt
    image_pad = thinker._parts.language.tokens.image_pad
    compared = 0
    for item in evaluation_items():
        pixels = render(item.scene)
        result = thinker.look(pixels, item.category, boxes=true_boxes(item)).refer(item.question.expression)
        vision = qwen_pixels(pixels, PixelLimits(settings.min_pixels, settings.max_pixels))
        boxes = hint_boxes(item.scene, item.candidates, vision.resized)
        asked = prompt_ids(thinker, item, vision.merged_tokens(), boxes)
        assert result.tokens.prompt == len(asked)
        whole = torch.tensor([[*asked, *result.token_ids]])
        with torch.no_grad():
            logits = reference(
                input_ids=whole,
                pixel_values=torch.from_numpy(vision.patches),
                image_grid_thw=torch.tensor([vision.grid_thw]),
                mm_token_type_ids=(whole == image_pad).int(),
            ).logits[0, len(asked) - 1 : -1]
        assert logits.argmax(1).tolist() == list(result.token_ids), item.name
        compared += len(result.token_ids)
    assert compared > 50 * 40


def test_logits_of_a_prompt_are_the_checkpoints(
    thinker: rex.Thinker, reference: Qwen2_5_VLForConditionalGeneration
) -> None:
    language = thinker._parts.language
    image_pad = language.tokens.image_pad
    for item in evaluation_items()[::10]:
        pixels = render(item.scene)
        scene = thinker.look(pixels, item.category, boxes=true_boxes(item))
        ours = suffix_logits(scene, item.question.expression)
        vision = qwen_pixels(pixels, PixelLimits(language.prompt.min_pixels, language.prompt.max_pixels))
        boxes = hint_boxes(item.scene, item.candidates, vision.resized)
        asked = torch.tensor([prompt_ids(thinker, item, vision.merged_tokens(), boxes)])
        with torch.no_grad():
            theirs = reference(
                input_ids=asked,
                pixel_values=torch.from_numpy(vision.patches),
                image_grid_thw=torch.tensor([vision.grid_thw]),
                mm_token_type_ids=(asked == image_pad).int(),
                logits_to_keep=1,
            ).logits[0, -1]
        # float32 sums in another order: about 1e-7 a term, some 40 chained sums of up to 1,176 terms, growing
        # with their root; 1e-4 of the largest logit is a hundred times that and far below any decision
        assert np.abs(ours - theirs.numpy()).max() < 1e-4 * float(theirs.abs().max())


def suffix_logits(scene: rex.Scene, expression: str) -> NDArray[np.float32]:
    """Logits of the first generated token, by the scene's own cache."""
    language, path = scene._language, scene._prompt
    assert path is not None
    ids = language.tokenizer.encode_parts(prompt.suffix(language.prompt.wording, expression))
    positions = text_positions(path.next_position, len(ids))
    with scene._tree.lend(path.segments, len(ids)) as lent:
        return language.decoder.run(language.decoder.embed(ids), positions, lent.cache)[-1]


def test_a_prefix_hit_equals_a_cold_run_in_any_order(thinker: rex.Thinker) -> None:
    rng = np.random.default_rng(4)
    scenes = 0
    for index in range(200):
        base = make_item("full" if index % 2 else "easy", EVALUATION_SEED + 1, index)
        items = make_items_for_scene(base.scene, np.random.default_rng(index), 4)
        if len(items) < 4:
            continue
        pixels, category, boxes = render(base.scene), items[0].category, true_boxes(items[0])
        asked = [items[k].question.expression for k in rng.permutation(4)]
        shared = thinker.look(pixels, category, boxes=boxes)
        for expression in asked:
            fresh = thinker.look(pixels, category, boxes=boxes)
            assert np.array_equal(suffix_logits(shared, expression), suffix_logits(fresh, expression))
            warm = shared.refer(expression, max_new_tokens=24)
            assert warm.token_ids == fresh.refer(expression, max_new_tokens=24).token_ids
        scenes += 1
        if scenes == 50:
            return
    raise AssertionError(f"only {scenes} scenes have four expressions")


def test_a_second_expression_reuses_nine_tenths_of_its_prompt() -> None:
    thinker, shares = rex.load(threads=1), []  # one that has kept nothing yet
    for item in evaluation_items()[::5]:
        scene = thinker.look(render(item.scene), item.category, boxes=true_boxes(item))
        first = scene.refer("the red one", max_new_tokens=1).tokens
        assert first.reused < 100  # the system turn, kept of the pictures before
        tokens = scene.refer(item.question.expression, max_new_tokens=1).tokens
        shares.append(tokens.reused / tokens.prompt)
    assert float(np.median(shares)) >= 0.9


def test_the_bundle_is_small_and_intact() -> None:
    directory = resources.files("rexthinker_edge") / "bundles" / "small"
    assert sum(len(file.read_bytes()) for file in directory.iterdir()) <= 16 * 2**20
    checkpoints = [file for file in CHECKPOINTS.rglob("*") if file.is_file()]
    assert 0 < sum(file.stat().st_size for file in checkpoints) <= 48 * 2**20


def test_together_is_one_by_one_whichever_way_it_is_done() -> None:
    """Both ways are tried twice; `describe` tells that both were."""
    thinker, item = rex.load(threads=1), evaluation_items()[0]
    asked = [f"the {word} {item.category}" for word in ("largest", "leftmost", "red")]
    scene = thinker.look(render(item.scene), item.category, boxes=true_boxes(item))
    expected = [scene.refer(words, 40).token_ids for words in asked]
    for _ in range(4):
        assert [result.token_ids for result in scene.refer_many(asked, 40)] == expected
    assert list(thinker.describe()["together"]["ms_a_token"]) == ["1", "3"]
