"""The token table in every precision: what is written is what the runtime reads, row by row."""

import numpy as np
import pytest

from rexthinker_edge.export.checkpoint import Tensor
from rexthinker_edge.export.embeddings import EmbeddingPrecision, embedding_bytes, write_embeddings
from rexthinker_edge.runtime.decoder_geometry import DecoderGeometry
from rexthinker_edge.runtime.embeddings import Embeddings
from rexthinker_edge.runtime.errors import BundleError

VOCAB, HIDDEN = 600, 72  # more than one slice of rows, and a last block that is not full


def geometry(stored):
    return DecoderGeometry(1, HIDDEN, 2, 1, 36, VOCAB, (6, 6, 6), 1e4, 16, stored)


@pytest.mark.parametrize(("precision", "share"), [("kept", 0.0), ("int8", 0.5 / 127), ("int4", 0.51 / 7)])
def test_rows_read_are_rows_written(tmp_path, precision, share):
    rng, path = np.random.default_rng(3), tmp_path / "embeddings.bin"
    table = rng.normal(size=(VOCAB, HIDDEN)).astype(np.float32)
    stored = write_embeddings(Tensor.from_array("table", table), path, EmbeddingPrecision(precision))
    assert stored == ("float32" if precision == "kept" else precision)
    if precision != "kept":
        wanted = embedding_bytes(VOCAB, HIDDEN, EmbeddingPrecision(precision))
        assert path.stat().st_size == wanted
    ids = [0, 511, 512, 599, 3]
    found = Embeddings(path, geometry(stored)).lookup(ids)
    assert found.dtype == np.float32
    # half a step of the row's (int8) or the block's (int4) greatest value; float32 divides it exactly enough
    assert np.abs(found - table[ids]).max() <= share * np.abs(table[ids]).max() * 1.001


def test_pinned_bytes():
    assert embedding_bytes(152_064, 3_584, EmbeddingPrecision.INT8) == 545_605_632
    assert embedding_bytes(152_064, 3_584, EmbeddingPrecision.INT4) == 306_561_024


def test_a_cut_table_is_refused(tmp_path):
    path = tmp_path / "embeddings.bin"
    table = np.ones((VOCAB, HIDDEN), np.float32)
    write_embeddings(Tensor.from_array("table", table), path, EmbeddingPrecision.INT4)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(
        BundleError, match=f"{len(whole) - 1:,} bytes, the manifest's table needs {len(whole):,}"
    ):
        Embeddings(path, geometry("int4"))
