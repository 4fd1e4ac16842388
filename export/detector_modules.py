"""Grounding DINO said again for one picture of any size, in operations that `torch.onnx` can follow.

What      The same layers and weights as transformers' model, called in the same order; written anew are the
          parts that a tracer would freeze (paddings chosen by `if`, shapes made into constants), that have no
          ONNX form (`isin`, `cummax`: masks and positions are inputs), or that turn float64 (sampling grids).
Contract  One picture, no padding, so every mask over pixels is all true and drops out. Equal to transformers
          within float32 rounding (tests/export/test_detector_graph.py).
Layout    Feature maps are (1, height, width, channels) in the backbone, (1, cells, d_model) after it.
Elsewhere writing the file: detector_graph.py; masks and positions: runtime/caption.py.
Source    transformers 5.23, models/grounding_dino and models/swin.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample, pad

Side = Any
"""An int, or, while tracing, the tensor that stands for it."""


@dataclass(frozen=True)
class Cells:
    """The encoder's cells: all levels flattened one after the other."""

    features: Tensor  # (1, N, d_model)
    positions: Tensor  # (1, N, d_model)
    sides: list[tuple[Side, Side]]  # (height, width) per level


class ExportedDetector(nn.Module):
    """`forward` is the graph: a picture and a caption in, logits and boxes out."""

    def __init__(self, detector: Any) -> None:
        """Wrap transformers' `GroundingDinoForObjectDetection`."""
        super().__init__()
        self.detector = detector

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        token_type_ids: Tensor,
        position_ids: Tensor,
        text_self_attention_mask: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Args: (1, 3, H, W) float32; three of (1, T) int64; (1, T, T) bool.

        Returns:
            logits (1, queries, T) and boxes (1, queries, 4), centre and size as shares of the picture.
        """
        model = self.detector.model
        words = bert(model.text_backbone, input_ids, token_type_ids, position_ids, text_self_attention_mask)
        text = model.text_projection(words)
        cells = project(model, backbone(model.backbone.conv_encoder.model, pixel_values))
        vision, text = encode(model, cells, text, position_ids, text_self_attention_mask)
        reference = propose(model, vision, text, cells.sides)
        return decode(self.detector, vision, text, cells.sides, reference)


def heads_apart(x: Tensor, heads: int) -> Tensor:
    """(B, N, C) to (B, heads, N, C / heads)."""
    batch, count, width = x.shape
    return x.reshape(batch, count, heads, width // heads).transpose(1, 2)


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, bias: Tensor | None) -> Tensor:
    """Softmax attention over (B, N, C) tensors; `bias` is added to the scores (B, heads, N, M)."""
    q, k, v = (heads_apart(x, heads) for x in (query, key, value))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    scores = scores if bias is None else scores + bias
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def bert(model: Any, input_ids: Tensor, token_type_ids: Tensor, position_ids: Tensor, mask: Tensor) -> Tensor:
    """The text backbone's last hidden state (1, T, text hidden)."""
    hidden: Tensor = model.embeddings(input_ids, token_type_ids, position_ids)
    bias = (1.0 - mask[:, None].to(hidden.dtype)) * torch.finfo(hidden.dtype).min
    for layer in model.encoder.layer:
        own = layer.attention.self
        seen = attend(own.query(hidden), own.key(hidden), own.value(hidden), own.num_attention_heads, bias)
        hidden = layer.attention.output(seen, hidden)
        hidden = layer.output(layer.intermediate(hidden), hidden)
    return hidden


def backbone(model: Any, pixels: Tensor) -> list[Tensor]:
    """Swin's feature maps of the asked stages, each (1, height, width, channels)."""
    swin, maps = model.swin, []
    projection = swin.embeddings.patch_embeddings.projection
    patch = projection.kernel_size[0]
    height, width = pixels.shape[2], pixels.shape[3]
    padded = pad(pixels, (0, (patch - width % patch) % patch, 0, (patch - height % patch) % patch))
    x = swin.embeddings.norm(projection(padded).permute(0, 2, 3, 1))
    for stage, name in zip(swin.encoder.layers, model.stage_names[1:], strict=True):
        for block in stage.blocks:
            x = swin_block(block, x)
        if name in model.out_features:
            maps.append(model.hidden_states_norms[name](x))
        if stage.downsample is not None:
            x = merge(stage.downsample, x)
    return maps


def merge(downsample: Any, x: Tensor) -> Tensor:
    """Four neighbours to one, at twice the channels; odd sides are padded."""
    x = pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
    four = torch.cat([x[:, row::2, col::2] for col in range(2) for row in range(2)], dim=-1)
    return downsample.reduction(downsample.norm(four))  # type: ignore[no-any-return]


def swin_block(block: Any, x: Tensor) -> Tensor:
    """Windowed attention, shifted in every second block, then the MLP."""
    window, shift = int(block.window_size), int(block.shift_size)
    height, width = x.shape[1], x.shape[2]
    normed = block.layernorm_before(x)
    padded = pad(
        normed, (0, 0, 0, (window - width % window) % window, 0, (window - height % window) % window)
    )
    if shift:
        padded = torch.roll(padded, (-shift, -shift), (1, 2))
    rows, cols = padded.shape[1], padded.shape[2]
    seen = window_attention(block.attention, windows(padded, window), window_mask(rows, cols, window, shift))
    seen = seen.reshape(1, rows // window, cols // window, window, window, x.shape[-1])
    seen = seen.transpose(2, 3).reshape(1, rows, cols, x.shape[-1])
    if shift:
        seen = torch.roll(seen, (shift, shift), (1, 2))
    x = x + seen[:, :height, :width]
    return x + block.mlp(block.layernorm_after(x))  # type: ignore[no-any-return]


def windows(x: Tensor, window: int) -> Tensor:
    """(1, rows, cols, C) to (windows, window * window, C)."""
    rows, cols, channels = x.shape[1] // window, x.shape[2] // window, x.shape[3]
    return (
        x.reshape(rows, window, cols, window, channels).transpose(1, 2).reshape(-1, window * window, channels)
    )


def window_mask(rows: Side, cols: Side, window: int, shift: int) -> Tensor | None:
    """(windows, 1, area, area): -100 between parts of a shifted window that are not neighbours."""
    if not shift:
        return None
    row, col = torch.arange(rows), torch.arange(cols)
    row_part = (row >= rows - window).to(torch.float32) + (row >= rows - shift).to(torch.float32)
    col_part = (col >= cols - window).to(torch.float32) + (col >= cols - shift).to(torch.float32)
    parts = windows((row_part[:, None] * 3 + col_part[None, :])[None, :, :, None], window)[..., 0]
    return (parts[:, None, :] != parts[:, :, None]).to(torch.float32)[:, None] * -100.0


def window_attention(attention: Any, x: Tensor, mask: Tensor | None) -> Tensor:
    """Attention within windows (windows, area, C), with the learned bias of relative places."""
    bias = attention.relative_position_bias()
    bias = bias if mask is None else bias + mask
    seen = attend(
        attention.q_proj(x), attention.k_proj(x), attention.v_proj(x), attention.num_attention_heads, bias
    )
    return attention.o_proj(seen)  # type: ignore[no-any-return]


def project(model: Any, maps: Sequence[Tensor]) -> Cells:
    """All levels at width d_model, with the coarser ones made here, and their positions."""
    sources = [x.permute(0, 3, 1, 2) for x in maps]
    levels = [model.input_proj_vision[n](source) for n, source in enumerate(sources)]
    for n in range(len(levels), model.config.num_feature_levels):
        levels.append(model.input_proj_vision[n](sources[-1] if n == len(sources) else levels[-1]))
    sides = [(level.shape[2], level.shape[3]) for level in levels]
    positions = [
        sine_positions(height, width, model.config) + model.level_embed[n]
        for n, (height, width) in enumerate(sides)
    ]
    features = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)
    return Cells(features, torch.cat(positions, dim=1), sides)


def sine_positions(height: Side, width: Side, config: Any) -> Tensor:
    """(1, height * width, d_model): where each cell stands, y first."""
    features = config.d_model // 2
    scale, epsilon = 2 * math.pi, 1e-6
    y = (torch.arange(height).to(torch.float32) + 1) / (height + epsilon) * scale
    x = (torch.arange(width).to(torch.float32) + 1) / (width + epsilon) * scale
    wave = config.positional_embedding_temperature ** (2 * (torch.arange(features) // 2) / features)
    rows, cols = waves(y[:, None] / wave), waves(x[:, None] / wave)
    grid = torch.cat([rows[:, None].expand(-1, width, -1), cols[None].expand(height, -1, -1)], dim=-1)
    return grid.flatten(0, 1)[None]


def waves(angles: Tensor) -> Tensor:
    """Sine and cosine in turn along the last axis."""
    return torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), dim=-1).flatten(-2)


def sinusoids(coordinates: Tensor, features: int) -> Tensor:
    """(..., n) shares to (..., n * features); the first two change places, as DETR has y before x."""
    wave = 10_000 ** (2 * (torch.arange(features) // 2) / features)
    parts = [waves(c[..., None] * (2 * math.pi) / wave) for c in coordinates.unbind(-1)]
    if len(parts) > 1:
        parts[0], parts[1] = parts[1], parts[0]
    return torch.cat(parts, dim=-1)


def encode(
    model: Any, cells: Cells, text: Tensor, position_ids: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Fuse picture and caption layer by layer: (1, N, d_model) and (1, T, d_model)."""
    vision = cells.features
    text_positions = sinusoids(position_ids[..., None].to(text.dtype), model.config.d_model)
    reference = torch.cat([centres(h, w) for h, w in cells.sides])[None, :, None]
    bias = (1.0 - mask[:, None].to(text.dtype)) * torch.finfo(text.dtype).min
    for layer in model.encoder.layers:
        (vision, _), (text, _) = layer.fusion_layer(vision, text)
        text = enhance(layer.text_enhancer_layer, text, text_positions, bias)
        vision = encoder_layer(layer.deformable_layer, vision, cells, reference)
    return vision, text


def centres(height: Side, width: Side) -> Tensor:
    """(height * width, 2): the middle of each cell as shares of the picture, (x, y)."""
    y = (torch.arange(height).to(torch.float32) + 0.5) / height
    x = (torch.arange(width).to(torch.float32) + 0.5) / width
    grid = torch.stack([x[None].expand(height, -1), y[:, None].expand(-1, width)], dim=-1)
    return grid.flatten(0, 1)


def enhance(layer: Any, text: Tensor, positions: Tensor, bias: Tensor) -> Tensor:
    """Self-attention among the caption's tokens, then an MLP."""
    seen = multihead(layer.self_attn, text + positions, text + positions, text, bias)
    text = layer.layer_norm_before(text + seen)
    return layer.layer_norm_after(text + layer.fc2(layer.activation(layer.fc1(text))))  # type: ignore[no-any-return]


def multihead(attention: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """transformers' multi-head attention with its projections."""
    seen = attend(
        attention.query(query),
        attention.key(key),
        attention.value(value),
        attention.num_attention_heads,
        bias,
    )
    return attention.out_proj(seen)  # type: ignore[no-any-return]


def encoder_layer(layer: Any, vision: Tensor, cells: Cells, reference: Tensor) -> Tensor:
    """Deformable attention among the cells, then an MLP."""
    attention = layer.self_attn
    offsets = sampling_offsets(attention, vision + cells.positions)
    normalizer = torch.stack([torch.stack([as_float(w), as_float(h)]) for h, w in cells.sides])
    where = reference[:, :, None, :, None] + offsets / normalizer[:, None]
    seen = deform(attention, vision + cells.positions, vision, where, cells.sides)
    vision = layer.self_attn_layer_norm(vision + seen)
    return feed_forward(layer, vision)


def as_float(side: Side) -> Tensor:
    """A side as a float32 scalar, traced or not."""
    return torch.as_tensor(side).to(torch.float32)


def feed_forward(layer: Any, x: Tensor) -> Tensor:
    """The MLP every deformable layer ends with."""
    return layer.final_layer_norm(x + layer.fc2(layer.activation_fn(layer.fc1(x))))  # type: ignore[no-any-return]


def sampling_offsets(attention: Any, query: Tensor) -> Tensor:
    """(1, Q, heads, levels, points, 2)."""
    shape = (attention.n_heads, attention.n_levels, attention.n_points, 2)
    return attention.sampling_offsets(query).unflatten(-1, shape)  # type: ignore[no-any-return]


def deform(
    attention: Any, query: Tensor, source: Tensor, where: Tensor, sides: Sequence[tuple[Side, Side]]
) -> Tensor:
    """Weighted samples of `source` (1, N, d_model) at `where` (1, Q, heads, levels, points, 2) in 0..1.

    Levels are summed as they come, which spares transformers' stack over all of them.
    """
    heads, levels, points = attention.n_heads, attention.n_levels, attention.n_points
    value = attention.value_proj(source)[0].unflatten(-1, (heads, -1)).permute(1, 2, 0)  # (heads, depth, N)
    weights = attention.attention_weights(query)[0].unflatten(-1, (heads, levels * points)).softmax(-1)
    weights = weights.unflatten(-1, (levels, points)).permute(2, 1, 0, 3)  # (levels, heads, Q, points)
    grid = (where[0] * 2 - 1).to(torch.float32).permute(2, 1, 0, 3, 4)  # (levels, heads, Q, points, 2)
    total, start = None, 0
    for level, (height, width) in enumerate(sides):
        image = value[:, :, start : start + height * width].unflatten(-1, (height, width))
        found = grid_sample(image, grid[level], mode="bilinear", padding_mode="zeros", align_corners=False)
        part = (found * weights[level][:, None]).sum(-1)  # (heads, depth, Q)
        total = part if total is None else total + part
        start = start + height * width
    assert total is not None
    return attention.output_proj(total.flatten(0, 1).transpose(0, 1)[None])  # type: ignore[no-any-return]


def inverse_sigmoid(x: Tensor) -> Tensor:
    """Logit with transformers' clamp."""
    x = x.clamp(1e-5, 1 - 1e-5)
    return (x / (1 - x)).log()


def propose(model: Any, vision: Tensor, text: Tensor, sides: Sequence[tuple[Side, Side]]) -> Tensor:
    """The boxes of the best cells (1, queries, 4), where the decoder starts."""
    anchors = []
    for level, (height, width) in enumerate(sides):
        middle = centres(height, width)
        anchors.append(torch.cat([middle, torch.full_like(middle, 0.05 * 2.0**level)], dim=-1))
    anchor = torch.cat(anchors)[None]
    usable = ((anchor > 0.01) & (anchor < 0.99)).all(-1, keepdim=True)
    cell = model.enc_output_norm(model.enc_output(torch.where(usable, vision, torch.zeros_like(vision))))
    start = torch.where(usable, (anchor / (1 - anchor)).log(), torch.full_like(anchor, float("inf")))
    boxes: Tensor = model.encoder_output_bbox_embed(cell) + start
    best = torch.topk((cell @ text.transpose(1, 2)).amax(-1), model.config.num_queries, dim=1).indices
    return boxes.gather(1, best[..., None].expand(-1, -1, 4)).sigmoid()


def decode(
    detector: Any, vision: Tensor, text: Tensor, sides: Sequence[tuple[Side, Side]], reference: Tensor
) -> tuple[Tensor, Tensor]:
    """Refine the queries layer by layer; logits and boxes of the last layer."""
    decoder = detector.model.decoder
    hidden = detector.model.query_position_embeddings.weight[None]
    given = reference
    for n, layer in enumerate(decoder.layers):
        given = reference
        positions = decoder.reference_points_head(sinusoids(given, decoder.config.d_model // 2))
        hidden = decoder_layer(layer, hidden, positions, given, vision, text, sides)
        reference = (decoder.bbox_embed[n](hidden) + inverse_sigmoid(given)).sigmoid()
    hidden = decoder.layer_norm(hidden)
    boxes = (detector.bbox_embed[-1](hidden) + inverse_sigmoid(given)).sigmoid()
    return hidden @ text.transpose(1, 2), boxes


def decoder_layer(
    layer: Any, hidden: Tensor, positions: Tensor, boxes: Tensor, vision: Tensor, text: Tensor,
    sides: Sequence[tuple[Side, Side]],
) -> Tensor:  # fmt: skip
    """Queries see each other, the caption, and the picture around their boxes (1, Q, 4)."""
    query = hidden + positions
    hidden = layer.self_attn_layer_norm(hidden + multihead(layer.self_attn, query, query, hidden, None))
    seen = multihead(layer.encoder_attn_text, hidden + positions, text, text, None)
    hidden = layer.encoder_attn_text_layer_norm(hidden + seen)
    attention = layer.encoder_attn
    offsets = sampling_offsets(attention, hidden + positions) / attention.n_points
    around = boxes[:, :, None, None, None]
    where = around[..., :2] + offsets * around[..., 2:] * 0.5
    seen = deform(attention, hidden + positions, vision, where, sides)
    return feed_forward(layer, layer.encoder_attn_layer_norm(hidden + seen))
