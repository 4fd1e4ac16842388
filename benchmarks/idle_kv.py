"""What it costs and wins to keep idle keys and values in 8 bits (`rex.load(idle_kv="int8")`).

Layout    Each held-out workbench item is answered from its own prefix; then the prefix's rows are kept in 8
          bits and put back, the same answer is read behind them, every token's distribution compared, and
          the question asked again. Bytes and times of keeping and putting back stand beside, of the bundle's
          shape and of the 7B's.
Contract  Rows are kept by kept_rows.py, as the prefix tree keeps them. Times are of the calling thread.
Elsewhere keeping: runtime/prefix_tree.py, runtime/kept_rows.py; figures: docs/scenes.md.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.calibration.workbench.dataset import EVALUATION_SEED
from rexthinker_edge.calibration.workbench.items import make_item
from rexthinker_edge.calibration.workbench.render import render
from rexthinker_edge.runtime.decoder_geometry import DecoderGeometry
from rexthinker_edge.runtime.generate import Generation, Limits
from rexthinker_edge.runtime.kept_rows import STORAGES, expand, keep
from rexthinker_edge.runtime.kv_cache import KVCache, row_bytes
from rexthinker_edge.runtime.positions import text_positions
from rexthinker_edge.runtime.prompt import suffix
from rexthinker_edge.runtime.thinker import Thinker, load

REPEATS = 5


@dataclass(frozen=True)
class Asked:
    """One item answered behind exact and behind packed rows."""

    divergences: NDArray[np.float64]  # KL, nats, a token of the exact answer
    flips: int  # tokens whose likeliest is another
    answers: tuple[tuple[int, ...], tuple[int, ...]]


def ask(thinker: Thinker, index: int) -> Asked:
    """Answer item `index` behind exact rows, and compare what follows packed ones."""
    item = make_item("easy" if index % 2 else "full", EVALUATION_SEED, index)
    boxes = np.array([item.scene.things[k].box for k in item.candidates])
    scene = thinker.look(render(item.scene), item.category, boxes=boxes)
    language, prompt, expression = thinker._parts.language, scene._prompt, item.question.expression
    assert prompt is not None
    question = language.tokenizer.encode_parts(suffix(language.prompt.wording, expression))
    limits = Limits(frozenset(language.tokens.eos), language.prompt.max_new_tokens)
    with thinker._looker.tree.lend(prompt.segments, limits.max_new_tokens + len(question)) as lent:
        exact = lent.cache
        packed = language.decoder.new_cache(exact.capacity)
        packed.append(expand(keep(exact.rows(0, prompt.length), "int8")))
        caches = (exact, packed)
        written = [_answer(thinker, cache, question, prompt.next_position, limits) for cache in caches]
        ids = [*question, *written[0][:-1]]
        rows = np.arange(len(question) - 1, len(ids))
        seen = []
        for cache in caches:
            cache.rewind(prompt.length)
            positions = text_positions(prompt.next_position, len(ids))
            logits = language.decoder.run_rows(language.decoder.embed(ids), positions, rows, cache)
            seen.append(_log_shares(logits))
            cache.rewind(prompt.length)
    divergences = (np.exp(seen[0]) * (seen[0] - seen[1])).sum(axis=1)
    flips = int((seen[0].argmax(axis=1) != seen[1].argmax(axis=1)).sum())
    return Asked(divergences, flips, (written[0], written[1]))


def _answer(
    thinker: Thinker, cache: KVCache, question: list[int], position: int, limits: Limits
) -> tuple[int, ...]:
    decoder = thinker._parts.language.decoder
    logits = decoder.run(decoder.embed(question), text_positions(position, len(question)), cache)
    generation = Generation(decoder, cache, logits, position + len(question), limits)
    for _ in generation:
        pass
    return tuple(generation.token_ids)


def _log_shares(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Logarithms of softmax, (R, vocab)."""
    raised = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(raised - np.log(np.exp(raised).sum(axis=1, keepdims=True)))


def costs(geometry: DecoderGeometry, tokens: int) -> dict[str, Any]:
    """Bytes of a prefix at rest, and milliseconds to put it to rest and back, by storage."""
    rng = np.random.default_rng(0)
    shape = (2 * geometry.layers, geometry.kv_heads, tokens, geometry.head_dim)
    cache = KVCache(geometry, tokens)
    cache.append(rng.standard_normal(shape, np.float32))
    found: dict[str, Any] = {"tokens": tokens, "cache_bytes": tokens * row_bytes(geometry)}
    for storage in STORAGES:
        kept = keep(cache.rows(0, tokens), storage)

        def back(kept: Any = kept) -> None:
            cache.rewind(0)
            cache.append(expand(kept))

        rest = _least_ms(lambda storage=storage: keep(cache.rows(0, tokens), storage))  # type: ignore[misc]
        found[storage] = {"bytes": kept.nbytes, "rest_ms": rest, "back_ms": _least_ms(back)}
    return found


def _least_ms(work: Callable[[], object]) -> float:
    """The quickest of some runs: what disturbs only adds."""
    seen = []
    for _ in range(REPEATS):
        begun = time.thread_time()
        work()
        seen.append((time.thread_time() - begun) * 1000)
    return round(min(seen), 2)


def summary(asked: list[Asked]) -> dict[str, Any]:
    """The figures over all items."""
    every = np.concatenate([one.divergences for one in asked])
    return {
        "items": len(asked),
        "tokens": len(every),
        "kl_mean": float(every.mean()),
        "kl_p99": float(np.percentile(every, 99)),
        "kl_most": float(every.max()),
        "flips": sum(one.flips for one in asked),
        "answers_that_differ": sum(one.answers[0] != one.answers[1] for one in asked),
        "answer_tokens": statistics.median(len(one.answers[0]) for one in asked),
    }


def main() -> int:
    """`python -m rexthinker_edge.benchmarks.idle_kv`: one JSON object."""
    parser = argparse.ArgumentParser(description="Idle keys and values in 8 bits against exact ones.")
    parser.add_argument("--bundle", type=Path, help="its directory; the small bundled model when left out")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=1400, help="of the prefix that is timed")
    arguments = parser.parse_args()
    thinker = load(arguments.bundle, threads=arguments.threads)
    asked = [ask(thinker, index) for index in range(arguments.count)]
    bundle = thinker.describe()["bundle"]
    large = DecoderGeometry(28, 3584, 28, 4, 128, 152_064, (16, 24, 24), 1_000_000.0, 4096, "int8")
    told = {"bundle": bundle["name"], "digest": bundle["digest"][:12], "threads": arguments.threads}
    told |= summary(asked) | {"here": costs(thinker._parts.language.decoder.geometry, arguments.tokens)}
    print(json.dumps(told | {"7b": costs(large, arguments.tokens)}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
