"""Where subjects run: quantised ones on a GPU or not at all. Memory is of the run, not of the last look."""

from pathlib import Path

import pytest
import torch

from rexthinker_edge.benchmarks import meter, quantised_loading, trials
from rexthinker_edge.benchmarks.meter import Meter
from rexthinker_edge.benchmarks.quantised_loading import check_device, decoder_bits, quantisation_config
from rexthinker_edge.benchmarks.subjects import open_subject
from rexthinker_edge.runtime.errors import DeviceError, MissingExtraError, OptionError

CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "small" / "vlm"


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("dtype", ["nf4", "int8"])
def test_bitsandbytes_without_a_gpu(dtype: str) -> None:
    with pytest.raises(DeviceError, match=r"bitsandbytes' kernels need a CUDA GPU, torch .* sees none\."):
        open_subject(f"{CHECKPOINT}@{dtype}")


@pytest.mark.usefixtures("no_gpu")
def test_other_devices() -> None:
    assert check_device("x", "fp32", "cpu") == "cpu"
    with pytest.raises(DeviceError, match="--device cuda needs a CUDA GPU"):
        check_device("x", "bf16", "cuda")
    with pytest.raises(OptionError, match="'tensorrt', a checkpoint runs on cpu or cuda"):
        check_device("x", "fp32", "tensorrt")
    with pytest.raises(OptionError, match="number format 'int3', one of fp32, bf16, nf4, int8"):
        open_subject(f"{CHECKPOINT}@int3")


def test_with_a_gpu_packages_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(quantised_loading, "find_spec", lambda name: None if name == "bitsandbytes" else 1)
    with pytest.raises(MissingExtraError, match=r"bitsandbytes not installed.*\[export,bits"):
        check_device("x", "nf4", "cpu")
    monkeypatch.setattr(quantised_loading, "find_spec", lambda name: 1)
    assert [check_device("x", dtype, "cpu") for dtype in ("nf4", "int8", "fp32")] == ["cuda", "cuda", "cpu"]
    assert quantisation_config("bf16") is None


class Scaled(torch.nn.Parameter):
    """A weight with the scales that LLM.int8 keeps beside it."""


def test_bits_of_layers() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = torch.nn.Module()
            self.model.language_model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.LayerNorm(4))
            self.lm_head = torch.nn.Linear(8, 2)

    model = Model()
    assert decoder_bits(model) == 32
    weight = Scaled(torch.zeros(4, 8, dtype=torch.int8), requires_grad=False)
    weight.SCB = torch.zeros(4)
    model.model.language_model[0].weight = weight
    assert decoder_bits(model) == 8 * (32 + 16 + 64) / 48


def test_the_most_memory_of_a_run_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "0.jsonl"
    for now, told in ((None, None), (70, 70), (None, 70), (60, 70), (80, 80)):
        assert trials._kept_peak(path, now) == told


def test_a_long_run_tells_what_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    now = [0.0]
    monkeypatch.setattr(meter.time, "monotonic", lambda: now[0])
    with Meter("asking", 100) as told:
        told(40, 100)
        for done in range(41, 61):
            now[0] += 10
            told(done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "asking: 40 of 100 were done before"
    assert lines[1] == "asking: 43 of 100, 9 min 30 s left"  # 10 s an item, not counting those before
    assert len(lines) == 1 + 20 * 10 // 30


def test_subjects_of_one_name_are_told_apart() -> None:
    taken = list[str]()
    for spec in ("small", "bundles/a", "b/a", "b/a"):
        taken.append(trials.unlike("m", spec, taken))
    assert taken == ["m", "m (a)", "m (2)", "m (3)"]
