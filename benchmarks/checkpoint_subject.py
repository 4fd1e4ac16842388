"""A Hugging Face checkpoint of Qwen2.5-VL through transformers: the reference that a bundle is held against.

Contract  The prompt's words and ids, the picture's pixels and the reading of the answer are the runtime's
          own; transformers computes everything between. Greedy, without the repetition penalty that published
          generation settings carry: the runtime has none.
          fp32 computes in float32; bf16 in bfloat16, as the published demo does; nf4 and int8 are
          bitsandbytes' and need a CUDA GPU.
Elsewhere other subjects: subjects.py; nf4 and int8: quantised_loading.py.
"""

import hashlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.benchmarks.quantised_loading import (
    QUANTISED,
    check_device,
    decoder_bits,
    quantisation_config,
)
from rexthinker_edge.benchmarks.subjects import FORCE_CHUNK, Question, Reply, Subject
from rexthinker_edge.export.config import read_config
from rexthinker_edge.export.source_files import read_settings, read_tokens
from rexthinker_edge.runtime import prompt
from rexthinker_edge.runtime.answer import Status, read_answer
from rexthinker_edge.runtime.boxes import check_boxes, to_resized_px
from rexthinker_edge.runtime.errors import CheckpointError, OptionError
from rexthinker_edge.runtime.generate import Finish
from rexthinker_edge.runtime.image import read_picture
from rexthinker_edge.runtime.qwen_pixels import PixelLimits, qwen_pixels
from rexthinker_edge.runtime.tokens import TextTokenizer, check_text
from rexthinker_edge.runtime.trace import read_trace

RECIPES = {
    "fp32": "transformers, float32",
    "bf16": "transformers, bfloat16",
    "nf4": "bitsandbytes NF4, blocks of 64, computed in bfloat16; vision tower included",
    "int8": "bitsandbytes LLM.int8, vision tower included",
}


class CheckpointSubject(Subject):
    """A checkpoint in transformers; it has no detector, so candidates are given."""

    def __init__(self, directory: Path, dtype: str, threads: int | None = None, device: str = "cpu") -> None:
        """Load it.

        Args:
            dtype: "fp32", "bf16", "nf4" or "int8".
            threads: of torch; all when None.
            device: torch's; nf4 and int8 run on "cuda" whatever it says.

        Raises:
            ConfigError, CheckpointError: the checkpoint cannot be used.
            DeviceError, MissingExtraError: nf4 or int8, and no GPU or no bitsandbytes.
        """
        import torch  # noqa: PLC0415
        from transformers import Qwen2_5_VLForConditionalGeneration  # noqa: PLC0415
        from transformers.utils import logging  # noqa: PLC0415

        logging.disable_progress_bar()  # its bar of weights would run into our line
        if threads:
            torch.set_num_threads(threads)
        config = read_config(directory)
        self.settings, _ = read_settings(directory)
        self.tokens = read_tokens(directory, config)
        self.tokenizer = TextTokenizer(directory / "tokenizer.json")
        self.vision = config.vision
        self.name = f"{directory.name}@{dtype}"
        device = check_device(self.name, dtype, device)
        self.device = torch.device(device)
        chosen: dict[str, Any] = {"dtype": torch.float32 if dtype == "fp32" else torch.bfloat16}
        if dtype in QUANTISED:
            chosen |= {"quantization_config": quantisation_config(dtype), "device_map": {"": self.device}}
        model: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(directory, **chosen).eval()
        self.model = model if dtype in QUANTISED else model.to(self.device)
        self.identity = {
            "kind": "checkpoint",
            "name": self.name,
            "digest": _digest(directory),
            "dtype": dtype,
        }
        self.details = {
            "device": device,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "recipe": RECIPES[dtype],
            "decoder_bits": decoder_bits(self.model),
        }

    def device_peak_bytes(self) -> int | None:
        """The most GPU memory torch held; None on a CPU."""
        import torch  # noqa: PLC0415

        return int(torch.cuda.max_memory_allocated()) if self.device.type == "cuda" else None

    def ask(self, question: Question) -> Reply:
        """Answer with transformers' own generation."""
        import torch  # noqa: PLC0415
        from transformers import GenerationConfig  # noqa: PLC0415

        begun = time.monotonic()
        if question.boxes is None:
            raise OptionError(
                f"{self.name}: a checkpoint has no detector, given candidates are needed. Ask so."
            )
        if not question.boxes:
            return Reply(Status.NO_CANDIDATES, (), (), (), "", ())
        inputs, hints = self._inputs(question)
        length = inputs["input_ids"].shape[1]
        greedy = GenerationConfig(
            do_sample=False, num_beams=1, repetition_penalty=1.0, max_new_tokens=self.settings.max_new_tokens,
            eos_token_id=list(self.tokens.eos), pad_token_id=self.tokens.eos[0],
            temperature=1.0, top_p=1.0, top_k=50,
        )  # fmt: skip
        with torch.inference_mode():
            made = self.model.generate(**inputs, generation_config=greedy)[0, length:].tolist()
        ended = bool(made) and made[-1] in self.tokens.eos
        text = self.tokenizer.decode(made[:-1] if ended else made)
        answer = read_answer(text, Finish.STOP if ended else Finish.LENGTH, hints)
        trace = read_trace(text, question.category, len(hints))
        return Reply(
            status=answer.status,
            indices=answer.indices,
            candidates=question.boxes,
            verdicts=tuple(verdict.value for verdict in trace.verdicts),
            text=text,
            token_ids=tuple(made),
            tokens={"prompt": length, "reused": 0, "generated": len(made), "passes": len(made)},
            pass_tokens=(1,) * len(made),
            ms={"total": 1000 * (time.monotonic() - begun)},
        )

    def force(self, question: Question, token_ids: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """One pass over prompt and tokens."""
        import torch  # noqa: PLC0415

        inputs, _ = self._inputs(question, token_ids[:-1])
        with torch.inference_mode():
            logits = self.model(**inputs, logits_to_keep=len(token_ids)).logits[0]
        for start in range(0, len(token_ids), FORCE_CHUNK):
            yield logits[start : start + FORCE_CHUNK].float().cpu().numpy()

    def _inputs(
        self, question: Question, more: Sequence[int] = ()
    ) -> tuple[dict[str, Any], NDArray[np.int64]]:
        import torch  # noqa: PLC0415

        seen = read_picture(question.picture)
        boxes = check_boxes(question.boxes or (), seen.size)
        vision = self.vision
        limits = PixelLimits(
            self.settings.min_pixels,
            self.settings.max_pixels,
            vision.patch,
            vision.merge,
            vision.temporal_patch,
        )
        pixels = qwen_pixels(seen.pixels_HWC, limits)
        hints = to_resized_px(boxes, seen.size, pixels.resized)
        words = prompt.prefix(
            self.settings.system, self.settings.wording, check_text("category", question.category),
            hints.tolist(), pixels.merged_tokens(vision.merge),
        )  # fmt: skip
        expression = check_text("expression", question.expression)
        ids = self.tokenizer.encode_parts([*words, *prompt.suffix(self.settings.wording, expression)])
        whole = torch.tensor([[*ids, *more]])
        inputs = {
            "input_ids": whole,
            "attention_mask": torch.ones_like(whole),
            "pixel_values": torch.from_numpy(pixels.patches),
            "image_grid_thw": torch.tensor([pixels.grid_thw]),
            "mm_token_type_ids": (whole == self.tokens.image_pad).int(),
        }
        return {name: value.to(self.device) for name, value in inputs.items()}, hints


def _digest(directory: Path) -> str:
    """SHA-256 over names and content of every weight file."""
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise CheckpointError(
            f"{directory}: no *.safetensors, a checkpoint's weights are needed. Name its folder."
        )
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while piece := stream.read(1 << 22):
                digest.update(piece)
    return digest.hexdigest()
