"""Grounding DINO said again for one picture of any size, in operations that `torch.onnx` can follow.

What      The same layers and weights as transformers' model, called in the same order; written anew are the
          parts that a tracer would freeze (paddings chosen by `if`, shapes made into constants), that have no
          ONNX form (`isin`, `cummax`: masks and positions are inputs), or that turn float64 (sampling grids).
Contract  One picture, no padding, so every mask over pixels is all true and drops out. Equal to transformers
          within float32 rounding (tests/export/test_detector_graph.py).
Layout    Feature maps are (1, cells, channels), row by row. Windows, shifts and padding are row numbers,
          computed once a stage, so that a block moves its cells by one look-up there and one back.
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


def attend(
    query: Tensor, key: Tensor, value: Tensor, heads: int, bias: Tensor | None, count: int = -1
) -> Tensor:
    """Softmax attention over (B, N, C) tensors; `bias` is added to the scores (B, heads, N, M).

    Args:
        count: N and M where they are the same known number, then B may be any; else B is 1.
    """
    lead, width = ((-1, count) if count > 0 else (1, -1)), int(query.shape[-1])
    q, k, v = (x.reshape(*lead, heads, width // heads).transpose(1, 2) for x in (query, key, value))
    scores = q @ k.transpose(-1, -2) * (width // heads) ** -0.5
    scores = scores if bias is None else scores + bias
    seen: Tensor = (scores.softmax(-1) @ v).transpose(1, 2).reshape(*lead, width)
    return seen


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


@dataclass(frozen=True)
class Windows:
    """Where the cells of one stage go for windowed attention, as row numbers; N cells, W windows."""

    take: Tensor  # (W * area,) which cell stands in each slot, N for padding
    give: Tensor  # (N,) in which slot each cell stands
    mask: Tensor | None  # (W, 1, area, area): -100 between parts that a shift brought together


def backbone(model: Any, pixels: Tensor) -> list[tuple[Tensor, Side, Side]]:
    """Swin's feature maps of the asked stages, each (1, cells, channels) with its height and width."""
    swin, maps = model.swin, []
    projection = swin.embeddings.patch_embeddings.projection
    patch, height, width = projection.kernel_size[0], pixels.shape[2], pixels.shape[3]
    rows, cols = (height + patch - 1) // patch, (width + patch - 1) // patch
    padded = pad(pixels, (0, cols * patch - width, 0, rows * patch - height))
    x = swin.embeddings.norm(projection(padded).flatten(2).transpose(1, 2))
    for stage, name in zip(swin.encoder.layers, model.stage_names[1:], strict=True):
        shifts = {int(block.shift_size) for block in stage.blocks}
        window = int(stage.blocks[0].window_size)
        places = {shift: place_windows(rows, cols, window, shift) for shift in shifts}
        for block in stage.blocks:
            x = swin_block(block, x, places[int(block.shift_size)])
        if name in model.out_features:
            maps.append((model.hidden_states_norms[name](x), rows, cols))
        if stage.downsample is not None:
            x = merge(stage.downsample, x, rows, cols)
            rows, cols = (rows + 1) // 2, (cols + 1) // 2
    return maps


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """(1, N, C) to (1, len(index), C); row N is zero."""
    return torch.cat([x, torch.zeros_like(x[:, :1])], dim=1)[:, index]


def merge(downsample: Any, x: Tensor, rows: Side, cols: Side) -> Tensor:
    """Four neighbours to one, at twice the channels; beyond the edge are zeros."""
    row, col = torch.arange((rows + 1) // 2) * 2, torch.arange((cols + 1) // 2) * 2
    four = [flat_index(row + down, col + right, rows, cols) for right in range(2) for down in range(2)]
    index = torch.stack([one.reshape(-1) for one in four], dim=1).reshape(-1)
    beside = take_rows(x, index).reshape(1, -1, 4 * int(x.shape[-1]))
    return downsample.reduction(downsample.norm(beside))  # type: ignore[no-any-return]


def flat_index(row: Tensor, col: Tensor, rows: Side, cols: Side) -> Tensor:
    """(len(row), len(col)): numbers of cells row by row, rows * cols for those beyond the edge."""
    inside = (row < rows)[:, None] & (col < cols)[None]
    return torch.where(inside, row[:, None] * cols + col[None], torch.as_tensor(rows * cols))


def place_windows(rows: Side, cols: Side, window: int, shift: int) -> Windows:
    """Cut rows x cols cells, padded to whole windows and rolled by `shift`, into windows."""
    down, across = (rows + window - 1) // window, (cols + window - 1) // window
    row, col = torch.arange(down * window), torch.arange(across * window)
    source = flat_index((row + shift) % (down * window), (col + shift) % (across * window), rows, cols)
    here = (torch.arange(rows) - shift + down * window) % (down * window)
    there = (torch.arange(cols) - shift + across * window) % (across * window)
    slot = ((here // window * across)[:, None] + (there // window)[None]) * window**2
    slot = slot + (here % window * window)[:, None] + (there % window)[None]
    mask = None
    if shift:
        row_part = (row >= down * window - window).int() + (row >= down * window - shift).int()
        col_part = (col >= across * window - window).int() + (col >= across * window - shift).int()
        parts = by_window(row_part[:, None] * 3 + col_part[None], down, across, window)
        mask = (parts[:, None, :] != parts[:, :, None]).to(torch.float32)[:, None] * -100.0
    return Windows(by_window(source, down, across, window).reshape(-1), slot.reshape(-1), mask)


def by_window(values: Tensor, down: Side, across: Side, window: int) -> Tensor:
    """(down * window, across * window) to (down * across, window * window)."""
    return values.reshape(down, window, across, window).transpose(1, 2).reshape(-1, window * window)


def swin_block(block: Any, x: Tensor, places: Windows) -> Tensor:
    """Windowed attention over (1, N, C), then the MLP."""
    area, channels = int(block.window_size) ** 2, int(x.shape[-1])
    slots = take_rows(block.layernorm_before(x), places.take).reshape(-1, area, channels)
    seen = window_attention(block.attention, slots, places.mask).reshape(1, -1, channels)
    x = x + seen[:, places.give]
    return x + block.mlp(block.layernorm_after(x))  # type: ignore[no-any-return]


def window_attention(attention: Any, x: Tensor, mask: Tensor | None) -> Tensor:
    """Attention within windows (windows, area, C), with the learned bias of relative places."""
    bias = attention.relative_position_bias()
    bias = bias if mask is None else bias + mask
    query, key, value = attention.q_proj(x), attention.k_proj(x), attention.v_proj(x)
    seen = attend(query, key, value, attention.num_attention_heads, bias, count=int(x.shape[1]))
    return attention.o_proj(seen)  # type: ignore[no-any-return]


def project(model: Any, maps: Sequence[tuple[Tensor, Side, Side]]) -> Cells:
    """All levels at width d_model, with the coarser ones made here, and their positions."""
    sources = [x.transpose(1, 2).reshape(1, int(x.shape[-1]), rows, cols) for x, rows, cols in maps]
    sides = [(rows, cols) for _, rows, cols in maps]
    levels = [model.input_proj_vision[n](source) for n, source in enumerate(sources)]
    for n in range(len(levels), model.config.num_feature_levels):
        levels.append(model.input_proj_vision[n](sources[-1] if n == len(sources) else levels[-1]))
        sides.append(((sides[-1][0] + 1) // 2, (sides[-1][1] + 1) // 2))
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
    return grid.reshape(1, -1, 2 * features)


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
    return grid.reshape(-1, 2)


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
    return attention.sampling_offsets(query).reshape(1, -1, *shape)  # type: ignore[no-any-return]


def deform(
    attention: Any, query: Tensor, source: Tensor, where: Tensor, sides: Sequence[tuple[Side, Side]]
) -> Tensor:
    """Weighted samples of `source` (1, N, d_model) at `where` (1, Q, heads, levels, points, 2) in 0..1.

    Levels are summed as they come, which spares transformers' stack over all of them.
    """
    heads, levels, points = attention.n_heads, attention.n_levels, attention.n_points
    depth = attention.d_model // heads
    value = attention.value_proj(source).reshape(-1, heads, depth).permute(1, 2, 0)  # (heads, depth, N)
    weights = attention.attention_weights(query).reshape(-1, heads, levels * points).softmax(-1)
    weights = weights.reshape(-1, heads, levels, points).permute(2, 1, 0, 3)  # (levels, heads, Q, points)
    grid = (where[0] * 2 - 1).to(torch.float32).permute(2, 1, 0, 3, 4)  # (levels, heads, Q, points, 2)
    total, start = None, 0
    for level, (height, width) in enumerate(sides):
        image = value[:, :, start : start + height * width].reshape(heads, depth, height, width)
        found = grid_sample(image, grid[level], mode="bilinear", padding_mode="zeros", align_corners=False)
        part = (found * weights[level][:, None]).sum(-1)  # (heads, depth, Q)
        total = part if total is None else total + part
        start = start + height * width
    assert total is not None
    return attention.output_proj(total.reshape(1, heads * depth, -1).transpose(1, 2))  # type: ignore[no-any-return]


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
