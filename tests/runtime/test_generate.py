"""Drafts never change an answer: whatever is foreseen, the tokens are those of decoding one by one."""

from collections import Counter

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from scipy.stats import chisquare

from rexthinker_edge.export.checkpoint import Checkpoint
from rexthinker_edge.export.decoder_graph import write_decoder
from rexthinker_edge.export.quantize import IntegerRecipe
from rexthinker_edge.kernels.native_operators import trouble
from rexthinker_edge.runtime.deadline import NEVER, Deadline, DeadlinePassed, monotonic_ms
from rexthinker_edge.runtime.decoder import Decoder
from rexthinker_edge.runtime.draft_cost import PassCosts
from rexthinker_edge.runtime.embeddings import Embeddings
from rexthinker_edge.runtime.errors import OptionError
from rexthinker_edge.runtime.generate import Finish, Generation, Limits, greedy, held, sampling
from rexthinker_edge.runtime.manifest import EMBEDDINGS
from rexthinker_edge.runtime.manner import Manner
from rexthinker_edge.runtime.positions import text_positions
from tests.runtime.test_decoder import CONFIG, WIDE, make_weights

PROMPT, COUNT, VOCAB = [1, 2, 3, 4, 5], 24, CONFIG.vocab


class Scripted:
    """Drafts what it is told to, pass by pass, and notes what it is told back."""

    def __init__(self, drafts):
        self.drafts, self.won, self.widths = list(drafts), [], []

    def propose(self, most):
        assert most > 0
        return self.drafts.pop(0)[:most] if self.drafts else []

    def chosen(self, tokens):
        self.won.append(list(tokens))

    def measured(self, tokens, ms):
        assert ms >= 0
        self.widths.append(tokens)


KINDS = {
    "fp32": (CONFIG, None),
    "int4": (CONFIG, IntegerRecipe(block=16)),
    "own": (WIDE, IntegerRecipe(block=32)),
}


@pytest.fixture(scope="module", params=KINDS)
def decoder(request, tmp_path_factory):
    directory, (config, recipe) = tmp_path_factory.mktemp(request.param), KINDS[request.param]
    save_file(make_weights(config), directory / "model.safetensors")
    geometry = write_decoder(Checkpoint(directory), config, directory, 96, recipe)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    embeddings = Embeddings(directory / EMBEDDINGS, geometry)
    return Decoder(directory / "decoder.onnx", embeddings, geometry, options)


def start(decoder, prompt=PROMPT, count=COUNT, end=(), drafts=None, choose=greedy):
    cache = decoder.new_cache(len(prompt) + count)
    logits = decoder.run(decoder.embed(prompt), text_positions(0, len(prompt)), cache)
    limits = Limits(frozenset(end), count)
    return Generation(decoder, cache, logits, len(prompt), limits, drafts, choose)


def answer(decoder, **arguments):
    generation = start(decoder, **arguments)
    assert list(generation) == [t for t in generation.token_ids if t not in arguments.get("end", ())]
    return generation


@pytest.fixture(scope="module")
def plain(decoder):
    return answer(decoder).token_ids


def test_held():
    logits = np.eye(5, dtype=np.float32)[[3, 1, 4, 2]]  # chooses 3, 1, 4, 2
    assert held(greedy, logits, [3, 1, 4], frozenset()) == [3, 1, 4, 2]
    assert held(greedy, logits, [3, 2, 4], frozenset()) == [3, 1]
    assert held(greedy, logits, [0, 1, 4], frozenset()) == [3]
    assert held(greedy, logits, [3, 1, 4], frozenset([1])) == [3, 1]
    assert held(greedy, logits[:1], [], frozenset()) == [3]


def test_a_pass_has_one_row_where_rows_are_alike_and_two_elsewhere(decoder, request, monkeypatch, plain):
    own = "own" in request.node.callspec.id and not trouble()
    assert decoder.rows_alike == own
    widths, run = [], decoder.run

    def counted(embeds, *others, **named):
        widths.append(len(embeds))
        return run(embeds, *others, **named)

    monkeypatch.setattr(decoder, "run", counted)
    assert answer(decoder).token_ids == plain
    assert widths == [len(PROMPT), *[1 if own else 2] * (COUNT - 1)]


def test_a_perfect_draft_is_taken_whole(decoder, plain):
    drafts = Scripted([plain[1:9], plain[10:12], plain[13:]])
    drafted = answer(decoder, drafts=drafts)
    assert drafted.token_ids == plain
    assert drafts.won == [plain[:1], plain[1:10], plain[10:13], plain[13:]]
    assert drafts.widths == [9, 3, COUNT - 13]
    assert (drafted.passes, drafted.drafted) == (4, 8 + 2 + COUNT - 14)
    assert drafted.finish is Finish.LENGTH


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_draft_changes_a_token(decoder, plain, data):
    """Random, truncated, overlong, half right, full of end and picture tokens."""
    at, drafts = 1, []
    end = data.draw(st.sampled_from([(), (plain[7],), (plain[-1], 0)]))
    for _ in range(data.draw(st.integers(0, 12))):
        right = plain[at : at + data.draw(st.integers(0, 9))]
        wrong = data.draw(
            st.lists(st.one_of(st.sampled_from([*end, VOCAB - 1]), st.integers(0, 59)), max_size=40)
        )
        drafts.append(right + wrong)
        at = min(at + len(right) + 1, COUNT)
    alone, drafted = answer(decoder, end=end), answer(decoder, end=end, drafts=Scripted(drafts))
    assert drafted.token_ids == alone.token_ids
    assert drafted.finish is alone.finish
    read = len(PROMPT) + len(alone.token_ids) - 1
    assert drafted.cache.length == alone.cache.length == read
    for ours, theirs in zip(drafted.cache.keys, alone.cache.keys, strict=True):
        np.testing.assert_array_equal(ours[:, :, :read], theirs[:, :, :read])


def test_the_same_at_the_end_of_the_table(decoder):
    prompt = [1 + i % 50 for i in range(80)]
    alone = answer(decoder, prompt=prompt, count=40)
    assert len(alone.token_ids) == 17  # 96 positions
    assert alone.cache.length == 96
    for cut in (1, 3, 16):
        drafts = Scripted([alone.token_ids[at + 1 : at + cut] for at in range(0, 17, cut)])
        drafted = answer(decoder, prompt=prompt, count=40, drafts=drafts)
        assert drafted.token_ids == alone.token_ids
        assert drafted.finish is Finish.LENGTH


def test_every_grouping_gives_the_same_bits(decoder):
    tokens = [(7 * i + 3) % 60 for i in range(40)]

    def read(widths):
        cache, rows, at = decoder.new_cache(64), [], 0
        for width in widths:
            positions = text_positions(at, width)
            rows.append(
                decoder.run(decoder.embed(tokens[at : at + width]), positions, cache, last_only=False)
            )
            at += width
        return np.concatenate(rows)

    whole = read([40])
    for widths in ([2] * 20, [3, 5, 32], [32, 6, 2], [16, 7, 8, 9], [4] * 10):
        np.testing.assert_array_equal(read(widths), whole)


def test_costs_are_measured_behind_the_prompt(decoder):
    generation = start(decoder, count=60)
    before = [k[:, :, : len(PROMPT)].copy() for k in generation.cache.keys]
    costs = PassCosts()
    costs.probe(decoder, generation.cache, 5)
    assert costs.exact is True
    assert generation.cache.length == len(PROMPT)
    for old, new in zip(before, generation.cache.keys, strict=True):
        np.testing.assert_array_equal(old, new[:, :, : len(PROMPT)])
    assert len(costs.costs) == costs.widest + 1
    assert 0 < costs.costs[2] <= costs.costs[8] <= costs.costs[costs.widest]


def test_a_deadline_ends_a_pass_and_a_measurement(decoder):
    """In the first measurement nothing is learnt and the cache left as it was; in a pass the text ends."""
    costs, cache = PassCosts(), decoder.new_cache(64)
    with pytest.raises(DeadlinePassed):
        costs.probe(decoder, cache, 0, Deadline(monotonic_ms() - 1))
    assert (costs.exact, costs.costs, cache.length) == (None, [], 0)
    costs.probe(decoder, cache, 0)
    assert costs.exact
    generation, spoken = start(decoder), []
    for token in generation:
        spoken.append(token)
        generation.deadline = Deadline(monotonic_ms() - 1)  # passes, though between passes none is seen
    assert generation.finish is Finish.DEADLINE
    assert generation.token_ids == spoken == spoken[:1]


def test_where_passes_differ_nothing_is_drafted(decoder):
    class Uneven:
        """A device whose wider passes round differently."""

        geometry, rows_alike, embed = decoder.geometry, decoder.rows_alike, staticmethod(decoder.embed)

        def run(self, embeds, positions, cache, last_only=True, deadline=NEVER):
            logits = decoder.run(embeds, positions, cache, last_only)
            return logits * np.float32(1 + (len(embeds) == 4) * 2e-7)

    costs = PassCosts()
    costs.probe(Uneven(), decoder.new_cache(64), 0)
    assert costs.exact is False
    full = PassCosts()
    cache = start(decoder, prompt=[1] * 80).cache
    full.probe(decoder, cache, 80)  # no room for 32 rows
    assert full.exact is None


@pytest.mark.parametrize("seed", [0, 3])
def test_sampling_with_drafts_draws_the_same(decoder, plain, seed):
    def drawn(drafts):
        return answer(decoder, drafts=drafts, choose=sampling(0.7, seed)).token_ids

    alone = drawn(None)
    assert drawn(Scripted([alone[1:7], [9, 9], alone[9:12]])) == alone
    assert drawn(Scripted([plain[i : i + 5] for i in range(1, COUNT)])) == alone
    assert alone != plain


class Toy:
    """A decoder whose logits depend on the last token alone."""

    def __init__(self, table):
        self.table = table
        self.geometry = type("Geometry", (), {"vocab": len(table), "max_length": 100})
        self.rows_alike = False

    def embed(self, tokens):
        return np.array(tokens)

    def run(self, embeds, positions, cache, last_only=True, deadline=NEVER):
        cache.length += len(embeds)
        return self.table[embeds]


class Length:
    length = 1

    def rewind(self, length):
        self.length = length


def test_sampling_is_exact_in_distribution():
    """Pairs of tokens drawn behind drafts of every kind, against their probabilities."""
    table = np.log(np.array([[5, 3, 2], [1, 1, 8], [4, 4, 2]], np.float32))
    temperature, draws = 1.5, 6000
    odds = np.exp(table.astype(np.float64) / temperature)
    odds /= odds.sum(1, keepdims=True)
    choose, rng, seen = sampling(temperature, 5), np.random.default_rng(1), Counter()
    for _ in range(draws):
        drafts = Scripted([rng.integers(0, 3, rng.integers(0, 4)).tolist() for _ in range(3)])
        generation = Generation(Toy(table), Length(), table[:1], 1, Limits(frozenset(), 3), drafts, choose)
        seen[tuple(generation)] += 1
    keys = [(a, b, c) for a in range(3) for b in range(3) for c in range(3)]
    expected = [draws * odds[0, a] * odds[a, b] * odds[b, c] for a, b, c in keys]
    # one seed, so the outcome is fixed; a wrong rule of acceptance gives 1e-20 and less
    assert chisquare([seen[key] for key in keys], expected).pvalue > 0.01


def test_unfit_manners_are_refused():
    Manner(True, 0.5, 3).check()
    for manner, message in [
        (Manner(drafting=1), "drafting: 1, True or False is needed"),
        (Manner(temperature=-1), "temperature: -1, a number from 0"),
        (Manner(temperature=float("nan")), "temperature: nan"),
        (Manner(temperature=True), "temperature: True"),
        (Manner(temperature=1, seed=-3), "seed: -3, a whole number from 0"),
        (Manner(temperature=1, seed=1.5), r"seed: 1\.5"),
        (Manner(seed=3), "seed: 3, but nothing is drawn at temperature 0"),
    ]:
        with pytest.raises(OptionError, match=message):
            manner.check()
