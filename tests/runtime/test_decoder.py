"""The kept KV cache: a prefix hit equals a cold run bit for bit, whatever happened in between."""

from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest
from safetensors.numpy import save_file

from rexthinker_edge.export.checkpoint import Checkpoint
from rexthinker_edge.export.config import TextConfig
from rexthinker_edge.export.decoder_graph import write_decoder
from rexthinker_edge.kernels.grouped_query_attention import grouped_query_attention
from rexthinker_edge.kernels.linear import linear
from rexthinker_edge.kernels.mrope import mrope, rotary_table
from rexthinker_edge.kernels.rms_norm import rms_norm
from rexthinker_edge.kernels.swiglu import swiglu
from rexthinker_edge.runtime import generate
from rexthinker_edge.runtime.deadline import NEVER
from rexthinker_edge.runtime.decoder import Decoder
from rexthinker_edge.runtime.embeddings import Embeddings, place_image
from rexthinker_edge.runtime.errors import BundleError, TextError
from rexthinker_edge.runtime.generate import Finish, Generation, Limits
from rexthinker_edge.runtime.manifest import EMBEDDINGS
from rexthinker_edge.runtime.positions import mrope_positions, text_positions

CONFIG = TextConfig(
    hidden=48, layers=2, heads=6, kv_heads=2, intermediate=64, vocab=60, rms_norm_eps=1e-5,
    rope_theta=100.0, mrope_section=(1, 1, 2), max_position_embeddings=96, tied=True,
)  # fmt: skip
# Heads of 32 channels, which our own operators have.
WIDE = replace(CONFIG, hidden=64, heads=2, kv_heads=1, mrope_section=(4, 6, 6))
PAD = 59
PREFIX = [1, 2, *[PAD] * 6, 3, 4, 5, 6, 7]
SUFFIXES = [[10, 11], [12], [10, 13, 14, 15, 16], [11, 10]]


def make_weights(config=CONFIG):
    rng, size = np.random.default_rng(8), config.hidden
    kv = config.kv_heads * config.head_dim
    shapes = {"q_proj": (size, size), "k_proj": (kv, size), "v_proj": (kv, size), "o_proj": (size, size)}
    made = {
        "model.embed_tokens.weight": rng.standard_normal((60, size)),
        "model.norm.weight": rng.uniform(0.5, 2, size),
    }
    for layer in range(CONFIG.layers):
        name = f"model.layers.{layer}"
        for part, shape in shapes.items():
            made[f"{name}.self_attn.{part}.weight"] = rng.standard_normal(shape) / 5
            if part != "o_proj":
                made[f"{name}.self_attn.{part}.bias"] = rng.standard_normal(shape[0])
        for part, shape in {"gate_proj": (64, size), "up_proj": (64, size), "down_proj": (size, 64)}.items():
            made[f"{name}.mlp.{part}.weight"] = rng.standard_normal(shape) / 5
        for part in ("input_layernorm", "post_attention_layernorm"):
            made[f"{name}.{part}.weight"] = rng.uniform(0.5, 2, size)
    return {name: array.astype(np.float32) for name, array in made.items()}


@pytest.fixture(scope="module")
def weights():
    return make_weights()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, weights):
    """A decoder on disk: its directory and geometry."""
    directory = tmp_path_factory.mktemp("decoder")
    save_file(weights, directory / "model.safetensors")
    return directory, write_decoder(Checkpoint(directory), CONFIG, directory, 96, None)


def open_decoder(bundle, **arguments):
    directory, geometry = bundle
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    embeddings = Embeddings(directory / EMBEDDINGS, geometry)
    return Decoder(directory / "decoder.onnx", embeddings, geometry, options, **arguments)


@pytest.fixture(scope="module")
def decoder(bundle):
    return open_decoder(bundle)


def read_prefix(decoder, capacity=64):
    """A scene: prefix pass over text and a picture of 2 x 3 tokens."""
    positions, following = mrope_positions(PREFIX, PAD, [(1, 4, 6)])
    features = np.random.default_rng(4).standard_normal((6, 48)).astype(np.float32)
    cache = decoder.new_cache(capacity)
    decoder.run(place_image(decoder.embed(PREFIX), PREFIX, PAD, features), positions, cache)
    return cache, following


def answer(decoder, cache, following, suffix, count=8):
    """Rewind, suffix pass, generation: all logits and the tokens."""
    cache.rewind(len(PREFIX))
    logits = decoder.run(decoder.embed(suffix), text_positions(following, len(suffix)), cache)
    seen = [logits]
    generation = Generation(decoder, cache, logits, following + len(suffix), Limits(frozenset(), count))
    for _ in generation:
        seen.append(generation.logits)
    return np.concatenate(seen), generation.token_ids


def reference(weights, ids, positions, embeds=None):
    """The decoder in NumPy, from the kernels' definitions: (S, vocab)."""
    width, count = CONFIG.head_dim, len(ids)
    cos, sin = rotary_table(CONFIG.rope_theta, width, 96)
    x = weights["model.embed_tokens.weight"][ids] if embeds is None else embeds
    for layer in range(CONFIG.layers):
        part = {k.removeprefix(f"model.layers.{layer}."): v for k, v in weights.items()}
        normed = rms_norm(x, part["input_layernorm.weight"], CONFIG.rms_norm_eps)
        q, k, v = (
            linear(normed, part[f"self_attn.{p}_proj.weight"], part[f"self_attn.{p}_proj.bias"]).reshape(
                count, -1, width
            )
            for p in "qkv"
        )
        q, k = (mrope(t, positions, cos, sin, CONFIG.mrope_section) for t in (q, k))
        caches = [np.zeros((CONFIG.kv_heads, count, width), np.float32) for _ in range(2)]
        attended = grouped_query_attention(q, k, v, *caches, 0).reshape(count, -1)
        x = x + linear(attended, part["self_attn.o_proj.weight"])
        normed = rms_norm(x, part["post_attention_layernorm.weight"], CONFIG.rms_norm_eps)
        gated = swiglu(
            linear(normed, part["mlp.gate_proj.weight"]), linear(normed, part["mlp.up_proj.weight"])
        )
        x = x + linear(gated, part["mlp.down_proj.weight"])
    return linear(
        rms_norm(x, weights["model.norm.weight"], CONFIG.rms_norm_eps), weights["model.embed_tokens.weight"]
    )


def test_logits_equal_the_definitions(decoder, weights):
    ids = np.array([5, 6, *[PAD] * 4, 7, 8, 9])
    positions, _ = mrope_positions(ids, PAD, [(1, 4, 4)])
    ours = decoder.run(decoder.embed(ids), positions, decoder.new_cache(9), last_only=False)
    theirs = reference(weights, ids, positions)
    # Sums of at most 64 terms, some ten in a row a layer, two layers: 8 * 20 eps of the largest logit.
    assert np.abs(ours - theirs).max() <= 160 * np.finfo(np.float32).eps * np.abs(theirs).max()


def test_prefix_hit_equals_cold_run_bit_for_bit(decoder):
    """Every suffix after every other one, against a fresh scene."""
    cold = {}
    for number, suffix in enumerate(SUFFIXES):
        cache, following = read_prefix(decoder)
        cold[number] = answer(decoder, cache, following, suffix)
    cache, following = read_prefix(decoder)
    for number in np.random.default_rng(0).integers(0, len(SUFFIXES), 24):
        logits, tokens = answer(decoder, cache, following, SUFFIXES[number])
        np.testing.assert_array_equal(logits, cold[number][0])
        assert tokens == cold[number][1]
    assert len({tuple(tokens) for _, tokens in cold.values()}) > 1  # the suffix does matter


def test_rows_behind_the_length_do_not_matter(decoder):
    cache, following = read_prefix(decoder)
    clean, _ = answer(decoder, cache, following, SUFFIXES[0])
    for keys, values in zip(cache.keys, cache.values, strict=True):
        keys[:, :, len(PREFIX) :] = np.nan
        values[:, :, len(PREFIX) :] = np.inf
    dirty, _ = answer(decoder, cache, following, SUFFIXES[0])
    np.testing.assert_array_equal(clean, dirty)


def test_nothing_is_copied_but_new_rows(decoder):
    cache, following = read_prefix(decoder)
    before = [k.copy() for k in cache.keys], [id(k) for k in cache.keys]
    answer(decoder, cache, following, SUFFIXES[2], count=3)
    assert [id(k) for k in cache.keys] == before[1]
    for old, new in zip(before[0], cache.keys, strict=True):
        np.testing.assert_array_equal(old[:, :, : len(PREFIX)], new[:, :, : len(PREFIX)])
        written = (new != old).any(axis=(0, 1, 3))
        # suffix of 5 and 2 of the 3 generated tokens: the last one is never read; and one row of company,
        # for no pass has a single row
        assert written.nonzero()[0].tolist() == list(range(len(PREFIX), len(PREFIX) + 8))


def test_a_cache_that_grows_gives_the_same(decoder):
    roomy, following = read_prefix(decoder, capacity=64)
    tight, _ = read_prefix(decoder, capacity=len(PREFIX))
    assert tight.capacity == len(PREFIX)
    ours, theirs = (answer(decoder, cache, following, SUFFIXES[1]) for cache in (tight, roomy))
    np.testing.assert_array_equal(ours[0], theirs[0])
    assert ours[1] == theirs[1]


def test_chunks_read_the_same_prompt(bundle, decoder):
    chunked = open_decoder(bundle, prefill_chunk=4)
    positions, _ = mrope_positions(PREFIX, PAD, [(1, 4, 6)])
    embeds = decoder.embed(PREFIX)
    whole = decoder.run(embeds, positions, decoder.new_cache(20), last_only=False)
    cache = chunked.new_cache(20)
    parts = chunked.run(embeds, positions, cache, last_only=False)
    assert cache.length == len(PREFIX)
    # other matrix shapes, other order of sums: as in test_logits_equal_the_definitions
    assert np.abs(whole - parts).max() <= 160 * np.finfo(np.float32).eps * np.abs(whole).max()
    np.testing.assert_array_equal(parts[-1:], chunked.run(embeds, positions, chunked.new_cache(20)))
    cache.rewind(0)
    np.testing.assert_array_equal(parts, chunked.run(embeds, positions, cache, last_only=False))
    assert cache.length == len(PREFIX)


def test_too_long_a_prompt_is_refused_and_changes_nothing(decoder):
    cache, following = read_prefix(decoder)
    with pytest.raises(TextError, match="97 tokens with what went before, the bundle allows 96"):
        decoder.run(decoder.embed([1] * 84), text_positions(following, 84), cache)
    assert cache.length == len(PREFIX)
    assert decoder.new_cache(10_000).capacity == 96


def test_generation_limits(decoder, monkeypatch):
    cache, following = read_prefix(decoder)
    _, tokens = answer(decoder, cache, following, SUFFIXES[0], count=6)

    def start(limits):
        cache.rewind(len(PREFIX))
        logits = decoder.run(decoder.embed(SUFFIXES[0]), text_positions(following, 2), cache)
        return Generation(decoder, cache, logits, following + 2, limits)

    cut = start(Limits(frozenset(), 6))
    assert list(cut) == tokens
    assert (cut.finish, cut.passes) == (Finish.LENGTH, 6)

    stop = next(i for i in range(1, 6) if tokens[i] not in tokens[:i])
    ended = start(Limits(frozenset([tokens[stop]]), 6))
    assert list(ended) == tokens[:stop]  # the end token is not yielded …
    assert ended.token_ids == tokens[: stop + 1]  # … but recorded
    assert (ended.finish, ended.passes) == (Finish.STOP, stop + 1)

    clock = iter(range(100))
    monkeypatch.setattr(generate, "monotonic_ms", lambda: float(next(clock)))
    late = start(Limits(frozenset(), 6, deadline_ms=3.0))
    late.deadline = NEVER  # inside passes the true clock counts
    assert list(late) == tokens[:2]  # asked at 0 and 1, 2 and 3: before each token and before each pass
    assert (late.finish, late.passes) == (Finish.DEADLINE, 2)
    never = start(Limits(frozenset(), 6, deadline_ms=0.0))
    assert list(never) == []
    assert never.finish is Finish.DEADLINE


def test_generation_ends_where_the_table_ends(decoder):
    cache, following = read_prefix(decoder)
    logits = decoder.run(decoder.embed([1] * 80), text_positions(following, 80), cache)
    generation = Generation(decoder, cache, logits, following + 80, Limits(frozenset(), 50))
    # 96 positions, 93 read: three more passes, and the token the last of them gives
    assert len(list(generation)) == 4
    assert generation.finish is Finish.LENGTH
    assert cache.length == 96


def test_embeddings(tmp_path, bundle, weights):
    directory, geometry = bundle
    table = Embeddings(directory / EMBEDDINGS, geometry)
    np.testing.assert_array_equal(table.lookup([3, 3, 59]), weights["model.embed_tokens.weight"][[3, 3, 59]])
    path = tmp_path / "embeddings.bin"
    path.write_bytes(b"\x80\x3f\x49\xc0")
    small = replace(geometry, vocab=2, hidden=1, embedding_dtype="bfloat16")
    assert Embeddings(path, small).lookup([1, 0]).tolist() == [[-3.140625], [1.0]]
    with pytest.raises(BundleError, match="4 bytes, the manifest's table needs 8"):
        Embeddings(path, replace(small, embedding_dtype="float32"))
    with pytest.raises(BundleError, match="embedding_dtype is 'int3'"):
        Embeddings(path, replace(small, embedding_dtype="int3"))
