"""The detector's loss: assignments and targets by hand, its parts against transformers' where right."""

import numpy as np
import pytest
import torch

from rexthinker_edge.training import detector_loss as loss
from rexthinker_edge.training.detector_data import Batch

BOX = torch.tensor([[0.5, 0.5, 0.2, 0.2]])


def batch(boxes, asked, side=160, tokens=4):
    return Batch(
        pixels=torch.zeros(len(boxes), 3, side, side),
        input_ids=torch.zeros(len(boxes), tokens, dtype=torch.int64),
        boxes=[torch.as_tensor(b, dtype=torch.float32).reshape(-1, 4) for b in boxes],
        asked=[torch.as_tensor(a, dtype=torch.int64) for a in asked],
    )


def random_corners(count, seed):
    rng = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=rng)
    return torch.cat([low, low + 0.05 + torch.rand(count, 2, generator=rng)], dim=1)


def test_iou_and_giou_equal_transformers():
    from transformers.loss.loss_for_object_detection import box_iou, generalized_box_iou  # noqa: PLC0415

    a, b = random_corners(20, 0), random_corners(30, 1)
    iou, giou = loss.iou_giou(a[:, None], b[None])
    torch.testing.assert_close(iou, box_iou(a, b)[0])
    torch.testing.assert_close(giou, generalized_box_iou(a, b))


def test_matching_equals_transformers_for_one_picture():
    """One picture and one phrase, where transformers' label offset cannot go wrong."""
    from transformers.loss.loss_grounding_dino import GroundingDinoHungarianMatcher  # noqa: PLC0415

    rng = torch.Generator().manual_seed(3)
    logits, boxes = torch.randn(20, 4, generator=rng), torch.rand(20, 4, generator=rng) * 0.4 + 0.2
    truth = torch.rand(6, 4, generator=rng) * 0.4 + 0.2
    queries, things = loss.match(loss.LayerOutput(logits, boxes), truth, torch.full((6,), 1))
    matcher = GroundingDinoHungarianMatcher(class_cost=2, bbox_cost=5, giou_cost=2)
    label_maps = [torch.tensor([[0.0, 1.0, 0.0, 0.0]])]
    outputs = {"logits": logits[None], "pred_boxes": boxes[None], "label_maps": label_maps}
    wanted = matcher(outputs, [{"class_labels": torch.zeros(6, dtype=torch.int64), "boxes": truth}])[0]
    assert dict(zip(queries.tolist(), things.tolist(), strict=True)) == dict(
        zip(wanted[0].tolist(), wanted[1].tolist(), strict=True)
    )


def test_class_loss_pinned():
    logits, targets = torch.tensor([0.0, 0.0, 2.0]), torch.tensor([0.0, 0.8, 1.0])
    negative = 0.75 * 0.25 * np.log(2)
    positive = np.log(2) + np.log1p(np.exp(-2.0))
    assert float(loss.class_loss(logits, targets)) == pytest.approx(negative + positive, rel=1e-6)


def test_grid_has_the_cells_of_the_model():
    centres, levels = loss.cell_grid(133, 201)  # 34 x 51 patches, then 17 x 26, 9 x 13, 5 x 7
    assert np.bincount(levels).tolist() == [17 * 26, 9 * 13, 5 * 7]
    assert centres[0].tolist() == pytest.approx([0.5 / 26, 0.5 / 17])


def test_claims_are_near_disjoint_and_on_the_level_of_the_size():
    boxes = np.array([[0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.22, 0.22], [0.5, 0.5, 0.6, 0.6]], dtype=np.float32)
    grid = loss.cell_grid(160, 160)
    cells, things, ranks = loss.claim_cells(boxes, 160, 160, grid)
    assert len(set(cells.tolist())) == len(cells) == 12
    assert sorted(things.tolist()) == [0] * 4 + [1] * 4 + [2] * 4
    assert set(grid[1][cells[things < 2]]) == {0}
    assert set(grid[1][cells[things == 2]]) == {1}
    assert ranks[things == 0].tolist() == [0, 1, 2, 3]
    nearest = grid[0][cells[(things == 0)]]
    assert np.abs(nearest - 0.5).max() == pytest.approx(0.5 / 20)  # the four cells around the middle
    assert np.abs(grid[0][cells[things == 1]] - 0.5).max() < 2 / 20


def test_no_things_no_claims():
    cells, things, ranks = loss.claim_cells(np.zeros((0, 4), np.float32), 160, 160, loss.cell_grid(160, 160))
    assert len(cells) == len(things) == len(ranks) == 0


def test_decoder_loss_is_zero_at_the_truth():
    logits = torch.full((1, 3, 4), -30.0)
    logits[0, 1, 1] = 30.0
    boxes = torch.tensor([[[0.1, 0.1, 0.1, 0.1], BOX[0].tolist(), [0.9, 0.9, 0.1, 0.1]]])
    classes, box, iou = loss.decoder_loss(logits, boxes, batch([BOX], [[1]]))
    assert float(classes) == pytest.approx(0, abs=1e-5)
    assert float(box) == pytest.approx(0, abs=1e-5)
    assert float(iou) == pytest.approx(1, abs=1e-5)


def test_decoder_targets_are_the_iou_at_the_asked_token():
    """Half-overlapping box: at logit 0 the target's cross-entropy is log 2 whatever the target."""
    logits = torch.zeros(1, 1, 4, requires_grad=True)
    boxes = torch.tensor([[[0.5, 0.45, 0.2, 0.1]]])
    classes, _, iou = loss.decoder_loss(logits, boxes, batch([BOX], [[2]]))
    assert float(iou) == pytest.approx(0.5, abs=1e-5)
    classes.backward()
    assert logits.grad is not None
    assert logits.grad[0, 0, 2].item() == pytest.approx(0.5 - 0.5, abs=1e-6)  # score minus target
    assert logits.grad[0, 0, 1].item() == pytest.approx(0.75 * 0.25 * 0.5, rel=1e-5)  # a negative's


def test_things_not_asked_for_teach_no_class():
    logits, boxes = torch.full((1, 2, 4), -30.0), torch.rand(1, 2, 4)
    classes, box, _ = loss.decoder_loss(logits, boxes, batch([BOX], [[-1]]))
    assert float(classes) == pytest.approx(0, abs=1e-5)
    assert float(box) == 0


def test_encoder_learns_boxes_of_things_not_asked_for():
    cells = len(loss.cell_grid(160, 160)[1])
    logits = torch.full((1, cells, 4), -5.0, requires_grad=True)
    boxes = torch.zeros(1, cells, 4, requires_grad=True)
    classes, box = loss.encoder_loss(logits, boxes, batch([BOX], [[-1]]))
    box.backward()
    assert boxes.grad is not None
    assert int((boxes.grad.abs().sum(-1) > 0).sum()) == loss.CLAIMED
    assert classes.item() < 0.01


def test_encoder_refuses_a_grid_that_is_not_the_models():
    with pytest.raises(AssertionError, match="do not add up"):
        loss.encoder_loss(torch.zeros(1, 7, 4), torch.zeros(1, 7, 4), batch([BOX], [[1]]))
