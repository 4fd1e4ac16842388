"""What each precision of the decoder costs, and what the choice of calibration data is worth.

Layout    A setting is a precision, a calibration and a seed. Each gives one JSON line: perplexity of held-out
          traces, KL to fp32 per token, share of tokens whose most likely successor stays the same, and
          exact-answer accuracy. Lines are appended to a file as they come; settings that stand there for the
          same checkpoint and counts are not run again.
Contract  Judged on items that neither trained nor calibrated anything. What is judged is the graph that a
          bundle holds, at the accuracy level a bundle has. Only the calibration samples differ between the
          GPTQ settings; each has as many tokens as the model's own traces have.
Elsewhere GPTQ: calibration/gptq.py; the answers' judge: figures.py; the table: docs/quantisation.md.
"""

import argparse
import hashlib
import json
import pydoc_data.topics
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from rexthinker_edge.benchmarks.figures import is_right
from rexthinker_edge.benchmarks.runs import Plan, answer
from rexthinker_edge.benchmarks.subjects import BundleSubject
from rexthinker_edge.calibration.openers import open_dataset
from rexthinker_edge.calibration.samples import Reader, Sample
from rexthinker_edge.calibration.sources import choose_calibration, workbench_situation
from rexthinker_edge.calibration.workbench.dataset import EVALUATION_SEED
from rexthinker_edge.calibration.workbench.items import make_item
from rexthinker_edge.calibration.workbench.render import render
from rexthinker_edge.export.calibrate import CalibrationOptions, embedded, round_decoder
from rexthinker_edge.export.checkpoint import Checkpoint
from rexthinker_edge.export.config import ModelConfig, read_config
from rexthinker_edge.export.decoder_graph import write_decoder
from rexthinker_edge.export.gptq_layers import Sequence as DecoderInput
from rexthinker_edge.export.quantize import IntegerRecipe, Saved, choose_block
from rexthinker_edge.export.source_files import read_settings
from rexthinker_edge.export.vision_graph import write_vision
from rexthinker_edge.runtime import prompt
from rexthinker_edge.runtime.bundle import open_bundle, seal
from rexthinker_edge.runtime.decoder import Decoder
from rexthinker_edge.runtime.embeddings import Embeddings
from rexthinker_edge.runtime.qwen_pixels import PixelLimits, qwen_pixels
from rexthinker_edge.runtime.thinker import load, small_bundle
from rexthinker_edge.runtime.tokens import TextTokenizer
from rexthinker_edge.runtime.vision import VisionTower

GENERIC_SEED = 910_000  # pictures that calibrate as other people's do: neither trained nor judged
TEXT_CHARACTERS = 800
WIDE = ("k_proj", "v_proj")
TUNE_STEPS = 200


@dataclass(frozen=True)
class Setting:
    """One row of the table.

    Attributes:
        precision: "fp32", "int8" or "int4".
        data: "" for round to nearest, else "text", "generic-image" or "own-trace".
        seed: of the choice of samples.
        correct: aim at the original's outputs, or plain GPTQ.
        wide: layers that take 8 bits.
        tune: steps of training the scales.
    """

    precision: str
    data: str = ""
    seed: int = 0
    correct: bool = True
    wide: tuple[str, ...] = ()
    tune: int = 0

    @property
    def name(self) -> str:
        """For the table."""
        if self.precision == "fp32":
            return "fp32"
        if not self.data:
            return f"{self.precision} round-to-nearest"
        name = f"{self.precision} GPTQ, {self.data}{'' if self.correct else ', uncorrected'}"
        name += f", {' and '.join(self.wide)} int8" if self.wide else ""
        return name + (f", tuned in {self.tune} steps" if self.tune else "")


def settings(seeds: int) -> list[Setting]:
    """The table's rows, cheap ones first."""
    rows = [Setting("fp32"), Setting("int8"), Setting("int4")]
    for seed in range(seeds):
        rows += [Setting("int4", data, seed) for data in ("own-trace", "text", "generic-image")]
        rows.append(Setting("int4", "own-trace", seed, correct=False))
        rows.append(Setting("int4", "own-trace", seed, wide=WIDE))
        rows.append(Setting("int4", "own-trace", seed, wide=WIDE, tune=TUNE_STEPS))
    return rows


class Bench:
    """A checkpoint with what all settings share."""

    def __init__(self, checkpoint: Path, scratch: Path, counts: dict[str, int], level: str) -> None:
        """Export the vision tower and keep fp32's answer to every held-out token."""
        self.directory, self.scratch, self.counts, self.level = checkpoint, scratch, counts, level
        self.config: ModelConfig = read_config(checkpoint)
        self.tensors = Checkpoint(checkpoint)
        self.prompt, _ = read_settings(checkpoint)
        geometry = write_vision(self.tensors, self.config.vision, scratch, self.prompt.max_pixels)
        self.tower = VisionTower(scratch / "vision.onnx", geometry, _one_thread())
        limits = PixelLimits(self.prompt.min_pixels, self.prompt.max_pixels)
        tokenizer = TextTokenizer(checkpoint / "tokenizer.json")
        self.reader = Reader(tokenizer, limits, self.prompt.system, self.prompt.wording)
        items = (make_item(level, EVALUATION_SEED, index) for index in range(counts["traces"]))
        self.held_out = [self.reader.sample(workbench_situation(item, 0)) for item in items]
        self.inputs = list(embedded(self.tensors, self.config.text, self.held_out, self.tower))
        with tempfile.TemporaryDirectory(dir=scratch) as place:
            fp32 = self.decoder(Path(place), None, None)
            self.reference = [log_probabilities(fp32, *pair) for pair in self.pairs()]

    def pairs(self) -> Iterator[tuple[Sample, DecoderInput]]:
        """Held-out samples, as tokens and as the decoder reads them."""
        return zip(self.held_out, self.inputs, strict=True)

    def decoder(self, place: Path, recipe: IntegerRecipe | None, weights: Saved | None) -> Decoder:
        """Export the decoder into `place` and open it."""
        geometry = write_decoder(self.tensors, self.config.text, place, 2048, recipe, weights=weights)
        return Decoder(
            place / "decoder.onnx", Embeddings(place / "embeddings.bin", geometry), geometry, _one_thread()
        )

    def samples(self, setting: Setting) -> list[Sample]:
        """Calibration samples of one kind; others than the own traces until they have as many tokens."""
        choice = choose_calibration(f"workbench:{self.level}", self.counts["samples"], setting.seed)
        own = [self.reader.sample(situation) for situation in choice.situations]
        if setting.data == "own-trace":
            return own
        make = self._text if setting.data == "text" else self._generic
        wanted, found = sum(len(sample.ids) for sample in own), list[Sample]()
        while sum(len(sample.ids) for sample in found) < wanted:
            found.append(make(setting.seed, len(found)))
        return found

    def _text(self, seed: int, index: int) -> Sample:
        """A passage of English prose and no picture: the Python language reference, at hand everywhere."""
        topics = pydoc_data.topics.topics
        prose = "\n".join(topics[key] for key in sorted(topics))
        start = int(np.random.default_rng([seed, index]).integers(len(prose) - TEXT_CHARACTERS))
        return self.reader.sequence(f"text-{index}", [prose[start : start + TEXT_CHARACTERS]], None, None)

    def _generic(self, seed: int, index: int) -> Sample:
        """A picture with a caption: no hint, no expression, no trace."""
        item = make_item(self.level, GENERIC_SEED + seed, index)
        vision = qwen_pixels(render(item.scene), self.reader.limits)
        asked = prompt.prefix(self.prompt.system, self.prompt.wording, "", [], vision.merged_tokens())[:-1]
        asked += ["Describe the image.", prompt.IM_END, "\n", prompt.IM_START, "assistant\n"]
        things = ", ".join(f"a {thing.color} {thing.category}" for thing in item.scene.things)
        return self.reader.sequence(f"picture-{index}", asked, f"The picture shows {things}.", vision)

    def run(self, setting: Setting) -> dict[str, Any]:
        """Quantise as the setting says and judge; the fields of one line."""
        with tempfile.TemporaryDirectory(dir=self.scratch) as name:
            place, tokens = Path(name), 0
            text = self.config.text
            block = choose_block([text.hidden, text.intermediate])
            recipe = None
            if setting.precision != "fp32":
                bits = 8 if setting.precision == "int8" else 4
                recipe = IntegerRecipe(bits, block=block, wide=setting.wide)
            weights = None
            if setting.data:
                assert recipe is not None, "integers are calibrated, fp32 is not"
                samples = self.samples(setting)
                tokens = sum(len(sample.ids) for sample in samples)
                options = CalibrationOptions(
                    setting.data,
                    len(samples),
                    setting.seed,
                    correct=setting.correct,
                    tune=setting.tune,
                )
                integers = place / "integers"
                integers.mkdir()
                found = round_decoder(self.tensors, text, samples, self.tower, recipe, options, integers)
                weights = Saved(self.tensors, found)
            decoder = self.decoder(place, recipe, weights)
            line = {"calibration_tokens": tokens} | self.judged(decoder)
            if self.counts["items"]:
                line["exact_percent"] = self.exact(place, decoder)
            return line

    def judged(self, decoder: Decoder) -> dict[str, float]:
        """Perplexity, KL to fp32 and agreement over the held-out traces' tokens."""
        divergence, surprise, same = [], [], []
        for (sample, given), original in zip(self.pairs(), self.reference, strict=True):
            ours = log_probabilities(decoder, sample, given)
            said = sample.ids[sample.answer_start :]
            divergence.append((np.exp(original) * (original - ours)).sum(-1))
            surprise.append(-ours[np.arange(len(said)), said])
            same.append(original.argmax(-1) == ours.argmax(-1))
        return {
            "perplexity": float(np.exp(np.concatenate(surprise).mean())),
            "kl_per_token": float(np.concatenate(divergence).mean()),
            "same_token_percent": 100 * float(np.concatenate(same).mean()),
            "tokens": int(sum(len(part) for part in same)),
        }

    def exact(self, place: Path, decoder: Decoder) -> float:
        """Exact answers in percent, of a bundle with this decoder and the small bundle's detector."""
        bundle = place / "bundle"
        shutil.copytree(small_bundle(), bundle)
        manifest = open_bundle(bundle).manifest
        for name in ("decoder.onnx", "decoder.onnx.data", "embeddings.bin"):
            shutil.copyfile(place / name, bundle / name)
        for name in ("vision.onnx", "vision.onnx.data"):
            shutil.copyfile(self.scratch / name, bundle / name)
        plain = replace(manifest, quality=(), risk=None)  # those cards are of other weights
        seal(bundle, replace(plain, decoder=decoder.geometry, vision=self.tower.geometry))
        subject, count = BundleSubject(load(bundle, threads=1)), self.counts["items"]
        with open_dataset(f"workbench:{self.level}:{EVALUATION_SEED}:{count}") as dataset:
            made = [answer(subject, dataset, number, Plan()).item for number in range(count)]
        return 100 * float(np.mean([item is not None and is_right(item) for item in made]))


def log_probabilities(decoder: Decoder, sample: Sample, given: DecoderInput) -> NDArray[np.float64]:
    """(answer tokens, vocab): what the model expected at each token the assistant wrote."""
    cache = decoder.new_cache(len(given.embeds))
    logits = decoder.run(given.embeds, given.positions, cache, last_only=False)
    rows = logits[sample.answer_start - 1 : len(sample.ids) - 1].astype(np.float64)
    rows -= rows.max(-1, keepdims=True)
    found: NDArray[np.float64] = rows - np.log(np.exp(rows).sum(-1, keepdims=True))
    return found


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row a setting, means over seeds with their spread."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        rows.setdefault(line["name"], []).append(line)
    out = [
        "| decoder | seeds | perplexity | KL per token | same next token | exact answers |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, found in rows.items():
        forms = {"perplexity": "{:.4f}", "kl_per_token": "{:.5f}", "same_token_percent": "{:.2f} %"}
        cells = [_spread([line[key] for line in found], form) for key, form in forms.items()]
        exact = [line["exact_percent"] for line in found if "exact_percent" in line]
        cells.append(_spread(exact, "{:.1f} %") if exact else "not measured")
        out.append(f"| {name} | {len(found)} | " + " | ".join(cells) + " |")
    return "\n".join(out)


def _spread(values: Sequence[float], form: str) -> str:
    middle = form.format(float(np.mean(values)))
    if len(values) == 1:
        return middle
    return f"{middle} ({form.format(min(values))} to {form.format(max(values))})"


def _one_thread() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return options


def _finished(path: Path, key: dict[str, Any]) -> list[dict[str, Any]]:
    """Lines of `path` that were run on the same checkpoint and counts."""
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    return [line for line in map(json.loads, lines) if {k: line.get(k) for k in key} == key]


def main() -> None:
    """`python -m rexthinker_edge.benchmarks.precisions CHECKPOINT --out FILE.jsonl`; prints the table."""
    parser = argparse.ArgumentParser(description="What each precision of the decoder costs.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="lines are appended here, and resumed from")
    parser.add_argument("--level", choices=("easy", "full"), default="easy")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--traces", type=int, default=100, help="held-out, for perplexity and KL")
    parser.add_argument("--items", type=int, default=200, help="asked for exact answers; 0 leaves them out")
    parser.add_argument("--samples", type=int, default=64, help="to calibrate on")
    arguments = parser.parse_args()
    weights = hashlib.sha256((arguments.checkpoint / "model.safetensors").read_bytes()).hexdigest()[:16]
    counts = {name: getattr(arguments, name) for name in ("traces", "items", "samples")}
    key = {"checkpoint": weights, "level": arguments.level, **counts}
    done = {(line["name"], line["seed"]) for line in _finished(arguments.out, key)}
    waiting = [s for s in settings(arguments.seeds) if (s.name, s.seed) not in done]
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(arguments.checkpoint, Path(scratch), counts, arguments.level) if waiting else None
        for setting in waiting:
            assert bench is not None, "made where something waits"
            line = {"name": setting.name, **asdict(setting), **key, **bench.run(setting)}
            with arguments.out.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)
    print(table(_finished(arguments.out, key)))


if __name__ == "__main__":
    main()
