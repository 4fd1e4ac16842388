"""A large graph is checked when it is opened and packed behind; it then does what a plain session does."""

import shutil
import threading
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as refusals

from rexthinker_edge.runtime import manifest as manifests
from rexthinker_edge.runtime import opening, parts
from rexthinker_edge.runtime.bundle import open_bundle
from rexthinker_edge.runtime.detector import Detector
from rexthinker_edge.runtime.errors import BundleError
from rexthinker_edge.runtime.opening import LateSession, open_session, session_options, start_packing
from rexthinker_edge.runtime.thinker import load, small_bundle

PROVIDERS = ("CPUExecutionProvider",)


def packing():
    return [thread for thread in threading.enumerate() if thread.name.startswith("opening ")]


def test_small_graphs_are_opened_at_once():
    made = open_session(small_bundle() / "vision.onnx", None, PROVIDERS)
    assert not isinstance(made, LateSession)
    start_packing(made)


def test_a_late_session_answers_as_a_plain_one(monkeypatch):
    path = small_bundle() / "vision.onnx"
    plain = open_session(path, None, PROVIDERS)
    monkeypatch.setattr(opening, "LATE_BYTES", 1000)
    late = open_session(path, None, PROVIDERS)
    assert isinstance(late, LateSession)
    assert [node.name for node in late.get_inputs()] == [node.name for node in plain.get_inputs()]
    assert late.get_providers() == plain.get_providers()
    assert not packing()
    start_packing(late)
    start_packing(late)  # once is enough
    assert late.get_modelmeta().graph_name == plain.get_modelmeta().graph_name
    with pytest.raises(AttributeError):
        late._nothing  # noqa: B018


def test_how_sessions_are_opened_moves_no_bit():
    """The detector, the graph with most buffers to take over, beside ONNX Runtime's own way to open it."""
    opened, picture = (
        open_bundle(small_bundle()),
        np.random.default_rng(3).integers(0, 255, (90, 120, 3), np.uint8),
    )
    plain = onnxruntime.SessionOptions()
    plain.intra_op_num_threads = 1
    ours = session_options(1)
    assert (ours.enable_mem_reuse, ours.intra_op_num_threads) == (False, 1)
    found = []
    for options in (plain, ours):
        tokenizer = opened.file(manifests.DETECTOR_TOKENIZER)
        detector = Detector(opened.file(manifests.DETECTOR), tokenizer, opened.manifest.detector, options)
        found.append([np.asarray(part).tobytes() for part in detector.raw(picture, "ball")])
    assert found[0] == found[1]


def test_a_graph_that_reaches_outside_is_never_opened(tmp_path, monkeypatch):
    """Graphs are checked one by one while others are being opened: still each before ONNX Runtime sees it."""
    copy, seen = tmp_path / "copy", list[str]()
    shutil.copytree(small_bundle(), copy)
    plain = onnxruntime.InferenceSession

    def check(path, sizes):
        if path.name == manifests.VISION:
            raise BundleError("outside")
        seen.append(f"checked {path.name}")

    def note(path, *given, **named):
        seen.append(f"opened {Path(path).name}")
        return plain(path, *given, **named)

    monkeypatch.setattr(parts, "check_graph", check)
    monkeypatch.setattr(onnxruntime, "InferenceSession", note)
    with pytest.raises(BundleError, match="outside"):
        load(copy, threads=1)
    assert not [line for line in seen if line.endswith((manifests.VISION, manifests.DECODER))]
    for name in (manifests.DETECTOR, manifests.DETECTOR_TEXT):
        assert seen.index(f"checked {name}") < seen.index(f"opened {name}")


def test_a_whole_bundle_answers_the_same(monkeypatch):
    picture = np.full((112, 112, 3), 200, np.uint8)
    boxes = [[5, 5, 50, 50], [60, 60, 100, 100]]
    answers = []
    for bytes_ in (opening.LATE_BYTES, 1000):
        monkeypatch.setattr(opening, "LATE_BYTES", bytes_)
        answers.append(load(threads=1).look(picture, "ball", boxes).refer("the left ball", max_new_tokens=8))
    assert answers[0].token_ids == answers[1].token_ids


def test_what_packing_meets_is_told_at_the_first_use(monkeypatch):
    path = small_bundle() / "vision.onnx"
    late = LateSession(path, None, PROVIDERS)

    def refuse(*_, **__):
        raise refusals.Fail("no memory left")

    monkeypatch.setattr(opening.ort, "InferenceSession", refuse)
    with pytest.raises(
        BundleError, match=r"small/vision.onnx: ONNX Runtime .* cannot open it \(no memory left"
    ):
        late.run(None, {})
