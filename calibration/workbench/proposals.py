"""Proposing chains of checks: for each domain, what could be asked about the things of a category.

Layout    One proposal a domain; each draws a chain from what the scene holds, true, or near true on a miss.
Contract  A proposal is a guess: `expressions.ask` keeps it only if it is beyond dispute. None where the scene
          has no matter for it.
Elsewhere checks and their truth: predicates.py; keeping and saying them: expressions.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from rexthinker_edge.calibration.workbench.predicates import (
    Beside,
    Check,
    Largest,
    Letter,
    Look,
    Rank,
    RareColor,
    Reference,
    Related,
    Side,
    apply,
    relations_of,
)
from rexthinker_edge.calibration.workbench.world import COLORS, LETTERS, PATTERNS, Level, RelationKind, Scene

HOLLOW = ("mug", "ring")  # what other things can be inside

Chain = tuple[Check, ...] | None


def sizes_are_plain(scene: Scene, things: tuple[int, ...]) -> bool:
    """Whether "small" and "large" mean something: both occur among the things."""
    return len({scene.things[i].size for i in things}) == 2


@dataclass(frozen=True)
class Draw:
    """What a proposal draws from: the scene, the things asked about, and whether to miss on purpose."""

    scene: Scene
    category: str
    things: tuple[int, ...]
    rng: np.random.Generator
    miss: bool = False

    def chance(self, p: float) -> bool:
        return float(self.rng.random()) < p

    def below(self, n: int) -> int:
        return int(self.rng.integers(n))

    def side(self) -> Side:
        return tuple(Side)[self.below(4)]

    def sure(self) -> "Draw":
        """The same without the miss: for steps that come before the one that misses."""
        return replace(self, miss=False)


def _look(d: Draw, things: tuple[int, ...] | None = None) -> Look | None:
    """A look that one of the things has; on a miss, one that none of them has."""
    things = d.things if things is None else things
    if not things:
        return None
    model = d.scene.things[things[d.below(len(things))]]
    use_size = sizes_are_plain(d.scene, d.things) and d.chance(0.35)
    use_pattern = d.scene.level is Level.FULL and d.chance(0.45)
    use_color = d.chance(0.75) or not (use_size or use_pattern)
    color, pattern, size = model.color, model.pattern, model.size
    if d.miss:
        if use_color and d.chance(0.75):
            color = COLORS[d.below(len(COLORS))]
        elif use_pattern:
            pattern = PATTERNS[d.below(len(PATTERNS))]
        elif use_size:
            size = "small" if size == "large" else "large"
    colors: tuple[str, ...] = (color,) if use_color else ()
    if use_color and not use_pattern and not use_size and d.chance(0.12):
        second = COLORS[d.below(len(COLORS))]
        colors = (color, second) if second != color else colors
    return Look(colors, pattern if use_pattern else None, size if use_size else None)


def _reference(d: Draw, others_only: bool = True) -> Reference | None:
    """A thing that can be named without doubt: alone in its category, or in its category and color."""
    scene = d.scene
    pool = [i for i, t in enumerate(scene.things) if (t.category != d.category) is others_only]
    if not pool:
        return None
    index = pool[d.below(len(pool))]
    thing = scene.things[index]
    same = [t for t in scene.things if t.category == thing.category]
    if len(same) == 1 and others_only and d.chance(0.6):
        return Reference(thing.category, None, None, index)
    if sum(t.color == thing.color for t in same) == 1:
        return Reference(thing.category, thing.color, None, index)
    if (
        scene.level is Level.FULL
        and sum((t.color, t.pattern) == (thing.color, thing.pattern) for t in same) == 1
    ):
        return Reference(thing.category, thing.color, thing.pattern, index)
    return None


def _beside(d: Draw, same_category: float = 0.0) -> Beside | None:
    reference = _reference(d, others_only=not d.chance(same_category))
    return Beside(d.side(), reference) if reference else None


def _rank(d: Draw, among: int) -> Rank:
    """A rank that `among` things have; on a miss, one or two past the last."""
    side = d.side()
    if d.miss:
        return Rank(side, among + 1 + d.below(2)) if among else Rank(side, 1 + d.below(3))
    if d.chance(0.35) or among < 2:
        return Rank(side, 1)
    if among > 2 and d.chance(0.2):
        return Rank(side, 2 + d.below(min(among - 2, 2)), group=True)
    return Rank(side, 2 + d.below(min(among, 5) - 1))


def _propose_attribute(d: Draw) -> Chain:
    if d.chance(0.65):
        look = _look(d)
        return (look,) if look else None
    first: Check | None = _beside(d, 0.3)
    if len(d.things) > 2 and d.chance(0.4) and not d.miss:
        first = Rank(d.side(), 2 + d.below(min(len(d.things) - 2, 2)), group=True)
    if first is None:
        return None
    found = apply(first, d.scene, d.things)
    look = _look(d, found.passed if found and not d.miss else None)
    return (first, look) if look else None


def _propose_position(d: Draw) -> Chain:
    kind = d.rng.random()
    if kind < 0.2:
        beside = _beside(d, 0.35)
        return (beside,) if beside else None
    if kind < 0.5 and not (d.miss and d.chance(0.3)):
        return (_rank(d, len(d.things)),)
    look = _look(d if d.chance(0.4) else d.sure())
    if look is None:
        return None
    passed = apply(look, d.scene, d.things)
    assert passed is not None
    if d.chance(0.35):
        beside = _beside(d)
        return (look, beside) if beside else None
    return (look, _rank(d, len(passed.passed)))


def _related(d: Draw) -> Related | None:
    """A relation that one of the things has; on a miss, one that others have or could have."""
    if d.miss:
        return _missing_relation(d)
    found = [(kind, other, inverse) for i in d.things for kind, other, inverse in relations_of(d.scene, i)]
    if not found:
        return None
    kind, other, inverse = found[d.below(len(found))]
    for _ in range(8):
        reference = _reference(d)
        if reference and reference.index == other:
            return Related(kind, reference, inverse)
    return None


def _missing_relation(d: Draw) -> Related | None:
    """The relation of another category's thing to the reference, else one that the reference allows."""
    reference = _reference(d)
    if reference is None:
        return None
    held = [
        (kind, not inverse if kind is not RelationKind.TOUCHING else False)
        for kind, _, inverse in relations_of(d.scene, reference.index)
    ]
    if held and d.chance(0.8):
        kind, inverse = held[d.below(len(held))]
        return Related(kind, reference, inverse)
    kinds = [(RelationKind.TOUCHING, False)]
    if reference.category in HOLLOW:
        kinds += [(RelationKind.INSIDE, False)] * 2
    if reference.category == "box":
        kinds += [(RelationKind.ON_TOP_OF, False)] * 2
    if d.category in HOLLOW:
        kinds.append((RelationKind.INSIDE, True))
    if d.category == "box":
        kinds.append((RelationKind.ON_TOP_OF, True))
    kind, inverse = kinds[d.below(len(kinds))]
    return Related(kind, reference, inverse)


def _propose_interaction(d: Draw) -> Chain:
    related = _related(d)
    if related is None:
        return None
    if d.chance(0.2):
        look = _look(d.sure())
        return (look, related) if look else None
    return (related,)


def _propose_identity(d: Draw) -> Chain:
    present = [letter for i in d.things if (letter := d.scene.things[i].letter)]
    if not d.miss:
        return (Letter(present[d.below(len(present))]),) if present else None
    elsewhere = [t.letter for t in d.scene.things if t.letter and t.category != d.category]
    if elsewhere and d.chance(0.4):
        return (Letter(elsewhere[d.below(len(elsewhere))]),)
    return (Letter(LETTERS[d.below(len(LETTERS))]),) if present or d.chance(0.2) else None


def _narrow(d: Draw) -> tuple[Check, tuple[int, ...]] | None:
    """A first step for reasoning: a look, its opposite, or a place; and what passes it."""
    sure = d if d.chance(0.4) else d.sure()
    kind = d.rng.random()
    check: Check | None
    if kind < 0.4:
        look = _look(sure)
        check = look and Look(look.colors, look.pattern, look.size, negated=True)
        if look and sum(bool(v) for v in (look.colors, look.pattern, look.size)) > 1:
            check = Look(look.colors[:1], None if look.colors else look.pattern, None, negated=True)
    elif kind < 0.75:
        check = _look(sure)
    else:
        check = _beside(sure)
    found = apply(check, d.scene, d.things) if check else None
    return (check, found.passed) if check and found else None


def _choose(d: Draw, first: Check, among: int) -> Check:
    """A choice among what passed; never by size among things of one size."""
    sized = isinstance(first, Look) and first.size is not None
    if d.miss and among:
        return _rank(d, among)
    if d.chance(0.45) and not sized:
        return Largest(smallest=d.chance(0.5))
    return _rank(d.sure(), max(among, 2))


def _propose_reasoning(d: Draw) -> Chain:  # noqa: PLR0911  one return per kind of question
    kind = d.rng.random()
    if kind < 0.12 and not d.miss:
        if d.chance(0.5):
            return (Rank(d.side(), 1, negated=True),)
        return (Largest(smallest=d.chance(0.5), negated=True),)
    if kind < 0.24 and not d.miss:
        return (RareColor(common=d.chance(0.5)),)
    if kind < 0.36 and not d.miss:
        look = _look(d)
        return (Look(look.colors[:1], None, None, negated=True),) if look and look.colors else None
    if kind < 0.46 and not d.miss:
        return (Largest(smallest=d.chance(0.5)),)
    first = _narrow(d)
    if first is None:
        return None
    if kind < 0.6 and not isinstance(first[0], Beside):
        beside = _beside(d.sure())
        found = apply(beside, d.scene, first[1]) if beside else None
        return (first[0], beside, _choose(d, first[0], len(found.passed))) if beside and found else None
    return (first[0], _choose(d, first[0], len(first[1])))


PROPOSALS: dict[str, Callable[[Draw], Chain]] = {
    "attribute": _propose_attribute,
    "position": _propose_position,
    "interaction": _propose_interaction,
    "reasoning": _propose_reasoning,
    "identity": _propose_identity,
}
