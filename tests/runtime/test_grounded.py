"""Thoughts with their evidence in them: what is written is read back, and nothing makes the reader fail."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rexthinker_edge.runtime.grounded import Reference, phrase_of, read_grounded, write_grounded

coordinate = st.integers(0, 1000)
boxes = st.tuples(coordinate, coordinate, coordinate, coordinate).map(
    lambda c: (*map(float, (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3]))),)
)
points = st.tuples(coordinate, coordinate).map(lambda c: (float(c[0]), float(c[1])))
phrases = st.text(max_size=20).map(phrase_of)
references = st.builds(
    Reference, phrases, st.one_of(st.lists(b, min_size=1, max_size=4).map(tuple) for b in (boxes, points))
)
WORDS = st.one_of(
    st.text(max_size=20), st.sampled_from(["<", "obj>", "</", "<obj>", "</obj>", "|", "[1, 2]"])
)


def joined(pieces):
    """What reading gives back: neighbouring texts as one, tags in them broken, empty ones gone."""
    made = []
    for piece in pieces:
        if isinstance(piece, str) and made and isinstance(made[-1], str):
            made[-1] += piece
        else:
            made.append(piece)
    broken = [
        p.replace("<obj>", "< obj>").replace("</obj>", "< /obj>") if isinstance(p, str) else p for p in made
    ]
    return tuple(piece for piece in broken if piece)


@given(st.lists(st.one_of(WORDS, references), max_size=8))
@settings(max_examples=400, deadline=None)
def test_what_is_written_is_read_back(pieces):
    found = read_grounded(write_grounded(pieces))
    assert found.problems == ()
    assert found.pieces == joined(pieces)


@given(st.lists(st.one_of(WORDS, st.sampled_from(["<obj> a | [1, 2, 3, 4] </obj>", ";", " a | ", "[]"]))))
@settings(max_examples=400, deadline=None)
def test_any_text_is_read(parts):
    text = "".join(parts)
    found = read_grounded(text)
    named = "".join(text[problem.start : problem.end] for problem in found.problems)
    assert text.count("<obj>") <= len(found.references) + named.count("<obj>")  # read or named, none dropped
    for problem in found.problems:
        assert 0 <= problem.start < problem.end <= len(text)
        assert problem.what


def test_pinned():
    text = "<think>A <obj> red cup | [10, 20, 30, 40]; [1, 2, 3.5, 4] </obj> at <obj>it|[5,6]</obj>.</think>"
    found = read_grounded(text)
    assert found.pieces == (
        "<think>A ",
        Reference("red cup", ((10.0, 20.0, 30.0, 40.0), (1.0, 2.0, 3.5, 4.0))),
        " at ",
        Reference("it", ((5.0, 6.0),)),
        ".</think>",
    )
    assert [reference.is_points for reference in found.references] == [False, True]
    assert found.text == "<think>A red cup at it.</think>"
    assert (
        write_grounded(["a ", Reference("b", ((1.0, 2.0, 3.0, 4.0),))]) == "a <obj> b | [1, 2, 3, 4] </obj>"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<obj> a [1, 2] </obj>", "no |"),
        ("<obj> | [1, 2] </obj>", "no phrase"),
        ("<obj> a | here </obj>", "coordinates are 'here'"),
        ("<obj> a | </obj>", "coordinates are ''"),
        ("<obj> a | [1, 2], [3, 4] </obj>", "joined by ;"),
        ("<obj> a | [1, 2, 3] </obj>", "3 numbers"),
        ("<obj> a | [1, two] </obj>", "'two' is no number"),
        ("<obj> a | [1, 1e3] </obj>", "no number"),
        ("<obj> a | [1, nan] </obj>", "no number"),
        (f"<obj> a | [1, {'9' * 5000}] </obj>", "no number"),
        ("<obj> a | [1, 1001] </obj>", "leaves 0 to 1000"),
        ("<obj> a | [-1, 10] </obj>", "leaves 0 to 1000"),
        ("<obj> a | [9, 1, 3, 4] </obj>", "corners swapped"),
        ("<obj> a | [1, 2]; [1, 2, 3, 4] </obj>", "boxes and points"),
        ("<obj> a | [1;2] </obj>", "numbers"),
        ("<obj> a | " + "; ".join(["[1, 2]"] * 1001) + " </obj>", "1,001 instances"),
        ("<obj> a | [1, 2]", "without </obj>"),
        ("a | [1, 2] </obj>", "without <obj>"),
        ("<obj> <obj> a | [1, 2] </obj>", "within <obj>"),
    ],
)
def test_what_is_wrong_is_named(text, said):
    found = read_grounded(f"so {text} it is")
    assert len(found.problems) == 1
    assert said in found.problems[0].what
    assert found.text.startswith("so ")
    if not found.references:
        assert found.pieces == (f"so {text} it is",)
