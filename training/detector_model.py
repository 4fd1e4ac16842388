"""The small Grounding DINO: its random weights, its loss of a batch, and how it is saved.

Contract  transformers' own model, unchanged. It is saved in bf16 in Hugging Face's layout.
Elsewhere sizes: detector_config.py; the losses: detector_loss.py; the loop: detector.py.
Source    Grounding DINO, arXiv 2303.05499, with the choices told in docs/training/detector.md.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rexthinker_edge.training.detector_config import MEAN, STD, DetectorRecipe, model_config
from rexthinker_edge.training.detector_data import Batch
from rexthinker_edge.training.detector_loss import decoder_loss, encoder_loss, total

TEXT_SCALE, TEXT_OFFSET, PRIOR_LOGIT = 0.1, 0.5, -4.6


def fresh_model(recipe: DetectorRecipe, vocabulary: int) -> Any:
    """A model with random weights whose logits start near `PRIOR_LOGIT`.

    The logits are bare dot products of a vision and a text vector and have no bias. Both come out of layer
    norms, so a constant offset in each makes a constant in the product, and a small gain keeps the rest
    small.
    """
    from transformers import GroundingDinoForObjectDetection  # noqa: PLC0415

    torch.manual_seed(recipe.seed)
    model = GroundingDinoForObjectDetection(model_config(recipe, vocabulary))
    _spread(model)
    with torch.no_grad():
        text_norm = model.model.encoder.layers[-1].text_enhancer_layer.layer_norm_after
        text_norm.weight.fill_(TEXT_SCALE)
        text_norm.bias.fill_(TEXT_OFFSET)
        for norm in (model.model.enc_output_norm, model.model.decoder.layer_norm):
            norm.bias.fill_(PRIOR_LOGIT / (TEXT_OFFSET * recipe.d_model))
        for layer in model.model.decoder.layers:
            layer.encoder_attn_text.key.weight.mul_(1 / TEXT_SCALE / 2)
            layer.encoder_attn_text.value.weight.mul_(1 / TEXT_SCALE / 2)
        for layer in model.model.encoder.layers:
            layer.fusion_layer.vision_param.fill_(0.3)
            layer.fusion_layer.text_param.fill_(0.05)
    return model


def _spread(model: nn.Module) -> None:
    """Xavier weights instead of a fixed 0.02, which is too small for layers this narrow."""
    fixed = ("sampling_offsets", "attention_weights", "relative_position")
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not any(word in name for word in fixed):
            if "bbox_embed" in name and name.endswith("layers.2"):
                continue  # boxes start at their anchors
            nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.5)


def run_layers(model: Any, batch: Batch) -> dict[str, Any]:
    """Logits and boxes of the encoder (before the sigmoid) and of every decoder layer."""
    out = model.model(pixel_values=batch.pixels, input_ids=batch.input_ids)
    tokens = batch.input_ids.shape[1]
    text = out.encoder_last_hidden_state_text.transpose(1, 2)
    layers = []
    for n in range(model.config.decoder_layers):
        hidden = out.intermediate_hidden_states[:, n]
        reference = out.init_reference_points if n == 0 else out.intermediate_reference_points[:, n - 1]
        boxes = (model.bbox_embed[n](hidden) + torch.special.logit(reference, eps=1e-5)).sigmoid()
        layers.append((hidden @ text, boxes))
    return {
        "encoder": (out.enc_outputs_class[..., :tokens], out.enc_outputs_coord_logits),
        "layers": layers,
    }


def step_loss(model: Any, batch: Batch) -> tuple[Tensor, dict[str, float]]:
    """The loss of one batch and its parts for the log."""
    out = run_layers(model, batch)
    logits, boxes = out["encoder"]
    encoder = encoder_loss(logits, boxes, batch)
    layers = [decoder_loss(logits, boxes, batch) for logits, boxes in out["layers"]]
    loss = total([encoder, *((cls, box) for cls, box, _ in layers)])
    parts = {
        "encoder_class": encoder[0].item(), "encoder_box": encoder[1].item(),
        "class": layers[-1][0].item(), "box": layers[-1][1].item(), "iou": layers[-1][2].item(),
    }  # fmt: skip
    return loss, parts


def groups_of(model: nn.Module, recipe: DetectorRecipe) -> list[dict[str, Any]]:
    """Parameter groups: sampling offsets move slowly, vectors are not decayed."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault(("sampling_offsets" in name, parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": members,
            "weight_decay": recipe.weight_decay if decayed else 0.0,
            "scale": 0.2 if slow else 1.0,
        }
        for (slow, decayed), members in groups.items()
    ]


def save_model(model: Any, tokenizer: dict[str, Any], recipe: DetectorRecipe, folder: Path) -> None:
    """Write a Hugging Face checkpoint: bf16 weights, config, tokenizer, preprocessor."""
    state = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=state)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}, indent=2) + "\n")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor(recipe), indent=2) + "\n")


def preprocessor(recipe: DetectorRecipe) -> dict[str, Any]:
    """transformers' `preprocessor_config.json` of a recipe's pictures."""
    return {
        "image_processor_type": "GroundingDinoImageProcessor", "do_resize": True, "do_rescale": True,
        "do_normalize": True, "do_pad": True, "resample": 2, "rescale_factor": 1 / 255,
        "image_mean": list(MEAN), "image_std": list(STD), "format": "coco_detection",
        "size": {"shortest_edge": recipe.shortest_px, "longest_edge": recipe.longest_px},
        "box_threshold": recipe.box_threshold,  # ours: transformers keeps and ignores it
    }  # fmt: skip
