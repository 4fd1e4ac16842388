"""A decoder with our own operators in it: only they change, and the answers' numbers stay."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from rexthinker_edge.kernels import native_operators
from rexthinker_edge.kernels.native_operators import DOMAIN, trouble
from rexthinker_edge.runtime import decoder as decoders
from rexthinker_edge.runtime import native_graph as native
from rexthinker_edge.runtime import opening
from rexthinker_edge.runtime.decoder import Decoder
from rexthinker_edge.runtime.decoder_geometry import DecoderGeometry
from rexthinker_edge.runtime.embeddings import Embeddings
from rexthinker_edge.runtime.errors import BundleError
from rexthinker_edge.runtime.native_graph import native_graph
from rexthinker_edge.runtime.opening import LateSession, open_session, session_options
from rexthinker_edge.runtime.overhead import LENGTH, VOCAB, WIDTH, tiny_decoder
from rexthinker_edge.runtime.positions import text_positions

needs_products = pytest.mark.skipif(bool(trouble()), reason=f"our products are not used here: {trouble()}")
CPU = ["CPUExecutionProvider"]


@pytest.fixture
def path(tmp_path):
    place = tmp_path / "decoder.onnx"
    place.write_bytes(tiny_decoder(2, int4=True))
    return place


def changed(path, **attributes):
    """The decoder with attributes of its first product set otherwise."""
    model = onnx.load_from_string(tiny_decoder(2, int4=True))
    node = next(node for node in model.graph.node if node.op_type == "MatMulNBits")
    for attribute in node.attribute:
        attribute.i = attributes.get(attribute.name, attribute.i)
    path.write_bytes(model.SerializeToString())
    return path


@needs_products
def test_only_products_change(path):
    before, after = onnx.load_from_string(path.read_bytes()), onnx.load_from_string(native_graph(path).model)
    assert {entry.domain for entry in after.opset_import} >= {DOMAIN}
    changes = 0
    for old, new in zip(before.graph.node, after.graph.node, strict=True):
        assert (old.op_type, list(old.input), list(old.output)) == (
            new.op_type, list(new.input), list(new.output)
        )  # fmt: skip
        assert {a.name: a.i for a in old.attribute} == {a.name: a.i for a in new.attribute}
        changes += old.domain != new.domain
        assert new.domain == (DOMAIN if old.op_type == "MatMulNBits" else old.domain)
    assert changes == 15
    assert len(after.graph.initializer) == len(before.graph.initializer)


@needs_products
def test_what_the_operator_has_not_is_left(path):
    for attributes in ({"accuracy_level": 0}, {"bits": 2}, {"block_size": 16}):
        after = onnx.load_from_string(native_graph(changed(path, **attributes)).model)
        kinds = [node.domain for node in after.graph.node if node.op_type == "MatMulNBits"]
        assert (kinds[0], set(kinds[1:])) == ("com.microsoft", {DOMAIN})
    ordered = onnx.load_from_string(tiny_decoder(2, int4=True))
    node = next(node for node in ordered.graph.node if node.op_type == "MatMulNBits")
    node.input.append("order")
    path.write_bytes(ordered.SerializeToString())
    left = [item.domain for item in onnx.load_from_string(native_graph(path).model).graph.node if item.domain]
    assert left.count(DOMAIN) == 14


def test_a_decoder_in_floats_stays_as_it_is(path):
    path.write_bytes(tiny_decoder(2, int4=False))
    assert native_graph(path) is None


def test_without_the_library_onnx_runtimes_products_run(path, monkeypatch):
    monkeypatch.setattr(native, "trouble", lambda: "not built")
    assert native_graph(path) is None
    monkeypatch.setattr(opening, "trouble", lambda: "not built")
    assert isinstance(open_session(path, None, CPU), ort.InferenceSession)


def test_no_graph_is_told(path):
    path.write_bytes(b"\x07\x07\x07")
    if trouble():
        assert native_graph(path) is None
    else:
        with pytest.raises(BundleError, match=r"decoder\.onnx: .* an ONNX graph is needed"):
            native_graph(path)


@needs_products
def test_logits_stay_and_nothing_is_packed_late(path, tmp_path, monkeypatch):
    """Weights of no meaning give equal logits whatever is asked: real ones are in them here."""
    model = onnx.load_from_string(path.read_bytes())
    rng = np.random.default_rng(0)
    for weight in model.graph.initializer:
        if weight.data_type == onnx.TensorProto.UINT8:
            weight.raw_data = rng.integers(0, 256, len(weight.raw_data), np.uint8).tobytes()
    path.write_bytes(model.SerializeToString())
    table = tmp_path / "embeddings.bin"
    table.write_bytes(rng.normal(size=(VOCAB, WIDTH)).astype(np.float32).tobytes())
    geometry = DecoderGeometry(2, WIDTH, 4, 2, 16, VOCAB, (2, 3, 3), 1e4, LENGTH, "float32", branches=False)
    monkeypatch.setattr(opening, "LATE_BYTES", -1)
    found = []
    for own in (True, False):
        if not own:
            monkeypatch.setattr(decoders, "native_graph", lambda path: None)
        decoder = Decoder(path, Embeddings(table, geometry), geometry, session_options(1))
        assert not isinstance(decoder.session, LateSession)
        assert not decoder.rows_alike  # heads of 16 channels are ONNX Runtime's
        cache = decoder.new_cache(LENGTH)
        tokens = [3, 200, 17, 4, 90]
        found.append(decoder.run(decoder.embed(tokens), text_positions(0, 5), cache, last_only=False))
    ours, theirs = found
    assert np.abs(ours).max() > 0.1
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(ours).max()


@needs_products
def test_rates_are_those_of_the_products_that_run():
    assert native_operators.product_domain() == DOMAIN
