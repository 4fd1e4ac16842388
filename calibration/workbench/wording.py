"""English for chains of checks: the expression that asks for what passes them.

Layout    A noun phrase grows around the noun: words before it ("large red"), phrases after it ("left of the
          box"); a choice by order or size is wrapped around that ("the second … from the left").
Contract  The words say the checks in their order; only choices among restrictions that commute change place.
          Every choice of words is drawn from `rng`.
Elsewhere what a check means: predicates.py; the words of traces: traces.py.
"""

from collections.abc import Sequence

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
)
from rexthinker_edge.calibration.workbench.world import RelationKind

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

_SIZE_WORDS = {"small": ("small", "small", "little", "tiny"), "large": ("large", "large", "big")}
_PATTERN_WORDS = {
    "plain": ("plain", "plain", "solid"),
    "striped": ("striped",),
    "dotted": ("dotted", "spotted"),
}
_PATTERN_AFTER = {"plain": "without a pattern", "striped": "with stripes", "dotted": "with dots"}
_SIDE_OF = {
    Side.LEFT: ("to the left of", "left of", "on the left side of", "on the left of"),
    Side.RIGHT: ("to the right of", "right of", "on the right side of", "on the right of"),
    Side.TOP: ("above", "higher than", "above"),
    Side.BOTTOM: ("below", "lower than", "under"),
}
EXTREMES = {Side.LEFT: "leftmost", Side.RIGHT: "rightmost", Side.TOP: "topmost", Side.BOTTOM: "bottommost"}
_FURTHEST = {
    Side.LEFT: ("furthest to the left", "at the far left"),
    Side.RIGHT: ("furthest to the right", "at the far right"),
    Side.TOP: ("at the very top", "highest up"),
    Side.BOTTOM: ("at the very bottom", "lowest down"),
}
_RELATED = {
    RelationKind.TOUCHING: ("touching", "in contact with"),
    RelationKind.INSIDE: ("inside", "in"),
    RelationKind.ON_TOP_OF: ("on top of", "on"),
}
_HOLDS = {
    RelationKind.INSIDE: ("with {} inside", "containing {}", "that {have} {} in it"),
    RelationKind.ON_TOP_OF: ("with {} on top", "that {have} {} on top of it", "under {} that stands on it"),
}


def pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    """One of the options, each as likely as it is often listed."""
    return options[int(rng.integers(len(options)))]


def plural(noun: str) -> str:
    """The plural of a category."""
    return f"{noun}es" if noun.endswith("x") else f"{noun}s"


def reference_phrase(reference: Reference) -> str:
    """The reference with its article: "the striped red box"."""
    words = [w for w in (reference.pattern, reference.color) if w]
    return " ".join(["the", *words, reference.category])


class Phrase:
    """A noun phrase under construction."""

    def __init__(self, noun: str) -> None:
        self.noun = noun
        self.before: list[str] = []
        self.after: list[str] = []

    def bare(self, many: bool, noun: str | None = None) -> str:
        """The phrase without its article."""
        head = noun or (plural(self.noun) if many else self.noun)
        return " ".join([*self.before, head, *self.after])


def _add_look(phrase: Phrase, look: Look, many: bool, rng: np.random.Generator, alone: bool = True) -> None:
    verb = "are" if many else "is"
    words = []
    if look.size:
        words.append(pick(rng, _SIZE_WORDS[look.size]))
    if look.pattern:
        words.append(pick(rng, _PATTERN_WORDS[look.pattern]))
    if look.colors:
        words.append(" or ".join(look.colors))
    if look.negated:
        joined = " ".join(words)
        if len(words) == 1 and len(look.colors) == 1 and rng.random() < 0.4:
            phrase.before.append(f"non-{joined}")
        else:
            phrase.after.insert(0, f"that {verb} not {joined}")
        return
    if look.pattern and rng.random() < 0.3:
        words.pop(1 if look.size else 0)
        phrase.after.insert(0, _PATTERN_AFTER[look.pattern])
    if alone and len(words) == 1 and not phrase.after and rng.random() < 0.2:
        phrase.after.insert(0, f"that {verb} {words[0]}")
    else:
        phrase.before.extend(words)


def _add_restriction(phrase: Phrase, check: Check, many: bool, rng: np.random.Generator, alone: bool) -> None:
    linking = pick(rng, ("", "", f"that {'are' if many else 'is'} "))
    if isinstance(check, Look):
        _add_look(phrase, check, many, rng, alone)
    elif isinstance(check, Letter):
        marks = ("with the letter {}", "marked {}", "labelled {}", "with {} on it", "with a letter {}")
        phrase.after.append(pick(rng, marks).format(check.letter))
    elif isinstance(check, Beside):
        words = f"{pick(rng, _SIDE_OF[check.side])} {reference_phrase(check.reference)}"
        phrase.after.append(linking + words)
    elif isinstance(check, Related):
        name = reference_phrase(check.reference)
        if check.inverse:
            phrase.after.append(pick(rng, _HOLDS[check.kind]).format(name, have="have" if many else "has"))
        else:
            phrase.after.append(f"{linking}{pick(rng, _RELATED[check.kind])} {name}")
    elif isinstance(check, RareColor):
        alone_in_color = (
            "in a color of their own" if many else "in a color of its own",
            "whose color no other has",
        )
        forms = (
            ("in the most common color", "of the color seen most often") if check.common else alone_in_color
        )
        phrase.after.append(pick(rng, forms))
    else:
        raise AssertionError(check)


def _choice(phrase: Phrase, check: Rank | Largest, rng: np.random.Generator) -> str:
    """The chosen one(s) of a phrase: "the second red ball from the left"; words after the noun are plural."""
    if isinstance(check, Rank) and check.group:
        core = f"{NUMBERS[check.count - 1]} {EXTREMES[check.side]}"
        return f"the {core} {pick(rng, ('of the ', '')) if phrase.after else ''}{phrase.bare(many=True)}"
    if isinstance(check, Largest) or check.count == 1:
        return _choose_extreme(phrase, check, rng)
    word, side = ORDINALS[check.count - 1], check.side.value
    if phrase.after:
        return f"the {word} from the {side} {pick(rng, ('of', 'among'))} the {phrase.bare(many=True)}"
    one = phrase.bare(many=False)
    forms = [f"the {word} {one} from the {side}"] * 3 + [f"the {one} that is {word} from the {side}"]
    return pick(rng, [*forms, f"the {word} {one} counting from the {side}"])


def _choose_extreme(phrase: Phrase, check: Rank | Largest, rng: np.random.Generator) -> str:
    if isinstance(check, Rank):
        word = EXTREMES[check.side]
    else:
        word = pick(
            rng, ("smallest", "smallest", "tiniest") if check.smallest else ("largest", "largest", "biggest")
        )
    if phrase.after:
        return f"the {word} {pick(rng, ('of', 'among'))} the {phrase.bare(many=True)}"
    one = phrase.bare(many=False)
    forms = [f"the {word} {one}"] * 3 + [f"the {word} of the {phrase.bare(many=True)}"]
    if isinstance(check, Rank):
        forms += [
            f"the {one} {pick(rng, _FURTHEST[check.side])}",
            f"the first {one} from the {check.side.value}",
        ]
    return pick(rng, forms)


def _determined(phrase: Phrase, many: bool, rng: np.random.Generator) -> str:
    if not many:
        return f"the {phrase.bare(many=False)}"
    singular = phrase.bare(many=True)
    return pick(rng, ("the {}", "the {}", "all {}", "all the {}", "all of the {}")).format(singular)


def express(category: str, checks: Sequence[Check], many: bool, rng: np.random.Generator) -> str:
    """Say a chain of checks.

    Args:
        category: what is looked for, a word of `world.CATEGORIES`.
        checks: one to three checks; restrictions, then at most one choice (Rank, Largest), then at most
            one Look among the chosen.
        many: whether the expression is in the plural.
    """
    phrase = Phrase(category)
    cut = next((k for k, c in enumerate(checks) if isinstance(c, Rank | Largest)), len(checks))
    each = many and cut == len(checks) and rng.random() < 0.2
    nouns_many = cut < len(checks) or (many and not each)
    for check in sorted(checks[:cut], key=lambda c: not isinstance(c, Look)):
        _add_restriction(phrase, check, nouns_many, rng, alone=len(checks) == 1)
    if cut == len(checks):
        if each:
            return f"{pick(rng, ('every', 'each'))} {phrase.bare(many=False)}"
        return _determined(phrase, many, rng)
    choice = checks[cut]
    assert isinstance(choice, Rank | Largest)
    if choice.negated:
        return _all_but(phrase, choice, rng)
    said = _choice(phrase, choice, rng)
    if cut + 1 == len(checks):
        return said
    last = checks[cut + 1]
    assert isinstance(last, Look)
    inner = Phrase("one")
    _add_look(inner, last, many, rng)
    return f"the {inner.bare(many)} {pick(rng, ('among', 'of'))} {said}"


def _all_but(phrase: Phrase, choice: Rank | Largest, rng: np.random.Generator) -> str:
    word = EXTREMES[choice.side] if isinstance(choice, Rank) else "smallest" if choice.smallest else "largest"
    rest = f"{pick(rng, ('all', 'all the'))} {phrase.bare(many=True)}"
    return f"{rest} {pick(rng, ('except', 'but not', 'other than'))} the {word} one"
