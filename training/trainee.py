"""The model in training, and what its hidden states are asked on the way.

Layout    `Trainee` runs system turn, prefixes and turns one after another over a lent KV cache; `Probes` are
          linear heads that live in training alone.
Contract  The model is transformers' own, unchanged. Picture tokens should know their cell and its thing after
          `CELL_LAYER` layers, a hint box its cell and its number by then and its thing after `BOX_LAYER`. One
          head names cells for both, which ties a box in the text to a place in the picture within 400
          steps; one names numbers for the hint and for the "Ball 3" of a trace.
Elsewhere batches: vlm_batch.py; the loop: sft.py; what it won: docs/negative-results.md.
Source    docs/sources.md#small-model
"""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, smooth_l1_loss
from transformers import DynamicCache, Qwen2_5_VLForConditionalGeneration

from rexthinker_edge.runtime.tokens import TextTokenizer
from rexthinker_edge.training.cell_truth import FIELDS, OWN_FIELDS, cell_fields
from rexthinker_edge.training.looks import HEADS, Kind
from rexthinker_edge.training.vlm_batch import IGNORE, Batch, Pictures, Turns
from rexthinker_edge.training.vlm_config import Shape

CELL_LAYER = 2
CELL_BINS = 32  # rows or columns of picture tokens that are told apart
SPAN_PX = 100.0  # unit of places and sizes that hidden states are asked for
INDEX_BINS = 16  # more than the candidates of any workbench picture
BOX_LAYER = 4  # later layers read there what stands in each box


class Probes(nn.Module):
    """Linear heads that ask hidden states for what they should know by then; training only."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.place = nn.Linear(shape.hidden, 2 * CELL_BINS)
        sizes = [len(values) for values in FIELDS.values()]
        self.sizes = [size + 1 for size in sizes]  # the last class of a picture token: nothing here
        self.seen = nn.Linear(shape.hidden, sum(self.sizes))
        self.cell = nn.Linear(shape.hidden, sum(self.sizes))
        self.box = nn.Linear(shape.hidden, sum(self.sizes))
        self.index = nn.Linear(shape.hidden, INDEX_BINS)
        self.extent = nn.Linear(shape.hidden, 3)
        self.recalled = nn.Linear(shape.hidden, 3)

    def fields(self, head: nn.Linear, hidden: Tensor, labels: Tensor) -> tuple[Tensor, list[float]]:
        """A fifth of the summed cross-entropy over FIELDS, and each one's accuracy.

        Args:
            hidden: (N, H).
            labels: (N, fields), IGNORE where unknown.
        """
        loss, right = hidden.new_zeros(()), []
        for logits, label in zip(head(hidden).split(self.sizes, dim=1), labels.T, strict=True):
            known = label != IGNORE
            if bool(known.any()):
                loss = loss + cross_entropy(logits, label, ignore_index=IGNORE)
                right.append(float((logits.argmax(1) == label)[known].float().mean()))
            else:
                right.append(math.nan)
        return loss / OWN_FIELDS, right

    def places(self, hidden: Tensor, cells: Tensor) -> Tensor:
        """Cross-entropy of row and column; one head, so that pictures and boxes name a place alike."""
        logits = self.place(hidden).view(-1, 2, CELL_BINS)
        return cross_entropy(logits.flatten(0, 1), cells.clamp(max=CELL_BINS - 1).flatten())


class Trainee(nn.Module):
    """Model and probes, with the two hidden states the probes look at."""

    def __init__(
        self, model: Qwen2_5_VLForConditionalGeneration, shape: Shape, tokenizer: TextTokenizer
    ) -> None:
        super().__init__()
        self.model, self.probes = model, Probes(shape)
        signs = (
            f"{space}{sign}{end}" for space in ("", " ") for sign in "✅❌" for end in ("", "\n", "\n\n")
        )
        pieces = [tokenizer.encode_plain(sign) for sign in signs]
        self._verdicts = torch.tensor([ids[0] for ids in pieces if len(ids) == 1], dtype=torch.long)
        numbers = (tokenizer.encode_plain(f" {number}") for number in range(1, INDEX_BINS + 1))
        self._index_ids = torch.tensor([ids[0] for ids in numbers])
        self._hidden: dict[str, Tensor] = {}
        layers = model.model.language_model.layers
        layers[CELL_LAYER - 1].register_forward_hook(partial(self._keep, "cell"))
        layers[BOX_LAYER - 1].register_forward_hook(partial(self._keep, "box"))
        for number in {layer for layer, _ in HEADS.values()}:
            layers[number].self_attn.q_proj.register_forward_hook(partial(self._keep, f"query{number}"))
        recall = HEADS[Kind.RECALLED][0]
        layers[recall].register_forward_hook(partial(self._keep, "recalled"))
        layers[0].register_forward_pre_hook(lambda _, inputs: self._keep("seen", None, None, inputs[0]))

    def _keep(self, name: str, _module: Any, _inputs: Any, output: Any) -> None:
        self._hidden[name] = output[0] if isinstance(output, tuple) else output

    def forward(
        self, batch: Batch | Pictures, image_pad: int, auxiliary: float
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch and figures for the log; pictures alone concern the vision tower alone.

        The system turn is computed once and its keys and values lent to every prefix, theirs to every turn.
        """
        figures: dict[str, float] = {}
        if isinstance(batch, Pictures):
            return self._look_at(batch, figures), figures
        text = self.model.model.language_model
        cache = DynamicCache()
        text(input_ids=batch.system_ids, past_key_values=cache, use_cache=True)
        cache = _lend(cache, torch.zeros(len(batch.samples), dtype=torch.long))
        self.model.model(
            input_ids=batch.ids,
            pixel_values=batch.patches,
            image_grid_thw=batch.grids,
            position_ids=batch.positions,
            attention_mask={"full_attention": batch.mask_BHQK},
            past_key_values=cache,
            use_cache=True,
        )
        extents = _extents(batch)
        probed = self._probe(batch, image_pad, extents, figures) if auxiliary else torch.zeros(())
        if batch.pictures is not None:
            probed = probed + self._look_at(batch.pictures, figures)
        answered = [self._turn_logits(cache, turns, extents) for turns in batch.turns]
        logits, targets, named, looked, kinds, recalled = (
            torch.cat(parts) for parts in zip(*answered, strict=True)
        )
        figures |= {f"look_{kind.name.lower()}": _mean(looked[kinds == kind]) for kind in Kind}
        figures["recalled"] = recalled.mean().item()
        loss = self._turn_loss(logits, targets, figures)
        weights = torch.bincount(kinds, minlength=len(Kind)).clamp(min=1).rsqrt()[kinds]
        attended = (looked * weights).sum() / weights.sum()
        return loss + auxiliary * (probed + named.mean() + 2 * attended + recalled.mean()), figures

    def _look_at(self, pictures: Pictures, figures: dict[str, float]) -> Tensor:
        """The loss of the vision tower's probe, letters and contacts once more by themselves."""
        seen = self.model.model.visual(pictures.patches, grid_thw=pictures.grids).pooler_output
        loss, _ = self.probes.fields(self.probes.seen, seen, pictures.fields)
        logits = self.probes.seen(seen).split(self.probes.sizes, dim=1)
        for number, field in enumerate(FIELDS):
            label, nothing = pictures.fields[:, number], self.probes.sizes[number] - 1
            told = (label != IGNORE) & (label < nothing)
            if field == "relation":
                told &= label > 0  # what stands alone is the rule
            if field == "letter" or number >= OWN_FIELDS:
                loss = loss + 2 * cross_entropy(logits[number][told], label[told])
                figures[f"seen_{field}"] = (logits[number].argmax(1) == label)[told].float().mean().item()
        return loss

    def _turn_logits(self, cache: DynamicCache, turns: Turns, extents: Tensor) -> tuple[Tensor, ...]:
        """Logits and targets of the answers' tokens; losses of candidate numbers, looks and recalled boxes.

        Args:
            extents: (B, system + S, 3) of `_extents`.
        """
        lent = _lend(cache, turns.rows)
        hidden = self.model.model.language_model(
            input_ids=turns.ids,
            position_ids=turns.positions,
            attention_mask={"full_attention": turns.mask_RHQK},
            past_key_values=lent,
            use_cache=True,
        ).last_hidden_state
        wanted = turns.targets[:, 1:] != IGNORE
        numbers = turns.ids[..., None] == self._index_ids
        said = numbers.any(-1)
        named = cross_entropy(
            self.probes.index(self._hidden["cell"][said]), numbers[said].long().argmax(-1), reduction="none"
        )
        mentions = turns.looks[turns.looks[:, 3] == Kind.RECALLED]
        told = self.probes.recalled(self._hidden["recalled"][mentions[:, 0], mentions[:, 1]])
        mentioned = extents[turns.rows[mentions[:, 0]], mentions[:, 2]]
        recalled = smooth_l1_loss(told, mentioned, reduction="none", beta=0.1).sum(1)
        return (
            self.model.lm_head(hidden[:, :-1][wanted]),
            turns.targets[:, 1:][wanted],
            named,
            self._looked(lent, turns),
            turns.looks[:, 3],
            recalled,
        )

    def _looked(self, cache: DynamicCache, turns: Turns) -> Tensor:
        """(M,) cross-entropy of the taught heads' attention against where each look should go."""
        losses = torch.zeros(len(turns.looks))
        for kind, (layer, head) in HEADS.items():
            rows = (turns.looks[:, 3] == kind).nonzero()[:, 0]
            if len(rows):
                losses = losses.index_put(
                    (rows,), self._attended(cache, turns, layer, head, turns.looks[rows])
                )
        return losses

    def _attended(self, cache: DynamicCache, turns: Turns, layer: int, head: int, looks: Tensor) -> Tensor:
        row, place, source, _ = looks.unbind(1)
        text = self.model.model.language_model
        width = text.config.hidden_size // text.config.num_attention_heads
        groups = text.config.num_attention_heads // text.config.num_key_value_heads
        query = self._hidden[f"query{layer}"][..., head * width : (head + 1) * width]
        # tokens of a turn are text: their three positions are equal and the sections of M-RoPE do not matter
        angles = turns.positions[0][..., None] * text.rotary_emb.inv_freq
        cos, sin = (torch.cat([f(angles)] * 2, dim=-1) for f in (torch.cos, torch.sin))
        first, second = query.chunk(2, dim=-1)
        query = query * cos + torch.cat([-second, first], dim=-1) * sin
        scores = query @ cache.layers[layer].keys[:, head // groups].mT / math.sqrt(width)
        shown = turns.mask_RHQK[:, 0]
        return cross_entropy(
            scores[row, place].masked_fill(~shown[row, place], -math.inf), source, reduction="none"
        )

    def _turn_loss(self, logits: Tensor, targets: Tensor, figures: dict[str, float]) -> Tensor:
        loss = cross_entropy(logits, targets)
        right = logits.argmax(1) == targets
        verdicts = torch.isin(targets, self._verdicts)
        figures |= {"loss": loss.item(), "token_accuracy": right.float().mean().item()}
        if bool(verdicts.any()):
            figures["verdict_accuracy"] = right[verdicts].float().mean().item()
        return loss

    def _probe(self, batch: Batch, image_pad: int, extents: Tensor, figures: dict[str, float]) -> Tensor:
        pictures = batch.ids == image_pad
        cells, places, boxes, centres = list[Tensor](), list[Tensor](), list[Tensor](), list[Tensor]()
        rows, columns, order = list[int](), list[int](), list[int]()
        for row, sample in enumerate(batch.samples):
            fields = torch.from_numpy(sample.thing_fields)
            cells.append(cell_fields(sample.thing_fields, sample.cell_things))
            _, grid_h, grid_w = sample.vision.grid_thw
            places.append(torch.cartesian_prod(torch.arange(grid_h // 2), torch.arange(grid_w // 2)))
            centres.append(torch.from_numpy(sample.box_cells))
            boxes.append(fields[torch.from_numpy(sample.box_things)])
            rows += [row] * len(sample.box_ends)
            columns += sample.box_ends.tolist()
            order += range(len(sample.box_ends))
        at_cells, at_boxes = self._hidden["cell"][pictures], self._hidden["box"][rows, columns]
        seen_loss, _ = self.probes.fields(self.probes.seen, self._hidden["seen"][pictures], torch.cat(cells))
        cell_loss, _ = self.probes.fields(self.probes.cell, at_cells, torch.cat(cells))
        box_loss, right = self.probes.fields(self.probes.box, at_boxes, torch.cat(boxes))
        place_loss = self.probes.places(at_cells, torch.cat(places))
        centre_loss = self.probes.places(self._hidden["cell"][rows, columns], torch.cat(centres))
        figures |= {"seen": seen_loss.item(), "cell": cell_loss.item(), "place": place_loss.item()}
        index_loss = self._index_loss(rows, columns, order)
        wanted = extents[rows, batch.system_ids.shape[1] + torch.tensor(columns)]
        told = self.probes.extent(self._hidden["cell"][rows, columns])
        extent_loss = smooth_l1_loss(told, wanted, reduction="none", beta=0.1).sum(1).mean()
        figures["extent"] = extent_loss.item()
        figures |= {"centre": centre_loss.item(), "index": index_loss.item()}
        figures |= {f"box_{field}": value for field, value in zip(FIELDS, right, strict=True)}
        return seen_loss + cell_loss + place_loss + centre_loss + index_loss + extent_loss + box_loss

    def _index_loss(self, rows: list[int], ends: list[int], order: list[int]) -> Tensor:
        """All four numbers of the hint's box k should know that they belong to candidate k."""
        at_rows = torch.tensor(rows).repeat_interleave(4)
        at_numbers = (torch.tensor(ends)[:, None] - torch.arange(3, -1, -1)).flatten()
        hidden = self._hidden["cell"][at_rows, at_numbers]
        return cross_entropy(self.probes.index(hidden), torch.tensor(order).repeat_interleave(4))


def _extents(batch: Batch) -> Tensor:
    """(B, system + S, 3) centre and root of the area of the box that each token ends, in SPAN_PX."""
    system = batch.system_ids.shape[1]
    extents = torch.zeros(len(batch.samples), system + batch.ids.shape[1], 3)
    for row, sample in enumerate(batch.samples):
        x0, y0, x1, y1 = torch.from_numpy(sample.boxes).float().unbind(1)
        area = ((x1 - x0) * (y1 - y0)).clamp(min=1)
        measures = torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, area.sqrt()], 1) / SPAN_PX
        extents[row, system + torch.from_numpy(sample.box_ends)] = measures
    return extents


def _mean(values: Tensor) -> float:
    return values.mean().item() if len(values) else math.nan


def _lend(cache: DynamicCache, rows: Tensor) -> DynamicCache:
    """A cache whose row i holds the keys and values of row `rows[i]`; the lender stays as it is."""
    lent = DynamicCache()
    for number, layer in enumerate(cache.layers):
        lent.update(layer.keys[rows], layer.values[rows], number)
    return lent
