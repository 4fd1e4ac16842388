"""What is chosen to calibrate on: spread, the same every time, told in full."""

import json
from collections import Counter

import numpy as np
import pytest

from rexthinker_edge.calibration.humanref import write_humanref
from rexthinker_edge.calibration.humanref_cot import write_humanref_cot
from rexthinker_edge.calibration.samples import Reader, written_turn
from rexthinker_edge.calibration.selection import Traits, choose
from rexthinker_edge.calibration.sources import choose_calibration
from rexthinker_edge.calibration.workbench.items import item_record, make_item
from rexthinker_edge.calibration.workbench.render import render
from rexthinker_edge.runtime.errors import DataError, OptionError
from rexthinker_edge.runtime.qwen_pixels import PixelLimits
from rexthinker_edge.runtime.tokens import TextTokenizer
from tests.conftest import write_tokenizer


def pool():
    rng = np.random.default_rng(2)
    domains = ["attribute"] * 80 + ["position"] * 15 + ["rejection"] * 5
    return [
        Traits(f"r{k}", domain, int(rng.integers(1, 15)), int(rng.integers(100, 900)))
        for k, domain in enumerate(domains)
    ]


def test_a_choice_is_spread():
    chosen = choose(pool(), 15, seed=1)
    assert Counter(traits.domain for traits in chosen) == {"attribute": 5, "position": 5, "rejection": 5}
    attribute = [traits for traits in chosen if traits.domain == "attribute"]
    crowds = [sum(traits.candidates > bound for bound in (1, 3, 6, 10)) for traits in attribute]
    assert len(set(crowds)) == 5  # every number of candidates once
    # a domain that has run out leaves its share to the others
    assert Counter(traits.domain for traits in choose(pool(), 40, seed=1))["rejection"] == 5


def test_a_choice_depends_on_seed_and_pool_alone():
    chosen = choose(pool(), 12, seed=4)
    assert choose(pool()[::-1], 12, seed=4) == chosen
    assert choose(pool(), 12, seed=5) != chosen
    assert [traits.id for traits in choose(pool(), 3, seed=0)] == ["r88", "r2", "r98"]


def test_choice_messages():
    with pytest.raises(DataError, match="101 samples asked of 100 readable ones"):
        choose(pool(), 101, 0)
    with pytest.raises(DataError, match="an id stands twice"):
        choose([*pool(), pool()[0]], 3, 0)


@pytest.fixture
def folders(tmp_path):
    items = [make_item("full", 5, index) for index in range(14)]
    write_humanref_cot(tmp_path / "cot", ((item_record(i, k), render(i.scene)) for k, i in enumerate(items)))
    write_humanref(tmp_path / "plain", ((item_record(i, k), render(i.scene)) for k, i in enumerate(items)))
    return tmp_path


@pytest.mark.parametrize("kind", ["workbench:full", "humanref-cot:{}/cot", "humanref:{}/plain"])
def test_every_source_gives_samples(folders, tmp_path, kind):
    source = kind.format(folders)
    choice = choose_calibration(source, 4, seed=1)
    again = choose_calibration(source, 4, seed=1)
    other = choose_calibration(source, 4, seed=3)
    assert choice.sha256() == again.sha256() != other.sha256()
    assert len({situation.id for situation in choice.situations}) == 4
    assert sum(choice.domains().values()) == 4
    assert choice.problems == ()
    write_tokenizer(tmp_path / "tokenizer.json")
    reader = Reader(TextTokenizer(tmp_path / "tokenizer.json"), PixelLimits(16 * 784, 64 * 784))
    for situation in choice.situations:
        sample = reader.sample(situation)
        assert sample.vision is not None
        assert (sample.ids == sample.image_pad).sum() == sample.vision.merged_tokens()
        assert sample.positions.shape == (3, len(sample.ids))
        written = reader.tokenizer.decode(sample.ids.tolist())
        assert f"Please detect {situation.record.referring} in the image." in written
        said = reader.tokenizer.decode(sample.ids[sample.answer_start :].tolist())
        if source.startswith("humanref:"):
            assert said == ""  # the set has no traces: nothing is made up
        else:
            assert said.startswith("<think>")
            assert said.endswith("</answer><|im_end|>")
    room = sample.answer_start + 5
    short = Reader(reader.tokenizer, reader.limits, max_tokens=room).sample(situation)
    assert short.ids.tolist() == sample.ids[:room].tolist()
    with pytest.raises(DataError, match=f"its prompt has {sample.answer_start:,} tokens, at most 100 fit"):
        Reader(reader.tokenizer, reader.limits, max_tokens=100).sample(situation)


def test_a_written_turn_is_what_the_runtime_reads(folders):
    """The answer names the hint's boxes, in pixels of the resized picture, or abstains."""
    choice = choose_calibration(f"humanref-cot:{folders}/cot", 10, seed=0)
    assert {bool(situation.record.answer_boxes) for situation in choice.situations} == {True, False}
    for situation in choice.situations:
        turn = written_turn(situation.record, (200, 100), (400, 200))
        assert turn.count("<think>") == turn.count("</think>") == 1
        answer = turn.partition("<answer>")[2].removesuffix("</answer>")
        if not situation.record.answer_boxes:
            assert answer == "There is no such thing in the image."
            continue
        assert answer.startswith("json\n[")
        assert f'"label": "{situation.record.referring}"' in answer


def test_records_that_cannot_be_asked_are_left_out_and_told(folders):
    """A missing picture, a box without area: a trace counts candidates, so none may go from under it."""
    path = folders / "plain" / "annotations.jsonl"
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    (folders / "plain" / "images" / lines[2]["image_name"]).unlink()
    lines[4]["candidate_boxes"].append([5.0, 5.0, 5.0, 9.0])
    lines[6]["answer_boxes"] = [[1.0, 1.0, 3.0, 3.0]]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    choice = choose_calibration(f"humanref:{folders}/plain", 11, seed=1)
    assert not {"humanref:2", "humanref:4", "humanref:6"} & {situation.id for situation in choice.situations}
    told = {problem.line: problem.reason for problem in choice.problems if not problem.kept}
    assert set(told) == {3, 5, 7}
    assert "is missing" in told[3]
    assert "an answer is no candidate" in told[5]
    with pytest.raises(DataError, match="12 samples asked of 11 readable ones"):
        choose_calibration(f"humanref:{folders}/plain", 12, seed=1)


def test_source_messages(tmp_path):
    for source in ("workbench:hard", "coco:here", "humanref:", "text"):
        with pytest.raises(OptionError, match="needed workbench:easy, workbench:full, humanref-cot"):
            choose_calibration(source, 4)
    with pytest.raises(OptionError, match="calibration_seed: 100000, needed 0 to 99,999"):
        choose_calibration("workbench:easy", 4, 100_000)
    with pytest.raises(DataError, match=r"humanref_cot\..*: no such file, a pair of TSV files is needed"):
        choose_calibration(f"humanref-cot:{tmp_path}", 4)
