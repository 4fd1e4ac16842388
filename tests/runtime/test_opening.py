"""A large graph is checked when it is opened and packed behind; it then does what a plain session does."""

import threading

import numpy as np
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as refusals

from rexthinker_edge.runtime import opening
from rexthinker_edge.runtime.errors import BundleError
from rexthinker_edge.runtime.opening import LateSession, open_session, start_packing
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
