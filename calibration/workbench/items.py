"""Items: one picture, one shuffled list of candidates, one question.

Layout    Item i of a seed is drawn from `SeedSequence([seed, i, …])` alone; its picture is scene
          `ATTEMPTS * i + attempt` of that seed, the first whose scene has matter for the drawn domain.
Contract  Deterministic; independent of how many items are made. Training seeds lie below 1,000,000,
          seeds from 1,000,000 up are for evaluation.
Elsewhere scenes: layout.py; questions: expressions.py; traces: traces.py; files: ../humanref*.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.calibration.records import Record
from rexthinker_edge.calibration.workbench import layout
from rexthinker_edge.calibration.workbench.expressions import DOMAINS, EASY_DOMAINS, Question, ask
from rexthinker_edge.calibration.workbench.proposals import sizes_are_plain
from rexthinker_edge.calibration.workbench.traces import write_trace
from rexthinker_edge.calibration.workbench.world import PATTERNS, Level, Scene
from rexthinker_edge.runtime.boxes import Size, to_resized_px

ATTEMPTS = 64
EASY_SHARES = {"attribute": 0.4, "position": 0.4, "rejection": 0.2}
LONELY_SHARE = 0.3  # of the pictures in which a category with a single thing may be asked about
EVERYTHING = "thing"  # the pseudo-category whose candidates are all things of a scene
ATTRIBUTES = ("size", "color", "pattern", "letter")

_ITEM, _MANY, _TRACE = 1, 2, 3  # separate streams of one seed


@dataclass(frozen=True)
class Item:
    """One question on one picture.

    Attributes:
        scene: the picture's truth; `render.render(scene)` paints it.
        category: what the candidates are.
        candidates: thing indices in hint order.
        question: the expression and its truth.
        name: "easy-1000000-00000012", unique among items; the picture's file name without its ending.
    """

    scene: Scene
    category: str
    candidates: tuple[int, ...]
    question: Question
    name: str


def make_item(level: Level | str, seed: int, index: int) -> Item:
    """Item `index` of a seed.

    Raises:
        RuntimeError: none of `ATTEMPTS` scenes had matter for the domain .
    """
    level = Level(level)
    rng = np.random.default_rng(np.random.SeedSequence([seed, index, _ITEM]))
    domain = _draw_domain(level, rng)
    for attempt in range(ATTEMPTS):
        scene = layout.make_scene(level, seed, ATTEMPTS * index + attempt)
        for category in _categories(scene, rng):
            question = ask(scene, category, rng, domain)
            if question is not None:
                candidates = shuffled_candidates(scene, category, rng)
                return Item(scene, category, candidates, question, f"{level}-{seed}-{index:08d}")
    raise RuntimeError(
        f"item {index} of seed {seed}: no {level} scene in {ATTEMPTS} has matter for {domain}."
    )


def make_items_for_scene(scene: Scene, rng: np.random.Generator, count: int) -> list[Item]:
    """Up to `count` items with different expressions on one picture, one category and one hint."""
    for category in _categories(scene, rng):
        candidates = shuffled_candidates(scene, category, rng)
        items: dict[str, Item] = {}
        for _ in range(2 * count):
            question = ask(scene, category, rng, _draw_domain(scene.level, rng))
            if question is not None and question.expression not in items and len(items) < count:
                name = f"{scene.level}-{scene.seed}-{scene.index:08d}-{len(items)}"
                items[question.expression] = Item(scene, category, candidates, question, name)
        if items:
            return list(items.values())
    return []


def _draw_domain(level: Level, rng: np.random.Generator) -> str:
    if level is Level.EASY:
        return EASY_DOMAINS[int(rng.choice(len(EASY_DOMAINS), p=[EASY_SHARES[d] for d in EASY_DOMAINS]))]
    return DOMAINS[int(rng.integers(len(DOMAINS)))]


def _categories(scene: Scene, rng: np.random.Generator) -> list[str]:
    """The scene's categories, numerous ones tend to come early; most lonely things are not asked about."""
    keys: dict[str, float] = {}
    counts: dict[str, int] = {}
    for thing in scene.things:
        keys[thing.category] = max(keys.get(thing.category, 0.0), float(rng.random()))
        counts[thing.category] = counts.get(thing.category, 0) + 1
    lonely = rng.random() < LONELY_SHARE
    return [c for c in sorted(keys, key=lambda c: -keys[c]) if counts[c] > 1 or lonely]


def shuffled_candidates(scene: Scene, category: str, rng: np.random.Generator) -> tuple[int, ...]:
    """All things of a category (or of `EVERYTHING`) in a random order, as a hint lists them."""
    things = [i for i, thing in enumerate(scene.things) if category in {thing.category, EVERYTHING}]
    return tuple(things[int(k)] for k in rng.permutation(len(things)))


def hint_boxes(scene: Scene, candidates: Sequence[int], resized: Size) -> NDArray[np.int64]:
    """(N, 4) boxes of the candidates in pixels of the resized picture, as the hint writes them."""
    boxes = np.array([scene.things[i].box for i in candidates], dtype=np.float64).reshape(-1, 4)
    return to_resized_px(boxes, (scene.width, scene.height), resized)


def item_trace(item: Item, resized: Size, rng_seed: int) -> str:
    """The assistant's whole turn for an item; `resized` is (width, height) of the picture the model sees."""
    rng = np.random.default_rng(np.random.SeedSequence([rng_seed, _TRACE]))
    boxes = hint_boxes(item.scene, item.candidates, resized)
    return write_trace(item.question, item.scene, item.candidates, boxes, rng, resized=resized)


def item_record(item: Item, number: int) -> Record:
    """The item as referring data; positions in its trace are in pixels of the original picture."""
    trace = item_trace(item, (item.scene.width, item.scene.height), item.scene.index)
    return Record(
        id=number,
        image_name=f"{item.name}.png",
        referring=item.question.expression,
        domain=item.question.domain,
        sub_domain=item.question.sub_domain,
        category=item.category,
        candidate_boxes=tuple(item.scene.things[i].box for i in item.candidates),
        answer_boxes=tuple(item.scene.things[i].box for i in item.candidates if i in item.question.answers),
        trace=trace.removeprefix("<think>").partition("\n</think>")[0],
    )


def describe_things(
    scene: Scene, candidates: Sequence[int], attributes: Sequence[str], category: str | None = None
) -> str:
    """One short line per candidate: dense targets that tie a box in the text to a place in the picture.

    Args:
        candidates: thing indices in hint order.
        attributes: some of `ATTRIBUTES`. Size is left out where only one size occurs among the candidates;
            the pattern where it is plain and the scene is easy; the letter where there is none.
        category: how candidates are called; `EVERYTHING` also names each one's own category; by default the
            first candidate's category.
    """
    assert set(attributes) <= set(ATTRIBUTES), attributes
    category = category or scene.things[candidates[0]].category
    sized = "size" in attributes and sizes_are_plain(scene, tuple(candidates))
    lines = []
    for k, index in enumerate(candidates, 1):
        thing = scene.things[index]
        words = [thing.size] if sized else []
        words += [thing.color] if "color" in attributes else []
        if "pattern" in attributes and (scene.level is Level.FULL or thing.pattern != PATTERNS[0]):
            words.append(thing.pattern)
        words += [thing.category] if category == EVERYTHING else []
        said = " ".join(words)
        if "letter" in attributes and thing.letter:
            said = f"{said}, letter {thing.letter}" if said else f"letter {thing.letter}"
        lines.append(f"{category.capitalize()} {k}: {said or thing.category}")
    return "\n".join(lines)
