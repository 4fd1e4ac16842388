"""bitsandbytes' quantisation of a checkpoint as it is loaded: NF4 and LLM.int8, on a CUDA GPU.

Contract  As most people load them: every linear layer but the output layer, the vision tower included; NF4
          without double quantisation, computed in bfloat16. A row for comparison, not a runtime: without a
          GPU or without bitsandbytes it is refused, and nothing slower is run in its place.
Elsewhere asking it: checkpoint_subject.py; our own integers: export/quantize.py.
Source    docs/sources.md#bitsandbytes
"""

from importlib.util import find_spec
from typing import Any

from rexthinker_edge.runtime.errors import DeviceError, MissingExtraError, OptionError

QUANTISED = ("nf4", "int8")
NEEDED = ("bitsandbytes", "accelerate")


def check_device(name: str, dtype: str, device: str) -> str:
    """Where a checkpoint is to run: "cpu" or "cuda"; refused before anything is loaded.

    Raises:
        OptionError: torch is asked for another device.
        DeviceError: it needs a CUDA GPU, and torch can use none here.
        MissingExtraError: a package is not there.
    """
    import torch  # noqa: PLC0415

    if device not in ("cpu", "cuda"):
        raise OptionError(
            f"--device: {device!r}, a checkpoint runs on cpu or cuda. Give one of them, or compare bundles."
        )
    if dtype not in QUANTISED and device == "cpu":
        return device
    if not torch.cuda.is_available():
        why = "bitsandbytes' kernels need" if dtype in QUANTISED else "--device cuda needs"
        raise DeviceError(
            f"{name}: {why} a CUDA GPU, torch {torch.__version__} sees none. "
            "Compare on a machine with one and torch's CUDA build, or without a GPU the bundles that "
            "`export --precision int4` and `int8` make."
        )
    if dtype not in QUANTISED:
        return device
    missing = [package for package in NEEDED if find_spec(package) is None]
    if missing:
        raise MissingExtraError(
            f"{name}: {' and '.join(missing)} not installed, needed to quantise as a checkpoint is loaded. "
            f"Run: pip install 'rexthinker-edge[export,bitsandbytes]'"
        )
    return "cuda"


def quantisation_config(dtype: str) -> Any:
    """What transformers is told; None for a format that is no quantisation."""
    if dtype not in QUANTISED:
        return None
    import torch  # noqa: PLC0415
    from transformers import BitsAndBytesConfig  # noqa: PLC0415

    if dtype == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )


def decoder_bits(model: Any) -> float:
    """Bits a weight of the decoder's linear layers takes in memory, scales included.

    Args:
        model: transformers' Qwen2_5_VLForConditionalGeneration.
    """
    import torch  # noqa: PLC0415

    layers = [*model.model.language_model.modules(), model.lm_head]
    stored = numbers = 0
    for layer in layers:
        if isinstance(layer, torch.nn.Linear):
            numbers += layer.in_features * layer.out_features
            stored += layer.weight.nbytes + _scale_bytes(layer.weight)
    return 8 * stored / numbers


def _scale_bytes(weight: Any) -> int:
    state = getattr(weight, "quant_state", None)
    if state is not None:  # NF4: one float32 per 64 numbers
        return int(state.absmax.nbytes)
    scales = getattr(weight, "SCB", None)
    return 0 if scales is None else int(scales.nbytes)  # LLM.int8: one float32 a row
