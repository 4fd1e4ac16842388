"""Large arrays take memory only where they are written, and give all of it back."""

import gc
import mmap
import resource
from pathlib import Path

import numpy as np
import pytest

from rexthinker_edge.runtime.decoder_geometry import DecoderGeometry
from rexthinker_edge.runtime.kv_cache import KVCache, row_bytes
from rexthinker_edge.runtime.pages import paged_copy, paged_zeros

STATUS = Path("/proc/self/statm")
MIB = 1 << 20
GEOMETRY = DecoderGeometry(2, 64, 4, 1, 16, 100, (2, 3, 3), 1e4, 512, "float32")


def resident_bytes() -> int:
    gc.collect()
    return int(STATUS.read_text(encoding="ascii").split()[1]) * resource.getpagesize()


@pytest.mark.parametrize(("shape", "dtype"), [((2, 3, 5), np.float32), ((7,), np.int8), ((0, 4), np.float32)])
def test_an_array_like_any_other(shape: tuple[int, ...], dtype: type) -> None:
    made = paged_zeros(shape, dtype)
    np.testing.assert_array_equal(made, np.zeros(shape, dtype))
    assert (made.dtype, made.flags.writeable, made.flags.c_contiguous) == (dtype, True, True)
    assert made.ctypes.data % mmap.PAGESIZE == 0
    made[...] = 3
    copied = paged_copy(made)
    made[...] = 4
    np.testing.assert_array_equal(copied, np.full(shape, 3, dtype))


def test_no_room_is_a_memory_error() -> None:
    with pytest.raises(MemoryError):
        paged_zeros((1 << 60,), np.int8)


def test_a_process_that_may_have_no_more_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refuse)
    np.testing.assert_array_equal(paged_zeros((2, 3)), np.zeros((2, 3), np.float32))


def test_a_cache_is_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, real = [], mmap.mmap
    monkeypatch.setattr(mmap, "mmap", lambda *a, **k: taken.append(a[1]) or real(*a, **k))
    cache = KVCache(GEOMETRY, 100)
    assert taken == [100 * row_bytes(GEOMETRY)]
    cache.append(np.ones((2 * GEOMETRY.layers, GEOMETRY.kv_heads, 3, GEOMETRY.head_dim), np.float32))
    assert all(part.flags.c_contiguous for part in (*cache.keys, *cache.values))
    assert [int(part[0, :, :5].sum()) for part in (*cache.keys, *cache.values)] == [48] * 4  # 3 x 16 ones


@pytest.mark.skipif(not STATUS.exists(), reason="needs /proc")
def test_what_is_not_written_takes_no_memory_and_what_goes_gives_it_back() -> None:
    # After a large block was freed, glibc serves such sizes from its heap, and zeros there are written out.
    for size in (1, 2, 4, 8, 16, 24):
        np.ones(size * MIB, np.int8)
    rows = 40 * MIB // (16 * row_bytes(GEOMETRY))
    before = resident_bytes()
    caches = [KVCache(GEOMETRY, 1) for _ in range(16)]
    for cache in caches:
        cache.reserve(rows, branches=True)
    assert resident_bytes() - before < 4 * MIB  # of 40
    held = [paged_copy(np.ones(MIB // 4, np.int8)) for _ in range(64)]
    del held[::2], caches
    assert resident_bytes() - before < 10 * MIB  # 32 of 64 quarters are left, with holes between them
