"""Steps and verdicts from a thought, whatever its words."""

from rexthinker_edge.runtime.trace import Verdict, read_trace, thought_of

MATCH, NO_MATCH, REFERENCE, UNKNOWN = Verdict.MATCH, Verdict.NO_MATCH, Verdict.REFERENCE, Verdict.UNKNOWN

# The published form, with Ball for Person.
WHOLE = """<think>OK, the user needs us to detect the red ball left of the mug. To do this:
- Step 1: find the reference.
- Step 2: check the side.

# Step 1: Find the reference.
From the left: Ball 3, Ball 1.
- Ball 1: red ✅
- Ball 2: blue ❌
- Ball 3: stands beside the mug ⚠️
- Ball 9: there is no such candidate ✅

# Step 2: Check the side.
- Ball 1: right ❌
  on closer look it is left of it ✅
- Ball 4: hard to see

# Summarize and Re-Check answer
- Ball 1: red and left → ✅
- Ball 2: blue → ❌
</think><answer>json
[]
</answer>"""


def test_the_published_form():
    trace = read_trace(WHOLE, "ball", 4)
    assert [s.title for s in trace.sections] == [
        "Step 1: Find the reference.", "Step 2: Check the side.", "Summarize and Re-Check answer",
    ]  # fmt: skip
    assert [s.mentioned for s in trace.sections] == [(0, 1, 2), (0, 3), (0, 1)]
    assert [s.verdicts for s in trace.sections] == [
        (MATCH, NO_MATCH, REFERENCE),
        (MATCH, UNKNOWN),
        (MATCH, NO_MATCH),
    ]
    assert trace.verdicts == (MATCH, NO_MATCH, REFERENCE, UNKNOWN)
    assert trace.sections[0].text.startswith("From the left")
    assert trace.thought.startswith("OK, the user")
    assert trace.thought.endswith("→ ❌")


def test_the_summary_decides():
    text = "<think># Step 1: a\n- Ball 1: ✅\n- Ball 2: ✅\n# Result\n- Ball 2: → ❌\n</think>"
    assert read_trace(text, "ball", 2).verdicts == (MATCH, NO_MATCH)


def test_warning_sign_with_and_without_variation_selector():
    for sign in ("⚠", "⚠️"):
        assert read_trace(f"# s\n- Ball 1: it {sign}", "ball", 1).verdicts == (REFERENCE,)


def test_looser_lines():
    text = "## Step 1 ##\n* **Person 2** (left): tall ✅\n• person 1 : ❌\nPerson 3: seen ⚠\n-Person 4:✅"
    assert read_trace(text, "person", 4).verdicts == (NO_MATCH, MATCH, REFERENCE, MATCH)
    # a category of several words, and one the model names differently
    assert read_trace("# s\n- Coffee mug 2: ✅", "coffee mug", 2).verdicts == (UNKNOWN, MATCH)
    assert read_trace("# s\n- Person 1: ✅", "people", 1).verdicts == (MATCH,)


def test_the_last_mark_of_a_line_counts():
    assert read_trace("# s\n- Ball 1: seemed ❌ but is ✅", "ball", 1).verdicts == (MATCH,)


def test_lines_about_something_else():
    text = "# s\n- Step 1: ✅\nto the left of Ball 1: nothing ✅\n- The one standing behind Ball 1: ✅"
    assert read_trace(text, "ball", 1).verdicts == (UNKNOWN,)
    assert read_trace("# s\n- Step 1: ✅", "step", 1).verdicts == (MATCH,)


def test_planning_gives_no_verdict_and_prose_still_names_candidates():
    text = "<think>- Ball 1: ✅ perhaps\n# Step 1: Look\nI see that ball 2 and Ball 1 touch.\n"
    trace = read_trace(text, "ball", 2)
    assert trace.verdicts == (UNKNOWN, UNKNOWN)
    assert trace.sections[0].mentioned == (1, 0)
    assert trace.sections[0].verdicts == (UNKNOWN, UNKNOWN)


def test_thought_of_every_ending():
    assert thought_of("<think>a</think><answer>b</answer>") == "a"
    assert thought_of("<think>a quoted </think> in it</think><answer>b</answer>") == "a quoted </think> in it"
    assert thought_of("<think>cut short") == "cut short"
    assert thought_of("<think>a</think>") == "a"
    assert thought_of("no tags") == "no tags"
    assert thought_of("a</think><answer>b") == "a"
    assert thought_of("") == ""


def test_empty():
    trace = read_trace("", "ball", 2)
    assert trace.sections == ()
    assert trace.verdicts == (UNKNOWN, UNKNOWN)


def test_verdict_words():
    assert [verdict.value for verdict in Verdict] == ["match", "no_match", "reference", "unknown"]
