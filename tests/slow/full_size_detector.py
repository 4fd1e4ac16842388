"""The exporter at the size of Grounding DINO Swin-T: a random checkpoint, exported and compared.

Run       python tests/slow/full_size_detector.py DIR [HEIGHTxWIDTH ...]   (1 GB on disk, 5 GB of memory)
What      transformers' default configuration (172 M parameters, 900 queries) with random weights in bf16 is
          saved, exported, and run on picture sizes in both, one thread each, CPU seconds side by side. A
          query's box is alike within 0.01 px. Where some are not, transformers is run once more with *our*
          order of the best cells instead of its own: cells whose scores differ by less than rounding may
          change places, and every query has its own embedding, so that two queries answer differently then.
Last      two AVX2 cores, busy; torch 2.13, onnxruntime 1.31, one thread each, CPU seconds:
          423x1333: ours 6.7, transformers 15.1; 900/900 queries alike, within 4.8e-04 px, logits 3.4e-04
          800x1216, not in turn: ours 11.8, transformers 23.9 and 27.0; 894/900 alike, within 1.4e-03 px
          (the six were not run again with our order)
"""

import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnxruntime as ort
import torch

from rexthinker_edge.export.detector_graph import write_detector
from rexthinker_edge.runtime.caption import phrase_masks
from rexthinker_edge.runtime.detector_tables import make_tables

SIZES = ("800x1216", "800x800", "423x1333")
IDS = [101, 2711, 2007, 1037, 2417, 6045, 1012, 102]
ALIKE_PX = 1e-2


def make_checkpoint(folder: Path) -> None:
    """Save a random model of the published configuration."""
    import json  # noqa: PLC0415

    from transformers import BertConfig, GroundingDinoConfig, GroundingDinoForObjectDetection, SwinConfig  # noqa: PLC0415

    torch.manual_seed(0)
    backbone = SwinConfig(image_size=224, embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24],
                          window_size=7, out_indices=[2, 3, 4])  # fmt: skip
    model = GroundingDinoForObjectDetection(
        GroundingDinoConfig(backbone_config=backbone, text_config=BertConfig())
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters")
    model.save_pretrained(folder, state_dict={n: t.bfloat16() for n, t in model.state_dict().items()})
    pixels = {"size": {"shortest_edge": 800, "longest_edge": 1333}, "image_mean": [0.485, 0.456, 0.406],
              "image_std": [0.229, 0.224, 0.225]}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))


class Ours:
    """The exported graphs, with the order of the best cells as a third output."""

    def __init__(self, folder: Path) -> None:
        started = time.monotonic()
        self.geometry = write_detector(folder, folder / "detector.onnx")
        print(f"exported in {time.monotonic() - started:.0f} s")
        print({p.name: f"{p.stat().st_size / 1e6:.1f} MB" for p in sorted(folder.glob("detector*.onnx*"))})
        model = onnx.load(folder / "detector.onnx", load_external_data=False)
        (chosen,) = [node.output[1] for node in model.graph.node if node.op_type == "TopK"]
        model.graph.output.append(onnx.helper.make_tensor_value_info(chosen, onnx.TensorProto.INT64, [900]))
        onnx.save(model, folder / "probe.onnx")
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.graph = ort.InferenceSession(str(folder / "probe.onnx"), options)
        self.text = ort.InferenceSession(str(folder / "detector-text.onnx"), options)
        print(f"{len(model.graph.node)} nodes")

    def run(self, pixels: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        """Logits, boxes and the chosen cells."""
        mask, positions = phrase_masks(IDS)
        bias = np.where(mask, np.float32(0), np.finfo(np.float32).min)
        words = {"input_ids": np.array(IDS), "position_ids": positions, "text_bias": bias}
        text, places = self.text.run(None, words)
        asked = {given.name for given in self.graph.get_inputs()}
        tables = make_tables(*pixels.shape[2:], self.geometry.tables)
        feeds = {name: table for name, table in tables.items() if name in asked}
        feeds |= {"pixel_values": pixels, "text": text, "text_positions": places, "text_bias": bias}
        return self.graph.run(None, feeds)


def theirs(model: Any, pixels: torch.Tensor, chosen: np.ndarray[Any, Any] | None = None) -> Any:
    """transformers' answer, its best cells in the given order where there is one."""
    real = torch.topk

    def topk(values: torch.Tensor, k: int, dim: int = -1) -> Any:
        return real(values, k, dim=dim) if chosen is None else (None, torch.from_numpy(chosen)[None])

    with torch.no_grad(), mock.patch.object(torch, "topk", topk):
        return model(pixel_values=pixels, input_ids=torch.tensor([IDS]))


def main(folder: Path, sizes: list[str]) -> None:
    """Make, export, compare, print."""
    from transformers import GroundingDinoForObjectDetection  # noqa: PLC0415

    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "model.safetensors").exists():
        make_checkpoint(folder)
    ours = Ours(folder)
    model = GroundingDinoForObjectDetection.from_pretrained(folder, dtype=torch.float32).eval()
    for size in sizes:
        height, width = map(int, size.split("x"))
        pixels = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(height))
        padded = np.pad(pixels.numpy(), ((0, 0), (0, 0), (0, -height % 4), (0, -width % 4)))
        started = time.process_time()
        logits, boxes, chosen = ours.run(padded)
        between = time.process_time()
        wanted = theirs(model, pixels)
        ended = time.process_time()

        def compare(wanted: Any) -> np.ndarray[Any, Any]:
            apart = np.abs(boxes - wanted.pred_boxes[0].numpy()) * np.array([width, height] * 2)  # noqa: B023
            same = apart.max(axis=1) < ALIKE_PX
            off = np.abs(logits - wanted.logits[0, :, : len(IDS)].numpy())[same].max()  # noqa: B023
            print(
                f"{same.sum()}/{len(same)} queries alike, within {apart[same].max():.1e} px, all within "
                f"{apart.max():.2f} px, logits within {off:.1e}"
            )
            return same

        print(f"{size}: CPU seconds ours {between - started:.1f}, transformers {ended - between:.1f}")
        if not (~compare(wanted)).any():
            continue
        scores = wanted.enc_outputs_class[0].amax(-1)
        best, order = scores.topk(900)
        # cells at the very edge all have one score and one box: which of them is chosen makes no difference
        apart = (best - scores[torch.from_numpy(chosen)]).abs()
        for place in np.flatnonzero((order.numpy() != chosen) & (apart.numpy() > 0)):
            print(f"  place {place}: cells {order[place]} and {chosen[place]}, apart by {apart[place]:.1e}")
        print("  with our order:", end=" ")
        compare(theirs(model, pixels, chosen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or list(SIZES))
