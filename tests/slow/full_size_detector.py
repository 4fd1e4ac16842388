"""The exporter at the size of Grounding DINO Swin-T: a random checkpoint, exported and compared.

Run       python tests/slow/full_size_detector.py DIR    (1 GB on disk in DIR, 5 GB of memory)
What      transformers' default configuration (172 M parameters, 900 queries) with random weights in bf16 is
          saved, exported, and run on three picture sizes in both. Near ties among the best cells could swap
          queries, so those alike within 0.01 px are counted first.
Last      two AVX2 cores, torch 2.13, onnxruntime 1.31: exported in 31 s to one file of 346.2 MB;
          800x1216: 900/900 queries alike, within 4.0e-04 px, logits within 2.8e-04
          800x800:  900/900 queries alike, within 3.3e-04 px, logits within 2.5e-04
          423x1333: 898/900 queries alike, within 7.9e-04 px, logits within 2.2e-03 (two not looked into)
"""

import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch

from rexthinker_edge.export.detector_graph import write_detector
from rexthinker_edge.runtime.caption import phrase_masks

SIZES = ((800, 1216), (800, 800), (423, 1333))
IDS = [101, 2711, 2007, 1037, 2417, 6045, 1012, 102]


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


def main(folder: Path) -> None:
    """Make, export, compare, print."""
    from transformers import GroundingDinoForObjectDetection  # noqa: PLC0415

    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "model.safetensors").exists():
        make_checkpoint(folder)
    started = time.monotonic()
    print(write_detector(folder, folder / "detector.onnx"), f"{time.monotonic() - started:.0f} s")
    print({p.name: f"{p.stat().st_size / 1e6:.1f} MB" for p in sorted(folder.glob("detector.onnx*"))})
    session = ort.InferenceSession(str(folder / "detector.onnx"), providers=["CPUExecutionProvider"])
    model = GroundingDinoForObjectDetection.from_pretrained(folder, dtype=torch.float32).eval()
    mask, positions = phrase_masks(IDS)
    for height, width in SIZES:
        pixels = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(height))
        with torch.no_grad():
            wanted = model(pixel_values=pixels, input_ids=torch.tensor([IDS]))
        started = time.monotonic()
        logits, boxes = session.run(None, {
            "pixel_values": pixels.numpy(), "input_ids": np.array([IDS]),
            "token_type_ids": np.zeros((1, len(IDS)), np.int64), "position_ids": positions[None],
            "text_self_attention_mask": mask[None],
        })  # fmt: skip
        seconds = time.monotonic() - started
        apart = np.abs(boxes - wanted.pred_boxes.numpy())[0] * np.array([width, height] * 2)
        same = apart.max(axis=1) < 1e-2
        off = np.abs(logits - wanted.logits[..., : len(IDS)].numpy())[0][same].max()
        print(
            f"{height}x{width}: {same.sum()}/{len(same)} queries alike, within {apart[same].max():.1e} px, "
            f"logits within {off:.1e}, {seconds:.1f} s"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
