"""Dense answers say what the hint and the truth say; letter pictures are crowded and legible."""

import numpy as np

from rexthinker_edge.calibration.workbench import items as workbench
from rexthinker_edge.calibration.workbench import layout
from rexthinker_edge.calibration.workbench.world import Level
from rexthinker_edge.training import dense_turns, letter_pictures


def subject(index: int):
    scene = layout.make_scene(Level.FULL, 11, index)
    category = max(
        {t.category for t in scene.things}, key=lambda c: sum(t.category == c for t in scene.things)
    )
    rng = np.random.default_rng(index)
    candidates = workbench.shuffled_candidates(scene, category, rng)
    boxes = workbench.hint_boxes(scene, candidates, (scene.width, scene.height))
    centres = np.array([t.box for t in scene.things]).reshape(-1, 2, 2).mean(1)
    return scene, category, candidates, boxes, centres, rng


def test_orders_are_those_of_the_boxes():
    read = 0
    for index in range(30):
        scene, category, candidates, boxes, centres, rng = subject(index)
        request, answer = dense_turns.arranged(scene, candidates, boxes, category, centres, rng)
        asked = [w for w in request.split() if w in {t.color for t in scene.things}]
        name = category.capitalize()
        for line in answer.splitlines():
            if not line.startswith("From the "):
                continue
            side, listed = line.removeprefix("From the ").rstrip(".").split(": ")
            order = [int(one.removeprefix(f"{name} ")) - 1 for one in listed.split(", ")]
            axis, sign = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1)}[side]
            keys = [sign * (boxes[k][axis] + boxes[k][axis + 2]) / 2 for k in order]
            assert keys == sorted(keys)
            assert len(set(order)) == len(order)
            if asked:
                assert all(scene.things[candidates[k]].color in asked for k in order)
            read += 1
    assert read > 60


def test_places_are_of_others_and_named_once():
    for index in range(20):
        scene, category, candidates, boxes, centres, rng = subject(index)
        _, answer = dense_turns.arranged(scene, candidates, boxes, category, centres, rng)
        for line in answer.splitlines():
            if line.startswith("The ") and ", y = " in line:
                color, kind = line.split()[1:3]
                things = [i for i, t in enumerate(scene.things) if (t.color, t.category) == (color, kind)]
                assert len(things) == 1
                assert things[0] not in candidates
                x, y = centres[things[0]].astype(int)
                assert line.endswith(f"is at x = {x}, y = {y}.")


def test_sides_are_those_of_the_boxes():
    signs = {
        "left": (0, -1),
        "right": (0, 1),
        "above": (1, -1),
        "higher": (1, -1),
        "below": (1, 1),
        "lower": (1, 1),
    }
    read = 0
    for index in range(20):
        scene, category, candidates, boxes, centres, rng = subject(index)
        _, answer = dense_turns.arranged(scene, candidates, boxes, category, centres, rng)
        for section in answer.split("# Step 3")[1:]:
            color, kind, *_, at = section.splitlines()[1].removeprefix("The ").rstrip(".").split()
            other = [i for i, t in enumerate(scene.things) if (t.color, t.category) == (color, kind)]
            for line in section.splitlines()[2:]:
                if not line.startswith("- "):
                    break
                name, said = line.removeprefix("- ").split(": ")
                axis, sign = next(v for word, v in signs.items() if word in said)
                box = boxes[int(name.split()[1]) - 1]
                assert sign * ((box[axis] + box[axis + 2]) / 2 - centres[other[0]][axis]) > 0
                assert int(at) == int(centres[other[0]][axis])
                read += 1
    assert read > 20


def test_described_pinned():
    scene, category, candidates, boxes, *_ = subject(0)
    lines = dense_turns.described(scene, candidates, boxes, category, with_boxes=True).splitlines()
    assert len(lines) == len(candidates)
    for number, (line, box, index) in enumerate(zip(lines, boxes.tolist(), candidates, strict=True), 1):
        assert line.startswith(f"{category.capitalize()} {number} {box}: ")
        assert scene.things[index].color in line
        related = any(index in (r.first, r.second) for r in scene.relations)
        assert line.endswith("stands alone") is not related


def test_letter_pictures_are_deterministic_inside_and_lettered():
    counts = []
    for index in range(40):
        scene = letter_pictures.letter_scene(5, index)
        assert scene == letter_pictures.letter_scene(5, index)
        counts.append(len(scene.things))
        for thing in scene.things:
            x0, y0, x1, y1 = thing.box
            assert 0 <= x0 < x1 <= scene.width
            assert 0 <= y0 < y1 <= scene.height
            assert thing.letter is not None
            assert min(x1 - x0, y1 - y0) > 24
    assert np.mean(counts) > 6
