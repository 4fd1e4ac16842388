"""Expressions decoded together: token for token what asking one by one gives, ties included."""

from dataclasses import replace
from functools import partial

import numpy as np
import onnxruntime as ort
import pytest
from safetensors.numpy import save_file

from rexthinker_edge.export.checkpoint import Checkpoint
from rexthinker_edge.export.decoder_graph import write_decoder
from rexthinker_edge.export.quantize import IntegerRecipe
from rexthinker_edge.runtime import together
from rexthinker_edge.runtime.deadline import DeadlinePassed, monotonic_ms
from rexthinker_edge.runtime.decoder import Decoder
from rexthinker_edge.runtime.embeddings import Embeddings
from rexthinker_edge.runtime.generate import Finish, Generation, Limits
from rexthinker_edge.runtime.manifest import EMBEDDINGS
from rexthinker_edge.runtime.positions import text_positions
from rexthinker_edge.runtime.together import NO_TOKEN, Question, Together, answer_together
from tests.runtime.test_decoder import CONFIG, WIDE, make_weights

PREFIX = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
QUESTIONS = [[20, 21, 22], [23], [24, 25, 26, 27, 28], [20, 21], [30], [31, 32, 33], [34, 35], [36] * 7]


class Plain:
    """Token ids as text, to read them back."""

    def decode(self, token_ids):
        return " ".join(map(str, token_ids))


KINDS = [(CONFIG, None), (CONFIG, IntegerRecipe(block=16)), (WIDE, IntegerRecipe(block=32))]


@pytest.fixture(scope="module", params=KINDS, ids=["fp32", "int4", "own"])
def decoder(request, tmp_path_factory):
    directory, (config, recipe) = tmp_path_factory.mktemp("decoder"), request.param
    save_file(make_weights(config), directory / "model.safetensors")
    geometry = write_decoder(Checkpoint(directory), config, directory, 96, recipe)
    assert geometry.branches
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return Decoder(
        directory / "decoder.onnx", Embeddings(directory / EMBEDDINGS, geometry), geometry, options
    )


def read_prefix(decoder, capacity=32):
    cache = decoder.new_cache(capacity)
    decoder.run(decoder.embed(PREFIX), text_positions(0, len(PREFIX)), cache)
    return cache


def alone(decoder, question, limits):
    """The oracle: one question, one generation."""
    cache = read_prefix(decoder)
    start = len(PREFIX)
    logits = decoder.run(decoder.embed(question), text_positions(start, len(question)), cache)
    generation = Generation(decoder, cache, logits, start + len(question), limits)
    for _ in generation:
        pass
    return tuple(generation.token_ids), generation.finish


def asked(questions):
    return [Question(list(question), len(PREFIX)) for question in questions]


def an_end(decoder, position=9):
    """A token that some answers reach early and others late or never."""
    return alone(decoder, QUESTIONS[0], Limits(frozenset(), 20))[0][position]


@pytest.mark.parametrize("count", [2, 3, 8])
def test_equal_to_one_by_one(decoder, count):
    limits = Limits(frozenset([an_end(decoder), 55]), 20)
    expected = [alone(decoder, question, limits) for question in QUESTIONS[:count]]
    cache = read_prefix(decoder)
    kept = cache.rows(0, len(PREFIX))
    written = answer_together(decoder, Plain(), cache, asked(QUESTIONS[:count]), limits)
    assert [(w.token_ids, w.finish) for w in written] == expected
    assert len({len(ids) for ids, _ in expected}) > 1  # they do end at different times
    for w in written:
        spoken = w.token_ids[:-1] if w.finish is Finish.STOP else w.token_ids
        assert w.text == Plain().decode(spoken)
        assert 0 < w.passes <= 2 * len(w.token_ids) + 1
        assert w.ms.prefill > 0
    cache.rewind(len(PREFIX))
    np.testing.assert_array_equal(cache.rows(0, len(PREFIX)), kept)  # the prefix is read, never written


def test_where_rows_are_alike_no_answer_is_read_again(decoder, monkeypatch):
    """Logits of mixed rows are those of an answer alone to the last bit."""
    limits = Limits(frozenset(), 12)
    expected = [alone(decoder, question, limits) for question in QUESTIONS]
    seen = []
    monkeypatch.setattr(together, "_settle", lambda *_: pytest.fail("an answer was read again"))
    look = together._look
    monkeypatch.setattr(together, "_look", lambda logits, near: seen.append(logits) or look(logits, near))
    cache = read_prefix(decoder)
    written = answer_together(decoder, Plain(), cache, asked(QUESTIONS), limits, NO_TOKEN)
    if not decoder.rows_alike:
        return
    assert [(w.token_ids, w.finish) for w in written] == expected
    cache = read_prefix(decoder)
    ids = [*QUESTIONS[4], *written[4].token_ids[:-1]]
    start = len(PREFIX)
    logits = decoder.run(decoder.embed(ids), text_positions(start, len(ids)), cache, last_only=False)
    assert np.array_equal(logits, [rows[4] for rows in seen])


def test_an_answer_does_not_see_the_others(decoder):
    """Logits of a question among others stay those of the question alone, whatever the others say."""
    limits, expected = Limits(frozenset(), 5), []
    for others in ([[40, 41]], [[42], [43, 44, 45, 46]]):
        cache = read_prefix(decoder, 64)
        running = Together(decoder, cache, asked([QUESTIONS[0], *others]), limits)
        assert running.step()
        ids = [*QUESTIONS[0], *running.branches[0].token_ids[:1]]
        single = read_prefix(decoder)
        expected.append(running.branches[0].token_ids[:2])
        theirs = decoder.run(decoder.embed(ids), text_positions(len(PREFIX), len(ids)), single)
        assert int(theirs[0].argmax()) == running.branches[0].token_ids[1]
    assert expected[0] == expected[1]
    # the definition: rows of another owner are hidden, one's own and the prefix are not
    assert running.owners.tolist()[: len(PREFIX) + 4] == [-1] * len(PREFIX) + [0, 0, 0, 1]


def test_a_tie_that_falls_the_other_way_is_settled(decoder, monkeypatch):
    """Whatever the mixed pass says, an answer it is unsure of ends as it would alone."""
    limits = Limits(frozenset([an_end(decoder)]), 16)
    expected = [alone(decoder, question, limits) for question in QUESTIONS[:4]]
    truthful, rng, wrong = decoder.run_branches, np.random.default_rng(0), []

    def noisy(*arguments):
        logits = truthful(*arguments)
        disturbed = logits + rng.standard_normal(logits.shape).astype(np.float32) * np.abs(logits).max() / 4
        wrong.append((disturbed.argmax(1) != logits.argmax(1)).any())
        return disturbed

    monkeypatch.setattr(decoder, "run_branches", noisy)
    written = answer_together(decoder, Plain(), read_prefix(decoder), asked(QUESTIONS[:4]), limits)
    assert any(wrong)
    assert [(w.token_ids, w.finish) for w in written] == expected
    never = -1.0  # unsure: then the noise stays
    trusting = answer_together(decoder, Plain(), read_prefix(decoder), asked(QUESTIONS[:4]), limits, never)
    assert [(w.token_ids, w.finish) for w in trusting] != expected


class Guesses:
    """Drafts of a known answer, of which some are spoilt; counts what it was told."""

    def __init__(self, answer, seed):
        self.answer, self.rng, self.told, self.beside = list(answer), np.random.default_rng(seed), [], []

    def propose(self, most, beside):
        self.beside.append(beside)
        count = int(self.rng.integers(0, 6))
        drafted = self.answer[len(self.told) : len(self.told) + min(most, count)]
        return [t if self.rng.random() < 0.8 else int(self.rng.integers(60)) for t in drafted]

    def chosen(self, tokens):
        self.told += tokens


@pytest.mark.parametrize(("seed", "useless"), [(0, 1.0), (1, 0.25), (2, 0.0), (3, 0.0)])
def test_drafts_change_no_token(decoder, monkeypatch, seed, useless):
    """Whatever is drafted, and however often rows that did not hold are taken out."""
    monkeypatch.setattr(together, "USELESS", useless)
    limits = Limits(frozenset([an_end(decoder)]), 20)
    expected = [alone(decoder, question, limits) for question in QUESTIONS[:5]]
    drafts = [Guesses(ids, [seed, i]) for i, (ids, _) in enumerate(expected)]
    questions = [Question(q, len(PREFIX), d) for q, d in zip(QUESTIONS, drafts, strict=False)]
    written = answer_together(decoder, Plain(), read_prefix(decoder), questions, limits)
    assert [(w.token_ids, w.finish) for w in written] == expected
    assert sum(w.passes for w in written) < sum(len(w.token_ids) for w in written)  # some did hold
    assert max(rows for d in drafts for rows in d.beside) > 4  # a draft knows of the others' rows


class Anew(Guesses):
    """Drafts for an answer that goes on alone: what it was told to have been chosen so far, and after."""

    def propose(self, most, beside=0):
        return super().propose(most, beside)

    def measured(self, tokens, ms):
        """Nothing is learnt here."""


def test_an_answer_that_goes_on_alone_is_drafted(decoder, monkeypatch):
    """Behind the last token that holds, from sources that know exactly what was chosen."""
    limits = Limits(frozenset(), 16)
    expected = [alone(decoder, question, limits) for question in QUESTIONS[:3]]
    truthful, anew, turned = decoder.run_branches, {}, []

    def spoilt(*arguments):
        logits = truthful(*arguments)
        if not turned and len(arguments[0]) == 3:  # one of the passes of a token each
            turned.append(int(logits[1].argmax()))
            logits[1, (turned[0] + 1) % logits.shape[1]] = logits[1].max() + 1
        return logits

    def draft(index):
        anew[index] = Anew(expected[index][0], index)
        return anew[index]

    monkeypatch.setattr(decoder, "run_branches", spoilt)
    questions = [Question(q, len(PREFIX), None, partial(draft, i)) for i, q in enumerate(QUESTIONS[:3])]
    written = answer_together(decoder, Plain(), read_prefix(decoder), questions, limits)
    assert [(w.token_ids, w.finish) for w in written] == expected
    assert list(anew) == [1]
    assert tuple(anew[1].told) == expected[1][0]


def test_rows_that_nobody_looks_at_leave_the_cache(decoder, monkeypatch):
    limits = Limits(frozenset([an_end(decoder, 4)]), 20)
    expected = [alone(decoder, question, limits) for question in QUESTIONS]

    def run(useless):
        monkeypatch.setattr(together, "USELESS", useless)
        cache = read_prefix(decoder)
        running = Together(decoder, cache, asked(QUESTIONS), limits)
        while running.step():
            assert len(running.owners) == cache.length
        assert [tuple(branch.token_ids) for branch in running.branches] == [ids for ids, _ in expected]
        return cache.length

    assert run(0.0) < run(1.0)


def test_keep_only(decoder):
    """The definition: rows of these tokens, in order."""
    cache = read_prefix(decoder)
    before, kept = cache.rows(0, len(PREFIX)), np.array([0, 1, 2, 5, 7, 10])
    cache.keep_only(kept)
    assert cache.length == 6
    np.testing.assert_array_equal(cache.rows(0, 6), before[:, :, kept])


def test_questions_longer_than_a_chunk(decoder, monkeypatch):
    limits = Limits(frozenset(), 6)
    expected = [alone(decoder, question, limits) for question in QUESTIONS[:5]]
    monkeypatch.setattr(decoder, "prefill_chunk", 4)
    written = answer_together(decoder, Plain(), read_prefix(decoder), asked(QUESTIONS[:5]), limits)
    assert [(w.token_ids, w.finish) for w in written] == expected


def test_deadline(decoder):
    late = Limits(frozenset(), 20, monotonic_ms() - 1)
    with pytest.raises(DeadlinePassed):
        answer_together(decoder, Plain(), read_prefix(decoder), asked(QUESTIONS[:2]), late)
    running = Together(decoder, read_prefix(decoder), asked(QUESTIONS[:3]), Limits(frozenset(), 20))
    assert running.step()
    running.limits = replace(running.limits, deadline_ms=monotonic_ms() - 1)
    assert not running.step()
    assert [branch.finish for branch in running.branches] == [Finish.DEADLINE] * 3
    assert [len(branch.token_ids) for branch in running.branches] == [2] * 3


def test_more_rows_than_one_answer_may_have(decoder):
    """Eight answers take more rows than `max_length`, which limits positions, not rows."""
    cache = read_prefix(decoder)
    written = answer_together(decoder, Plain(), cache, asked(QUESTIONS), Limits(frozenset(), 30))
    assert max(cache.touched, cache.length) > decoder.geometry.max_length
    assert [w.finish for w in written] == [Finish.LENGTH] * 8
