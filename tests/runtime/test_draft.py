"""What is foreseen of a trace, with a small tokenizer and with Qwen2.5-VL's own; and how much of it pays."""

import json
from pathlib import Path

import pytest

from rexthinker_edge.runtime.draft import Drafter, Drafting
from rexthinker_edge.runtime.draft_cost import Acceptance, paying
from rexthinker_edge.runtime.draft_form import make_ground
from rexthinker_edge.runtime.draft_grammar import Grammar, Kind
from rexthinker_edge.runtime.draft_lookup import MOST_RUNS, Index, Lookup
from rexthinker_edge.runtime.tokens import TextTokenizer
from tests.conftest import write_tokenizer

QWEN = Path(__file__).parents[3] / "shared" / "tokenizers" / "qwen2.5-vl" / "tokenizer.json"
BOXES = [[3, 4, 50, 60], [70, 4, 120, 60], [130, 9, 190, 60]]
EXPRESSION = "the person in red"
ANSWER = json.dumps([{"bbox_2d": BOXES[1], "label": EXPRESSION}])
TRACE = (
    "<think>OK, the user needs us to detect the person in red. I need to break it down into the following "
    "steps:\n- Step 1: Find who wears red.\n- Step 2: Check that it is a person.\n\n"
    "# Step 1: Find who wears red.\n- Person 1: The coat is blue. ❌\n- Person 2: The coat is red. ✅\n"
    "- Person 3: The coat is red. ✅\n\n"
    "# Step 2: Check that it is a person.\n- Person 2: A person. ✅\n- Person 3: A statue. ❌\n\n"
    "# Summarize and Re-Check answer\n- Person 1: The coat is blue. → ❌\n- Person 2: A person. → ✅\n"
    f"- Person 3: A statue. → ❌\n</think><answer>json\n{ANSWER}\n</answer>"
)


@pytest.fixture(scope="module", params=["small", "qwen"])
def tokenizer(request, tmp_path_factory):
    if request.param == "small":
        path = tmp_path_factory.mktemp("small") / "tokenizer.json"
        write_tokenizer(path)
        return TextTokenizer(path)
    if not QWEN.is_file():
        pytest.skip("shared/ is not here")
    return TextTokenizer(QWEN)


def grammar(tokenizer, expression=EXPRESSION, boxes=BOXES):
    return Grammar(make_ground("person", boxes, tokenizer.encode_plain, tokenizer.token_bytes), expression)


def foreseen(tokenizer, before, most=400, **arguments):
    """The text drafted behind `before`, and what each guess rests on."""
    source = grammar(tokenizer, **arguments)
    for token in tokenizer.encode_plain(before):
        source.push(token)
    tokens, kinds = source.propose(most)
    assert len(tokens) == len(kinds) <= most
    return tokenizer.decode(tokens), {Kind(kind) for kind in kinds}


def cut(text):
    """The trace up to and including the first `text`."""
    before, found, _ = TRACE.partition(text)
    assert found, text
    return before + found


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("a person.\n\n", "# Step 1: Find who wears red.\n"),
        ("\n# Step 1: Find who wears red.\n", "- Person 1:"),
        ("- Person 1: The coat is blue. ❌\n", "- Person 2: The coat is blue. ❌\n- Person 3: The coat"),
        ("- Person 2: The coat is red. ✅\n", "- Person 3: The coat is"),
        ("- Person 3: The coat is red. ✅\n\n", "# Step 2: Check that it is a person.\n"),
        ("\n# Step 2: Check that it is a person.\n", "- Person 2:"),  # only those left
        ("Person 3: A statue. ❌\n\n", "# Summarize and Re-Check answer\n- Person 1:"),
        ("# Summarize and Re-Check answer\n", TRACE[TRACE.index("- Person 1: The coat is blue. →") :]),
        ("- Person 1: The coat is blue. →", " ❌\n- Person 2: A person. → ✅\n"),
        ("- Person 3: A statue. → ❌\n", f"</think><answer>json\n{ANSWER}\n</answer>"),
        ("</think><answer>json\n", f"{ANSWER}\n</answer>"),
        ('[{"bbox_2d": [70', f"{ANSWER[16:]}\n</answer>"),
    ],
)  # fmt: skip
def test_the_form_of_a_trace(tokenizer, written, expected):
    text, _ = foreseen(tokenizer, cut(written))
    assert text.startswith(expected), text


def test_nothing_stands_where_the_form_is_left(tokenizer):
    for text in (
        "",
        "<think>",
        "I do not know",
        "Ball 7: ✅\n",
        cut("\n# Step 1: Find who wears red.\n") + "Well",
    ):
        assert foreseen(tokenizer, text) == ("", set())
    assert foreseen(tokenizer, cut("# Summarize and Re-Check answer\n") + "- Person 9:")[0] == ""


def test_no_one_is_left(tokenizer):
    said = cut("# Summarize and Re-Check answer\n").replace("✅", "❌")
    assert foreseen(tokenizer, said)[0].endswith("<answer>There is no such thing in the image.</answer>")


def test_another_answer_than_the_summary_is_followed(tokenizer):
    """The model names the third although the second was marked: its box is copied all the same."""
    first = json.dumps([{"bbox_2d": BOXES[2], "label": EXPRESSION}])
    text, _ = foreseen(tokenizer, cut("</think><answer>json\n") + first[:17])
    assert text.startswith(first[17:-1])


def test_a_long_scene_is_foreseen_token_for_token(tokenizer):
    """From the summary on, the draft is what the tokenizer makes of the text: nothing is lost at seams."""
    before = cut("# Summarize and Re-Check answer\n")
    source = grammar(tokenizer)
    ids = tokenizer.encode_plain(TRACE)
    begun = len(tokenizer.encode_plain(before))
    assert ids[:begun] == tokenizer.encode_plain(before)
    for token in ids[:begun]:
        source.push(token)
    assert source.propose(1000)[0] == ids[begun:]


def test_lookup_repeats_what_followed():
    index = Index()
    index.add_all([1, 2, 3, 4, 5, 6, 7, 8])
    lookup = Lookup(index)
    assert lookup.propose(5) == ([], [])
    lookup.push(3)
    assert lookup.propose(5) == ([], [])  # one token is no run
    lookup.push(4)
    assert lookup.propose(3) == ([5, 6, 7], [6, 7, 7])
    for token in (5, 6):
        lookup.push(token)
    assert lookup.propose(9) == ([7, 8], [2, 3])
    sibling = Lookup(index)
    for token in (3, 4):
        sibling.push(token)
    assert sibling.propose(2)[0] == [5, 6]  # the other answer stood last
    for number in range(MOST_RUNS):
        lookup.push(10 + number)
    assert len(index._young) + len(index._old) <= 2 * MOST_RUNS + 8


def test_paying():
    costs = [1.0, 1.0, 1.0, 1.2, 1.4, 1.6, 1.8]  # passes of up to six tokens
    assert paying([0] * 9, [0.95], costs, 0.0) == 5
    assert paying([0] * 9, [0.1], costs, 0.0) == 1  # the second row is there anyway
    assert paying([], [0.1], costs, 0.0) == 0
    assert paying([0, 1, 0, 0], [0.99, 0.02], costs, 0.0) == 1
    dear = [1.0, 1.0, 1.0, 3.0, 5.0, 7.0, 9.0]
    assert paying([0] * 9, [0.95], dear, 0.0) == 1
    assert paying([0] * 9, [0.95], dear, 100.0) == 5  # beside so much else, rows cost nothing


def test_acceptance_learns_and_is_never_certain():
    acceptance = Acceptance([0.5, 0.5])
    for _ in range(3000):
        acceptance.learn(0, True)
        acceptance.learn(1, False)
    assert 0.9 < acceptance.rates[0] < 1.0
    assert 0.0 < acceptance.rates[1] < 0.1
    assert acceptance.expected([0, 1, 0]) == pytest.approx(
        acceptance.rates[0] * (1 + acceptance.rates[1]), rel=0.02
    )
    for _ in range(400):
        acceptance.learn(0, False)
    assert acceptance.rates[0] < 0.5  # the old is forgotten


def test_a_drafter_takes_the_best_source_and_learns(tokenizer):
    drafting = Drafting()
    drafting.costs.exact = True
    drafting.costs.costs = [1.0 + 0.01 * width for width in range(33)]
    scene = drafting.scene(tokenizer, "person", BOXES)

    def passes():
        """How many passes the trace takes when every right guess holds."""
        drafter = scene.answer(EXPRESSION, tokenizer.encode_plain(EXPRESSION), None, None, 0)
        assert isinstance(drafter, Drafter)
        ids, at, count = tokenizer.encode_plain(TRACE), 1, 1
        drafter.chosen(ids[:1])
        while at < len(ids):
            drafted = drafter.propose(len(ids) - at)
            assert len(drafted) < 32
            right = 0
            while right < len(drafted) and at + right < len(ids) - 1 and drafted[right] == ids[at + right]:
                right += 1
            drafter.chosen(ids[at : at + right + 1])
            at, count = at + right + 1, count + 1
        assert drafter.position == len(ids) - 1
        return count

    first, second = passes(), passes()
    assert first < len(tokenizer.encode_plain(TRACE)) / 2
    assert second < first / 1.5  # a sibling has said it all
    assert drafting.describe()["exact"] is True


def test_nothing_is_drafted_where_it_would_not_be_exact(tokenizer):
    drafting = Drafting()
    drafting.costs.exact = False
    drafter = drafting.scene(tokenizer, "person", BOXES).answer(EXPRESSION, [], None, None, 0)
    for token in tokenizer.encode_plain(cut("# Summarize and Re-Check answer\n")):
        drafter.chosen([token])
    assert drafter.propose(30) == []
