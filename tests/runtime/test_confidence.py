"""How sure the model was, against an oracle that reads the text line by line, byte by byte."""

import math

import numpy as np
import pytest
from scipy.special import log_softmax

import rexthinker_edge as rex
from rexthinker_edge.runtime.answer import Status
from rexthinker_edge.runtime.confidence import Likelihood, sureness
from rexthinker_edge.runtime.tokens import TextTokenizer
from tests.conftest import write_tokenizer
from tests.runtime.test_generate import PROMPT, Scripted, decoder, start

__all__ = ["decoder"]  # the fixture

TEXT = (
    "<think>OK – the plan.\n\n# Step 1: Look.\nFrom the left: Ball 2.\n- Ball 1: rot ✅\n- Ball 2: blau ❌\n"
    "  again: blau ⚠️\n\n# Step 2: Again.\n- Ball 1: rund ✅\n\n"
    "# Summarize\n- Ball 1: rot → ✅\n- Ball 2: blau → ❌\n- Ball 3: müde → ❌\n</think>"
    '<answer>json\n[{"bbox_2d": [1, 2, 3, 4]}]\n</answer>'
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    write_tokenizer(path)
    return TextTokenizer(path)


def spelt(tokenizer, text):
    """Tokens of a text, a made-up log-probability of each, and the bytes each covers."""
    ids = tokenizer.encode_plain(text)
    logs = (-np.random.default_rng(len(text)).random(len(ids))).tolist()
    ends = np.cumsum([len(tokenizer.token_bytes(token)) for token in ids])
    return ids, logs, list(zip([0, *ends[:-1]], ends, strict=True))


def over(text, spans, logs, start_, stop):
    """Log-probability of the tokens whose last byte belongs to, or completes, characters [start, stop)."""
    total = 0.0
    for (_, end), log in zip(spans, logs, strict=True):
        whole = len(text.encode()[:end].decode(errors="ignore"))  # characters complete after this token
        before = [len(text.encode()[:e].decode(errors="ignore")) for _, e in spans if e < end]
        if whole > start_ and (before[-1] if before else 0) < stop:
            total += log
    return total


def noted(logs):
    return Likelihood(list(logs))


def test_against_the_text_itself(tokenizer):
    ids, logs, spans = spelt(tokenizer, TEXT)
    found = sureness(noted(logs), tokenizer, ids, "ball", 4, Status.FOUND)

    def line(begin, number=0):
        at = [k for k in range(len(TEXT)) if TEXT.startswith(begin, k)][number]
        mark = max(TEXT.rfind(m, at, TEXT.index("\n", at)) for m in "✅❌⚠")
        return at, mark

    def said(at, mark):
        return over(TEXT, spans, logs, at, mark + 1)

    def alone(mark):  # with the token before it, which completes the character before the mark
        return over(TEXT, spans, logs, mark - 1, mark + 1)

    first, second = line("- Ball 1: r"), line("- Ball 1: r", 1)
    summary = [line("- Ball 1: rot →"), line("- Ball 2: blau →"), line("- Ball 3")]
    expected = said(*first) + said(*second) + alone(summary[0][1])
    assert found.verdicts[0] == pytest.approx(math.exp(expected))
    # Its second line in the step ends with the mark that counts; its words count from the first line on.
    blue = said(line("- Ball 2: blau ❌")[0], TEXT.index("⚠"))
    assert found.verdicts[1] == pytest.approx(math.exp(blue + alone(summary[1][1])))
    assert found.verdicts[2] == pytest.approx(
        math.exp(said(*summary[2]))
    )  # the summary's words are all it has
    assert found.verdicts[3] is None
    steps = over(TEXT, spans, logs, TEXT.index("# Step 1"), TEXT.index("# Summarize"))
    marks = sum(alone(mark) for _, mark in summary)
    assert found.answer == pytest.approx(math.exp(steps + marks))
    assert [len(row) for row in found.checks] == [2, 1, 3]
    assert found.checks[0][0] == pytest.approx(math.exp(said(*first)))
    assert found.checks[2][0] == pytest.approx(math.exp(alone(summary[0][1])))


@pytest.mark.parametrize("status", list(Status))
def test_only_an_answer_has_a_confidence(tokenizer, status):
    ids, logs, _ = spelt(tokenizer, TEXT)
    found = sureness(noted(logs), tokenizer, ids, "ball", 3, status)
    assert (found.answer is not None) == (status in (Status.FOUND, Status.ABSENT))
    assert found.verdicts[0] is not None  # a thought without an answer still judged


def test_without_steps_every_token_counts(tokenizer):
    ids, logs, _ = spelt(tokenizer, "<answer>There is no such thing in the image.</answer>")
    likelihood = noted([*logs, -5.0])  # the end token's
    found = sureness(likelihood, tokenizer, ids, "ball", 2, Status.ABSENT)
    assert found.answer == pytest.approx(math.exp(sum(logs)))
    assert found.verdicts == (None, None)


def test_one_section_is_no_summary(tokenizer):
    text = "<think># Step 1: Look.\n- Ball 1: red ✅\n</think><answer>[]</answer>"
    ids, logs, spans = spelt(tokenizer, text)
    found = sureness(noted(logs), tokenizer, ids, "ball", 1, Status.ABSENT)
    expected = over(text, spans, logs, text.index("#"), text.index("</think>") - 1)
    assert found.answer == pytest.approx(math.exp(expected))


def test_noting_is_log_softmax_whatever_comes_together():
    logits = np.random.default_rng(0).normal(0, 8, (24, 3001)).astype(np.float32)
    tokens = logits.argmax(1).tolist()
    whole = Likelihood()
    whole.note(logits, tokens)
    assert whole.logs == pytest.approx(
        log_softmax(logits.astype(np.float64), axis=1)[range(24), tokens], abs=1e-6
    )
    for cuts in ([1, 2, 3, 23], [8, 16], [5]):
        parts = Likelihood()
        for rows, some in zip(np.split(logits, cuts), np.split(np.array(tokens), cuts), strict=True):
            parts.note(rows, some.tolist())
        assert parts.logs == whole.logs  # to the last bit
        assert parts.passes == np.diff([0, *cuts, 24]).tolist()
    short = Likelihood()
    short.note(logits, tokens[:3])  # rows of drafted tokens that did not hold
    assert short.logs == whole.logs[:3]
    short.replace(2, Likelihood([-1.0, -2.0], [2]))
    assert short.logs == [*whole.logs[:2], -1.0, -2.0]
    assert short.passes == [2, 2]


def test_drafting_changes_no_bit(decoder):
    def run(drafts):
        generation = start(decoder, drafts=drafts)
        generation.notes = Likelihood()
        list(generation)
        assert len(generation.notes.logs) == len(generation.token_ids)
        return generation

    plain = run(None)
    for cut in (3, 9):
        right = plain.token_ids
        wrong = [(token + 1) % 50 for token in right]
        drafted = run(Scripted([right[1:cut], wrong[cut : cut + 4], [], right[cut + 2 : cut + 9]]))
        assert drafted.token_ids == plain.token_ids
        assert drafted.passes < plain.passes
        assert drafted.notes.logs == plain.notes.logs
    oracle = start(decoder)
    row = oracle.logits[0].astype(np.float64)
    assert plain.notes.logs[0] == pytest.approx(float(log_softmax(row)[plain.token_ids[0]]), abs=1e-6)
    assert PROMPT


def test_the_small_bundle(tmp_path):
    rng = np.random.default_rng(3)
    picture = rng.integers(0, 255, (160, 200, 3), np.uint8)
    boxes = [[10, 10, 50, 50], [70, 60, 120, 110], [130, 20, 180, 60]]
    scene = rex.load(threads=1).look(picture, "ball", boxes=boxes)
    drafted, plain = (scene.refer("the red ball", drafting=drafting) for drafting in (True, False))
    assert drafted.token_ids == plain.token_ids
    assert drafted.tokens.passes < plain.tokens.passes
    for result in (drafted, plain):
        assert (sum(result.pass_tokens), len(result.pass_tokens)) == (
            result.tokens.generated, result.tokens.passes
        )  # fmt: skip
    assert set(plain.pass_tokens) == {1}
    assert (drafted.confidence, drafted.verdicts) == (plain.confidence, plain.verdicts)
    told = [verdict.verdict for verdict in plain.verdicts]
    assert told == [candidate.verdict for candidate in plain.candidates]
    for result, other in zip(scene.refer_many(["the red ball", "the left ball"]), [plain], strict=False):
        assert result.token_ids == other.token_ids
        if other.confidence is not None:
            assert result.confidence == pytest.approx(other.confidence, abs=1e-3)
