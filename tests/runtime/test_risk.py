"""Abstaining: bounds against scipy's, cards that hold, answers withheld, and every refusal provoked."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import beta, binom

from rexthinker_edge.calibration.risk import make_card, thresholds
from rexthinker_edge.runtime import risk as risks
from rexthinker_edge.runtime import thinker as thinkers
from rexthinker_edge.runtime.answer import Status
from rexthinker_edge.runtime.bundle import open_bundle
from rexthinker_edge.runtime.errors import BundleError, DataError, OptionError
from rexthinker_edge.runtime.manifest import MANIFEST
from rexthinker_edge.runtime.measured_cards import riskless_digest, write_risk
from rexthinker_edge.runtime.result import DecidedEvent, ResultEvent
from rexthinker_edge.runtime.risk import RiskCard, RiskStep, threshold, unfit_card, upper_bound

PICTURE = np.full((100, 200, 3), 90, np.uint8)


@pytest.mark.parametrize(("wrong", "given"), [(0, 1), (0, 59), (1, 60), (7, 300), (150, 300), (299, 300)])
@pytest.mark.parametrize("level", [0.1, 0.00625])
def test_upper_bound_is_clopper_pearson(wrong, given, level):
    bound = upper_bound(wrong, given, level)
    assert bound == pytest.approx(beta.ppf(1 - level, wrong + 1, given - wrong), abs=1e-9)
    assert binom.cdf(wrong, given, bound) == pytest.approx(level, rel=1e-6)


def test_upper_bound_pinned():
    assert upper_bound(0, 59, 0.05) == pytest.approx(0.04950, abs=1e-5)  # the rule of three, exactly
    assert upper_bound(0, 0, 0.1) == upper_bound(5, 5, 0.1) == 1.0


def a_card(digest="0" * 64, **changes):
    level = 0.1 / 2
    steps = (
        RiskStep(0.9, 60, 0, upper_bound(0, 60, level)),
        RiskStep(0.4, 100, 20, upper_bound(20, 100, level)),
    )
    card = RiskCard("tests, given boxes", risks.SCORE, digest, 130, 100, 0.1, 2, steps)
    return replace(card, **changes)


def test_the_laxest_threshold_that_is_allowed():
    card = a_card()
    first, second = (step.bound for step in card.steps)
    assert first == card.lowest < 0.05
    assert second > 0.2
    assert threshold(card, "b", 0.05) == threshold(card, "b", first) == 0.9
    assert threshold(card, "b", 0.5) == 0.4


def test_what_cannot_be_promised_is_refused():
    for card, asked, message in [
        (a_card(), 0.0, "max_risk: 0.0, a share between 0 and 1 is needed"),
        (a_card(), 1, "max_risk: 1, a share"),
        (a_card(), True, "max_risk: True, a share"),
        (a_card(), float("nan"), "max_risk: nan, a share"),
        (a_card(), "5%", "max_risk: '5%', a share"),
        (None, 0.05, "max_risk: the bundle b has never been calibrated for risk"),
        (
            a_card(),
            0.01,
            r"max_risk: 0.01, the lowest that 100 calibration answers of the bundle b show is 0.049",
        ),
        (a_card(steps=()), 0.5, "the lowest that 100 calibration answers"),
    ]:
        with pytest.raises(OptionError) as caught:
            threshold(card, "b", asked)
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"score": "marks/1"}, "risk.score"),
        ({"bundle": "1" * 64}, "risk.bundle"),
        ({"delta": 0.0}, "risk.delta"),
        ({"answers": 131}, "risk.answers"),
        ({"answers": 99}, r"risk.steps[1] holds numbers out of range"),
        ({"tests": 1}, "risk.tests is 1 with 2"),
        ({"tests": 4}, "risk.steps[0].bound"),
        ({"steps": (RiskStep(1.5, 1, 0, 0.9),)}, "risk.steps[0] holds"),
        ({"steps": (RiskStep(0.5, 5, 6, 0.9),)}, "risk.steps[0] holds"),
        ({"steps": a_card().steps[::-1]}, "risk.steps[1] does not fall"),
        ({"steps": (RiskStep(0.5, 60, 0, 0.01),)}, "risk.steps[0].bound is 0.01, not what its counts give"),
    ],
)
def test_a_card_that_does_not_fit_is_named(changes, said):
    assert unfit_card(a_card(), "0" * 64) is None
    assert said in unfit_card(a_card(**changes), "0" * 64)


def test_thresholds_are_ranks():
    falling = [(1 - k / 100, True) for k in range(100)]
    assert thresholds(falling, 4) == pytest.approx([0.76, 0.51, 0.26, 0.01])
    assert thresholds([(0.5, True)] * 60, 4) == [0.5]


def test_a_card_from_answers():
    answers = [(0.5 + k / 300, k % 30 > 0) for k in range(150)]
    card = make_card(answers, 160, "here", "0" * 64)
    assert unfit_card(card, "0" * 64) is None
    assert (card.questions, card.answers, len(card.steps)) == (160, 150, 16)
    for step in card.steps:
        above = [right for confidence, right in answers if confidence > step.threshold]
        assert (step.given, step.wrong) == (len(above), above.count(False))
    tied = make_card([(1.0, True)] * 200, 200, "here", "0" * 64)
    assert tied.lowest == 1.0  # nothing is surer than the one threshold: nothing is promised
    with pytest.raises(DataError, match="49 answers to calibrate on, 50 or more are needed"):
        make_card(answers[:49], 160, "here", "0" * 64)


def test_all_bounds_hold_together_as_often_as_stated():
    """Confidence uniform, right with that probability: above t, the share (1 - t) / 2 is wrong."""
    rng, held, draws = np.random.default_rng(11), 0, 120
    for _ in range(draws):
        sure = rng.random(100)
        card = make_card(
            list(zip(sure.tolist(), (rng.random(100) < sure).tolist(), strict=True)), 100, "", "", 0.3, 4
        )
        held += all((1 - step.threshold) / 2 <= step.bound for step in card.steps)
    # 0.7 is promised; below 0.7 - 3 * sqrt(0.7 * 0.3 / 120) = 0.575 the promise is broken.
    assert held / draws >= 0.7


def test_a_bundle_with_a_card(sealed_bundle):
    plain = open_bundle(sealed_bundle)
    card = a_card(riskless_digest(sealed_bundle))
    written = write_risk(sealed_bundle, card)
    assert written.manifest == replace(plain.manifest, risk=card)
    assert open_bundle(sealed_bundle, hashes=True).digest == written.digest != plain.digest
    assert riskless_digest(sealed_bundle) == card.bundle
    assert sorted(item.name for item in sealed_bundle.parent.iterdir()) == [sealed_bundle.name]
    write_risk(sealed_bundle, None)
    assert open_bundle(sealed_bundle).manifest == plain.manifest
    with pytest.raises(BundleError, match=r"risk.bundle is 000000000000…"):
        write_risk(sealed_bundle, a_card())
    assert open_bundle(sealed_bundle).manifest.risk is None


def test_a_manifest_without_the_key_opens(sealed_bundle):
    file = sealed_bundle / MANIFEST
    value = json.loads(file.read_text())
    before = riskless_digest(sealed_bundle)
    assert value.pop("risk") is None
    file.write_text(json.dumps(value))
    assert open_bundle(sealed_bundle).manifest.risk is None
    assert riskless_digest(sealed_bundle) == before  # a card outlives the rewriting of its manifest


def test_a_card_does_not_survive_another_manifest(sealed_bundle):
    write_risk(sealed_bundle, a_card(riskless_digest(sealed_bundle)))
    file = sealed_bundle / MANIFEST
    value = json.loads(file.read_text())
    for change in ({"quantisation": {"decoder.onnx": "int4"}}, {"risk": value["risk"] | {"answers": 5}}):
        file.write_text(json.dumps(value | change))
        with pytest.raises(BundleError, match="Calibrate this bundle again, or remove the key risk"):
            open_bundle(sealed_bundle)
    file.write_text(json.dumps(value | {"risk": value["risk"] | {"extra": 1}}))
    with pytest.raises(BundleError, match=r"unknown key risk\.extra"):
        open_bundle(sealed_bundle)


@pytest.fixture
def calibrated(make_world):
    """A stand-in whose answers are worth e^-0.0002 or so, with a bar for 0.05 that stands at `bar`."""

    def make(bar):
        world = make_world()
        step = RiskStep(bar, 100, 0, upper_bound(0, 100, 0.1))
        card = a_card(riskless_digest(world.directory), steps=(step,), tests=1)
        write_risk(world.directory, card)
        return thinkers.load(world.directory, threads=1).look(PICTURE, "ball")

    return make


def test_a_sure_answer_is_given(calibrated):
    scene = calibrated(0.5)
    result = scene.refer("the red ball", max_risk=0.05)
    assert (result.status, result.abstention) == (Status.FOUND, None)
    assert 0.9 < result.confidence < 1
    assert result.boxes == [[70.0, 20.0, 120.0, 80.0]]


def test_an_unsure_answer_is_withheld(calibrated):
    scene = calibrated(1.0)
    free = scene.refer("the red ball")
    assert (free.status, free.abstention) == (Status.FOUND, None)
    (many, _), events = scene.refer_many(["the red ball", "it"], max_risk=0.05), []
    for event in scene.stream("the red ball", max_risk=0.05):
        events.append(event)
    assert not any(isinstance(event, DecidedEvent) for event in events)
    assert any(isinstance(event, DecidedEvent) for event in scene.stream("the red ball"))
    for result in (scene.refer("the red ball", max_risk=0.05), many, events[-1].result):
        assert (result.status, result.boxes, result.indices) == (Status.UNGROUNDED, [], ())
        withheld = result.abstention
        assert (withheld.status, withheld.boxes) == (Status.FOUND, free.boxes)
        assert (withheld.max_risk, withheld.threshold) == (0.05, 1.0)
        assert withheld.reason.endswith("more than 1.0000 is needed for a risk of 0.05")
        assert (result.confidence, result.verdicts) == (free.confidence, free.verdicts)
        told = result.to_json()
        assert (told["status"], told["boxes"]) == ("ungrounded", [])
        assert told["abstention"]["status"] == "found"
        assert told["abstention"]["boxes"] == free.boxes
    assert isinstance(events[-1], ResultEvent)


def test_risk_of_failures_and_refusals(calibrated, make_world):
    scene = calibrated(1.0)
    cut = scene.refer("the red ball", max_new_tokens=5, max_risk=0.05)
    assert (cut.status, cut.confidence, cut.abstention) == (Status.TRUNCATED, None, None)
    with pytest.raises(
        OptionError, match=r"max_risk: 0.05 at temperature 0.5, but the calibration's answers"
    ):
        scene.refer("the red ball", temperature=0.5, max_risk=0.05)
    with pytest.raises(OptionError, match=r"max_risk: 0.001, the lowest"):
        scene.stream("the red ball", max_risk=0.001)
    thinker = make_world().thinker
    assert thinker.describe()["risk"] is None
    for call in (
        lambda: thinker.threshold(0.05),
        lambda: thinker.look(PICTURE, "ball").refer_many(["a"], max_risk=0.1),
    ):
        with pytest.raises(OptionError, match="has never been calibrated"):
            call()
