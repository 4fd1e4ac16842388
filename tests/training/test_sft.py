"""Training computes what the runtime computes: a prefix once, its turns over it, the answer predicted."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from rexthinker_edge.runtime import prompt
from rexthinker_edge.runtime.errors import CheckpointError
from rexthinker_edge.runtime.qwen_pixels import PixelLimits
from rexthinker_edge.training import sft
from rexthinker_edge.training.cell_truth import FIELDS, OWN_FIELDS, thing_fields
from rexthinker_edge.training.looks import HEADS, Kind
from rexthinker_edge.training.tokenizer import train_tokenizer, workbench_texts
from rexthinker_edge.training.trainee import Trainee
from rexthinker_edge.training.vlm_batch import IGNORE, collate
from rexthinker_edge.training.vlm_config import Recipe, Shape, Stage
from rexthinker_edge.training.vlm_data import Sampler

SHAPE = Shape(hidden=192, layers=6, heads=6, kv_heads=2, feed_forward=96, vision_depth=2, vision_hidden=64,
              vision_heads=2, vision_feed_forward=96, vision_full_attention=(1,))  # fmt: skip
STAGE = Stage("test", steps=4, scenes=2, expressions=2, describe=0.0, full=0.5, pictures=1,
              auxiliary=1.0, learning_rate=1e-3, final_rate=0.0)  # fmt: skip
LIMITS = PixelLimits(min_pixels=16 * 784, max_pixels=36 * 784)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("sft") / "tokenizer.json"
    train_tokenizer(workbench_texts(seed=3, count=40), words=900).save(str(file))
    return file


@pytest.fixture(scope="module")
def sampler(path: Path) -> Sampler:
    return Sampler(path, LIMITS, seed=5)


def test_the_loss_is_that_of_each_whole_conversation(path: Path, sampler: Sampler) -> None:
    samples = [sampler.sample(STAGE, index) for index in range(2)]
    trainee = Trainee(sft.build_model(SHAPE, path, seed=1), SHAPE, sampler.tokenizer)
    image_pad = sampler.tokenizer.special_id("<|image_pad|>")
    with torch.no_grad():
        loss, _ = trainee(collate(samples, sampler.system_ids, 0, group=3), image_pad, auxiliary=0.0)
        losses, count = 0.0, 0
        for sample in samples:
            for ids, targets, _ in sample.turns:
                whole = torch.tensor([[*sampler.system_ids, *sample.ids, *ids]])
                logits = trainee.model(
                    input_ids=whole,
                    pixel_values=torch.from_numpy(sample.vision.patches),
                    image_grid_thw=torch.tensor([sample.vision.grid_thw]),
                    mm_token_type_ids=(whole == image_pad).int(),
                ).logits[0, -len(ids) - 1 : -1]
                losses += float(cross_entropy(logits, torch.from_numpy(targets), reduction="sum"))
                count += int((targets != IGNORE).sum())
    # float32 over a few hundred tokens in another order of summation
    assert float(loss) == pytest.approx(losses / count, rel=1e-4)


def test_a_sample_is_a_prompt_of_the_runtime_and_predicts_the_answer_alone(sampler: Sampler) -> None:
    sample = sampler.sample(STAGE, 3)
    ids, targets, _ = sample.turns[0]
    known = targets != IGNORE
    text = sampler.tokenizer.decode(ids[known].tolist())
    assert text.startswith("<think>")
    assert "</answer>" in text
    opening = sampler.tokenizer.encode_parts(prompt.suffix(prompt.Wording.DETECT, "x"))[-3:]
    assert ids[~known][-3:].tolist() == opening
    assert (ids[known] == targets[known]).all()
    again = sampler.sample(STAGE, 3)
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(sample.turns, again.turns, strict=True))


def test_boxes_end_at_their_last_number_and_know_their_cell(sampler: Sampler) -> None:
    sample = sampler.sample(replace(STAGE, describe=1.0), 7)
    assert len(sample.box_ends) == len(sample.box_things) == len(sample.box_cells)
    for end, cell in zip(sample.box_ends, sample.box_cells, strict=True):
        x0, y0, x1, y1 = (
            int(sampler.tokenizer.decode([int(i)]).strip(", ")) for i in sample.ids[end - 3 : end + 1]
        )
        assert (x0 < x1, y0 < y1) == (True, True)
        assert cell.tolist() == [(y0 + y1) // 2 // 28, (x0 + x1) // 2 // 28]


def test_taught_heads_look_where_the_next_token_stands(sampler: Sampler) -> None:
    seen = set[int]()
    for index in range(8):
        sample = sampler.sample(STAGE, index)
        for ids, targets, looks in sample.turns:
            seen |= set(looks[:, 2].tolist())
            assert (looks[:, 0] < len(ids)).all()
            assert (targets[looks[:, 0]] != IGNORE).sum() >= len(looks) - 1  # the answer's tokens look
            copied = looks[looks[:, 2] == Kind.COPIED]
            assert (ids[copied[:, 0] + 1] == sample.ids[copied[:, 1]]).all()
            ordered = looks[looks[:, 2] == Kind.ORDERED]
            numbers = [sampler.tokenizer.decode([int(ids[place + 1])]) for place in ordered[:, 0]]
            hinted = [int(np.flatnonzero(sample.box_ends == source)[0]) + 1 for source in ordered[:, 1]]
            assert [int(n) for n in numbers] == hinted
            own = looks[looks[:, 3] == 1]
            assert (own[:, 1] <= own[:, 0]).all()  # nothing looks ahead
            passed = [sampler.tokenizer.decode([int(ids[k])]) for k in own[own[:, 2] == Kind.CHOSEN, 1]]
            assert all("✅" in piece for piece in passed)
            shown = looks[looks[:, 2] == Kind.SEEN]
            assert (sample.ids[shown[:, 1]] == sampler.tokenizer.special_id("<|image_pad|>")).all()
    assert seen == set(Kind)


def test_a_taught_head_learns_to_look(path: Path, sampler: Sampler) -> None:
    """The loss computed beside the model is that of the attention inside it: transformers' own weights."""
    samples = [sampler.sample(STAGE, index) for index in range(2)]
    batch = collate(samples, sampler.system_ids, 0)
    trainee = Trainee(sft.build_model(SHAPE, path, seed=1), SHAPE, sampler.tokenizer)
    image_pad = sampler.tokenizer.special_id("<|image_pad|>")
    row, kind = 0, Kind.TOLD
    ids, _, looks = samples[row].turns[0]
    looks = looks[looks[:, 2] == kind]
    whole = torch.tensor([[*sampler.system_ids, *samples[row].ids, *ids]])
    trainee.model.set_attn_implementation("eager")
    layer, head = HEADS[kind]
    with torch.no_grad():
        attended = trainee.model(
            input_ids=whole,
            pixel_values=torch.from_numpy(samples[row].vision.patches),
            image_grid_thw=torch.tensor([samples[row].vision.grid_thw]),
            mm_token_type_ids=(whole == image_pad).int(),
            output_attentions=True,
        ).attentions[layer][0, head]
    trainee.model.set_attn_implementation("sdpa")
    before = len(sampler.system_ids)
    begin = before + len(samples[row].ids)
    wanted = -attended[begin + looks[:, 0], before + looks[:, 1]].log()
    found: list[torch.Tensor] = []
    inner = trainee._attended

    def spy(cache: object, turns: object, at: int, which: int, asked: torch.Tensor) -> torch.Tensor:
        losses = inner(cache, turns, at, which, asked)
        same = [torch.equal(turns.ids[r, : len(ids)], torch.from_numpy(ids)) for r in asked[:, 0]]
        mine = torch.tensor(same) & (asked[:, 3] == kind)
        if bool(mine.any()):
            found.append(losses[mine])
        return losses

    trainee._attended = spy
    with torch.no_grad():
        trainee(batch, image_pad, auxiliary=1.0)
    # float32 attention logits of a few layers, in another order of summation
    torch.testing.assert_close(torch.cat(found).sort().values, wanted.sort().values, atol=1e-4, rtol=0)


def test_pictures_alone_teach_the_vision_tower_alone(path: Path, tmp_path: Path) -> None:
    alone = replace(STAGE, scenes=0)
    recipe = Recipe(shape=SHAPE, stages=(alone,), warmup=1)
    sft.save_checkpoint(sft.build_model(SHAPE, path, seed=recipe.seed), recipe, 0, path, tmp_path / "before")
    before = load_file(tmp_path / "before" / "model.safetensors")
    sft.train(recipe, path, tmp_path / "run", resume=False, threads=1)
    after = load_file(tmp_path / "run" / "checkpoint" / "model.safetensors")
    moved = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert moved
    assert all(name.startswith("visual.") for name in moved), moved


def test_a_thing_in_contact_knows_its_partner(sampler: Sampler) -> None:
    scene = sampler._related_scene(0)
    relation = scene.relations[0]
    kind, color, category = list(FIELDS)[OWN_FIELDS:]
    for mine, other, said in (
        (relation.first, relation.second, relation.kind.value),
        (relation.second, relation.first, relation.kind.value),
    ):
        told = dict(zip(FIELDS, thing_fields(scene)[mine].tolist(), strict=True))
        name = FIELDS[kind][told[kind]]
        assert name in {said, f"has {said}", f"has {said}".removesuffix(" of")}
        assert FIELDS[color][told[color]] == scene.things[other].color
        assert FIELDS[category][told[category]] == scene.things[other].category
    lonely = set(range(len(scene.things))) - {t for r in scene.relations for t in (r.first, r.second)}
    for thing in lonely:
        assert thing_fields(scene)[thing, OWN_FIELDS:].tolist() == [0, IGNORE, IGNORE]


def test_an_interrupted_run_goes_on_where_it_was_saved(path: Path, tmp_path: Path) -> None:
    recipe = Recipe(shape=SHAPE, stages=(replace(STAGE, steps=4),), warmup=1)
    half = replace(recipe, stages=(replace(STAGE, steps=4, final_rate=1e-3),))
    sft.train(half, path, tmp_path / "run", resume=False, threads=1)
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert state["progress"] == {"step": 4, "sample": 8}
    longer = replace(half, stages=(replace(STAGE, steps=6, final_rate=1e-3),))  # ends amid drawn batches
    sft.train(longer, path, tmp_path / "run", resume=True, threads=1)
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert state["progress"] == {"step": 6, "sample": 16}
    names = {file.name for file in (tmp_path / "run" / "checkpoint").iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "rexthinker.json"}


def test_a_run_can_start_from_a_checkpoint_of_its_shape(path: Path, tmp_path: Path) -> None:
    recipe = Recipe(shape=SHAPE, stages=(replace(STAGE, steps=4, learning_rate=0.0, final_rate=0.0),))
    model = sft.build_model(SHAPE, path, seed=9)
    sft.save_checkpoint(model, recipe, 0, path, tmp_path / "start")
    sft.train(recipe, path, tmp_path / "run", resume=False, threads=1, start=tmp_path / "start")
    trained = load_file(tmp_path / "run" / "checkpoint" / "model.safetensors")
    started = load_file(tmp_path / "start" / "model.safetensors")
    assert all(torch.equal(trained[name], started[name]) for name in started)  # at rate 0 nothing moves
    other = replace(recipe, shape=replace(SHAPE, feed_forward=64))
    with pytest.raises(CheckpointError, match="another shape than the recipe's"):
        sft.train(other, path, tmp_path / "x", resume=False, threads=1, start=tmp_path / "start")


def test_stages_follow_one_another_and_rates_fall_linearly() -> None:
    recipe = Recipe(stages=(replace(STAGE, learning_rate=1.0), replace(STAGE, name="next")), warmup=1)
    assert sft.stage_at(recipe, 2) == (recipe.stages[0], 0.5)
    found = sft.stage_at(recipe, 4)
    assert found is not None
    assert found[0].name == "next"
    assert sft.stage_at(recipe, 8) is None
