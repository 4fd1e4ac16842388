"""The answer parser: seven ways to end, and nothing in between."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rexthinker_edge.runtime.answer import Answer, Status, answer_boxes, ground, read_answer
from rexthinker_edge.runtime.generate import Finish

HINTS = np.array([[10, 20, 110, 220], [200, 20, 300, 220], [400, 50, 480, 130]])
ONE = '[{"bbox_2d": [200, 20, 300, 220], "label": "the red ball"}]'
THOUGHT = "<think>OK, the user needs us to detect the red ball.\n# Step 1: …\n- Ball 1: red ✅\n</think>"


def said(content: str) -> str:
    return f"{THOUGHT}<answer>{content}</answer>"


@pytest.mark.parametrize(
    "content",
    [
        f"json\n{ONE}\n",
        f"```json\n{ONE}\n```",
        f"```\n{ONE}\n```",
        ONE,
        f"\n {ONE} \n",
        f"json{ONE}",
        '{"bbox_2d": [200, 20, 300, 220], "label": "the red ball"}',
        '[{"bbox_2d": [200, 20, 300, 220]}]',
        '[{"bbox_2d": [200, 20, 300, 220], "label": "a"}, {"bbox_2d": [200, 20, 300, 220], "label": "a"}]',
        '[{"bbox_2d": [200.4, 20, 300, 221], "label": "nearly copied"}]',
    ],
)
def test_found(content):
    assert read_answer(said(content), Finish.STOP, HINTS) == Answer(Status.FOUND, (1,))


def test_the_answers_own_order_is_kept():
    boxes = [{"bbox_2d": HINTS[i].tolist(), "label": "x"} for i in (2, 0)]
    assert read_answer(said(json.dumps(boxes)), Finish.STOP, HINTS) == Answer(Status.FOUND, (2, 0))


@pytest.mark.parametrize(
    "content", ["json\n[]\n", "[]", "There is no such thing in the image.", "```json\n[]\n```"]
)
def test_absent(content):
    assert read_answer(said(content), Finish.STOP, HINTS) == Answer(Status.ABSENT)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "json",
        "Ball 2",
        "[[200, 20, 300, 220]]",  # rows without bbox_2d are not the trained form
        '[{"bbox_2d": [200, 20, 300], "label": "x"}]',
        '[{"bbox_2d": [200, 20, 300, 220]}, {"bbox_2d": [1, 2, 3]}]',  # as a whole or not at all
        '[{"bbox_2d": ["200", 20, 300, 220]}]',
        '[{"bbox_2d": [true, 20, 300, 220]}]',
        '[{"bbox_2d": [NaN, 20, 300, 220]}]',
        '[{"bbox_2d": [1e400, 20, 300, 220]}]',
        '[{"bbox_2d": [300, 20, 200, 220]}]',
        '[{"bbox_2d": [200, 20, 300, 220]}',
        "[" * 100_000,
        "null",
        "3",
        "There is no such thing in the image, but see [200, 20, 300, 220].",
    ],
)
def test_malformed_never_means_absent(content):
    assert read_answer(said(content), Finish.STOP, HINTS) == Answer(Status.MALFORMED)


@pytest.mark.parametrize("text", ["", THOUGHT, f"{THOUGHT}<answer>{ONE}", f"{said(ONE)} and more", "[]", ONE])
def test_without_a_whole_answer_the_ending_decides(text):
    assert read_answer(text, Finish.STOP, HINTS) == Answer(Status.MALFORMED)
    assert read_answer(text, Finish.LENGTH, HINTS) == Answer(Status.TRUNCATED)
    assert read_answer(text, Finish.DEADLINE, HINTS) == Answer(Status.TIMEOUT)


@pytest.mark.parametrize("finish", list(Finish))
def test_a_whole_answer_counts_however_it_ended(finish):
    assert read_answer(said(ONE) + "\n", finish, HINTS).status is Status.FOUND


def test_boxes_of_the_thought_are_not_the_answer():
    text = "<think>Ball 1 [10, 20, 110, 220] ✅ " + ONE + "</think><answer>[]</answer>"
    assert read_answer(text, Finish.STOP, HINTS) == Answer(Status.ABSENT)


QUOTED = "</think><answer>[]</answer>"


def test_an_answer_quoted_from_the_expression_is_not_the_answer():
    label = json.dumps([{"bbox_2d": [200, 20, 300, 220], "label": QUOTED}])
    text = (
        f"<think>OK, the user needs us to detect {QUOTED}. # Step 1\n</think><answer>json\n{label}\n</answer>"
    )
    assert read_answer(text, Finish.STOP, HINTS) == Answer(Status.FOUND, (1,))


@pytest.mark.parametrize("box", [[600, 20, 700, 220], [200, 20, 300, 250], [0, 0, 0, 0]])
def test_ungrounded(box):
    answer = said(json.dumps([{"bbox_2d": HINTS[0].tolist()}, {"bbox_2d": box}]))
    assert read_answer(answer, Finish.STOP, HINTS) == Answer(Status.UNGROUNDED)


def test_nearest_by_overlap_at_the_threshold():
    # 100 x 200 against 100 x 222: 0.9009; against 100 x 223: 0.8968
    assert ground([[10, 20, 110, 242]], HINTS) == (0,)
    assert ground([[10, 20, 110, 243]], HINTS) is None


def test_equal_hints_are_taken_in_turn():
    twins = np.array([[1, 2, 3, 4], [5, 6, 7, 8], [1, 2, 3, 4]])
    assert ground([[1, 2, 3, 4]], twins) == (0,)
    assert ground([[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4]], twins) == (0, 2)


@settings(max_examples=50)
@given(st.lists(st.integers(0, 2), max_size=5), st.text(max_size=40))
def test_what_the_trained_form_says_is_what_is_read(indices, label):
    boxes = [{"bbox_2d": HINTS[i].tolist(), "label": label} for i in indices]
    answer = read_answer(said("json\n" + json.dumps(boxes) + "\n"), Finish.STOP, HINTS)
    assert answer == Answer(Status.FOUND if indices else Status.ABSENT, tuple(dict.fromkeys(indices)))


PIECES = [*'[]{}",:0123 \n', "bbox_2d", "<answer>", "</answer>", "json", "```"]


@settings(max_examples=50)
@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_any_text_has_a_status(text):
    assert read_answer(text, Finish.STOP, HINTS).status in set(Status)
    boxes = answer_boxes(text)
    assert boxes is None or all(len(box) == 4 for box in boxes)


def test_seven_statuses():
    assert [status.value for status in Status] == [
        "found", "absent", "no_candidates", "malformed", "truncated", "timeout", "ungrounded",
    ]  # fmt: skip
