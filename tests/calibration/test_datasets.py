"""Every kind of dataset behind one opener: what is wrong is named, and nothing ends the reading."""

import json
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rexthinker_edge.calibration.cot_pair import PAIR
from rexthinker_edge.calibration.dataset import Example, find_picture, picture_size, usable_box
from rexthinker_edge.calibration.humanref import write_humanref
from rexthinker_edge.calibration.humanref_cot import write_humanref_cot
from rexthinker_edge.calibration.openers import open_dataset
from rexthinker_edge.calibration.records import Problem, Record
from rexthinker_edge.runtime.errors import DataError, OptionError

BOXES = ((10.0, 20.0, 30.0, 50.0), (5.0, 6.0, 15.0, 16.0))
PIXELS = np.random.default_rng(0).integers(0, 256, (60, 40, 3), dtype=np.uint8)
RECORD = Record(0, "a.png", "the ball", "attribute", "color", "ball", BOXES, BOXES[1:], "OK, ✅")
ABSENT = replace(RECORD, id=1, image_name="b.png", domain="rejection", answer_boxes=())


def examples(spec: str, images: Path | None = None) -> tuple[list[Example], list[str]]:
    """Everything of a dataset, and its problems in words."""
    problems: list[Problem] = []
    with open_dataset(spec, images) as dataset:
        return list(dataset.examples(problems)), [str(problem) for problem in problems]


def picture(path: Path, width: int = 40, height: int = 60) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (9, 9, 9)).save(path)
    return path.name


def test_humanref_names_what_is_wrong(tmp_path: Path) -> None:
    others = [replace(RECORD, id=k, image_name=f"{k}.png") for k in range(2, 6)]
    strange = replace(
        RECORD, id=9, image_name="9.png",
        candidate_boxes=(
            (-8.0, 0.0, 20.0, 20.0), (50.0, 0.0, 60.0, 9.0), *BOXES, BOXES[0], (5.0, 5.0, 5.0, 9.0),
        ),
    )  # fmt: skip
    everything = [RECORD, ABSENT, *others, strange]
    write_humanref(tmp_path / "set", [(r, PIXELS) for r in everything])
    (tmp_path / "set" / "images" / "2.png").unlink()
    (tmp_path / "set" / "images" / "3.png").write_bytes(b"none")
    path = tmp_path / "set" / "annotations.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[4] = lines[4].replace('"4.png"', '"../4.png"')
    lines[5] = lines[5][:30]
    path.write_text("\n\n".join(lines), encoding="utf-8")
    found, told = examples(f"humanref:{tmp_path / 'set'}")
    assert [e.record.id for e in found] == [0, 1, 9]
    assert [line.split(": ", 1)[0] for line in told] == [
        f"annotations.jsonl, line {n}" for n in (5, 7, 9, 11, *[13] * 4)
    ]
    assert "the picture 2.png is missing" in told[0]
    assert "the picture cannot be read" in told[1]
    assert "does not stay within the folder" in told[2]
    assert told[4].endswith(
        "candidate 0 [-8, 0, 20, 20] reaches 8 px out of the picture of 40 x 60 px: clipped (kept)"
    )
    assert "candidate 1 [50, 0, 60, 9] lies outside the picture" in told[5]
    assert "candidate 4 is the same as candidate 2" in told[6]
    assert "candidate 5 [5, 5, 5, 9] has no area" in told[7]
    last = found[-1]
    assert (last.candidates, last.origin) == (((0.0, 0.0, 20.0, 20.0), *BOXES), (0, 2, 3))
    assert last.record.candidate_boxes == strange.candidate_boxes
    assert (last.answers(), found[0].answers(), found[1].answers()) == ({2}, {1}, frozenset())
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "set" / "images").rename(elsewhere)
    assert len(examples(f"humanref:{tmp_path / 'set'}", elsewhere)[0]) == 3


def test_an_index_that_does_not_match_is_named(tmp_path: Path) -> None:
    records = [replace(RECORD, id=k, image_name=f"{k}.png") for k in range(12)]
    write_humanref_cot(tmp_path / "set", [(r, PIXELS) for r in records])
    path = tmp_path / "set" / f"{PAIR}.annotations.tsv.lineidx"
    offsets = path.read_text().split()
    offsets[3] = "12x"
    offsets[5] = str(int(offsets[5]) + 1)  # "123\t…" read as "23\t…" would be another picture
    offsets[7] = "99999999"
    path.write_text("\n".join(offsets[:11]))
    found, told = examples(f"humanref-cot:{tmp_path / 'set'}")
    assert [e.record.image_name for e in found] == [f"{k}.png" for k in (0, 1, 2, 4, 6, 8, 9, 10)]
    assert (
        told[0] == "humanref_cot.annotations.tsv.lineidx, line 4: b'12x' is no decimal byte offset (left out)"
    )
    assert "bytes lie behind the last line that the index knows" in told[1]
    assert [t.split(": ")[0] for t in told[2:]] == [
        f"humanref_cot.annotations.tsv, line {n}" for n in (4, 6, 8)
    ]
    assert "the index does not match the file" in told[3]
    pictures = tmp_path / "set" / f"{PAIR}.images.tsv.lineidx"
    offsets = pictures.read_text().split()
    pictures.write_text("\n".join(["0", str(int(offsets[1]) + 1), *offsets[2:]]))
    found, told = examples(f"humanref-cot:{tmp_path / 'set'}")
    assert len(found) == 8
    assert [t for t in told if "picture begins" in t] == [
        f"humanref_cot.annotations.tsv, line 2: its picture begins at byte {offsets[1]}, which "
        "humanref_cot.images' index does not have (kept)"
    ]


def test_the_two_pairs_are_one_dataset(tmp_path: Path) -> None:
    write_humanref_cot(tmp_path / "set", [(RECORD, PIXELS), (ABSENT, PIXELS), (RECORD, PIXELS)])
    found, told = examples(f"humanref-cot:{tmp_path / 'set'}")
    assert told == []
    assert [(e.record.id, bool(e.record.answer_boxes)) for e in found] == [(0, True), (1, True), (2, False)]
    assert found[2].size == (40, 60)
    with open_dataset(f"humanref-cot:{tmp_path / 'set'}") as dataset:
        assert dataset.place(2) == ("humanref_cot_rejection.annotations.tsv", 1)
        assert dataset.record(2).trace == "OK, ✅"
        with pytest.raises(DataError, match="record 3 asked for, there are 3"):
            dataset.record(3)


def test_corrupted_bytes_cost_their_records_alone(tmp_path: Path) -> None:
    """One record in ten is hit by a byte that is neither UTF-8 nor base64; memory holds a line."""
    rng, count = np.random.default_rng(4), 200
    noise = rng.integers(0, 256, (180, 240, 3), dtype=np.uint8)
    records = [replace(RECORD, id=k, image_name=f"{k}.png") for k in range(count)]
    write_humanref_cot(tmp_path / "set", [(r, noise) for r in records])
    hit = set(rng.choice(count, count // 10, replace=False).tolist())
    for part, chosen in (("annotations", sorted(hit)[::2]), ("images", sorted(hit)[1::2])):
        path = tmp_path / "set" / f"{PAIR}.{part}.tsv"
        starts = [
            *map(int, (path.with_name(path.name + ".lineidx")).read_text().split()),
            path.stat().st_size,
        ]
        with path.open("r+b") as stream:
            for number in chosen:
                stream.seek(int(rng.integers(starts[number] + 12, starts[number + 1] - 1)))
                stream.write(b"\xff")
    problems, kept, size = list[Problem](), list[Record](), 0
    tracemalloc.start()
    with open_dataset(f"humanref-cot:{tmp_path / 'set'}") as dataset:
        for example in dataset.examples(problems):
            kept.append(example.record)
            assert isinstance(example.picture, bytes)
            size += len(example.picture)
        peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert {p.line - 1 for p in problems} == hit
    assert kept == [r for r in records if r.id not in hit]
    # the records kept here take 4 kB each at most; a line with its picture, 80 kB, is held a few times over
    assert peak < count * 4_000 + 1_000_000 < size / 2


QWEN = {"image": "data/a.png", "sent": "left ball", "bbox": [1, 2, 11, 12], "height": 60, "width": 40}
FORMS: dict[str, list[dict]] = {
    "qwen": [QWEN, QWEN | {"sent": "right ball", "bbox": [20, 2, 30, 12]}],
    "shikra": [
        {"img_path": "a.png", "expression": "left ball", "bbox": [1, 2, 11, 12]},
        {"img_path": "a.png", "expression": "right ball", "bbox": [20, 2, 30, 12]},
    ],
    "vlm_r1": [
        {"image": "a.png", "problem": "left ball", "solution": [1, 2, 11, 12]},
        {"image": "a.png", "problem": "right ball", "solution": [20, 2, 30, 12]},
    ],
    "lmms": [
        {"file_name": "a.png", "answer": ["left ball"], "bbox": [1, 2, 10, 10]},
        {"file_name": "a.png", "answer": ["right ball"], "bbox": [20, 2, 10, 10]},
    ],
    "sentences": [
        {"file_name": "a.png", "sentences": [{"sent": "left ball", "raw": "Left"}], "bbox": [1, 2, 11, 12]},
        {"file_name": "a.png", "sentences": [{"raw": "right ball"}], "bbox": [20, 2, 30, 12]},
    ],
    "refcoco_m": [
        {
            "file_name": "a.png",
            "samples": [
                {"sentences": ["left ball"], "bbox": [1, 2, 10, 10], "category": "object"},
                {"sentences": ["right ball"], "bbox": [20, 2, 10, 10], "category": "object"},
            ],
        }
    ],
}


def as_json(path: Path, rows: list[dict]) -> None:
    path.write_text(json.dumps(rows, indent=1))


def as_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("write", [as_json, as_lines])
@pytest.mark.parametrize("form", sorted(FORMS))
def test_refcoco_in_its_json_forms(
    form: str, write: Callable[[Path, list[dict]], None], tmp_path: Path
) -> None:
    picture(tmp_path / "images" / "a.png")
    write(tmp_path / "val.json", FORMS[form])
    found, told = examples(f"refcoco:{tmp_path / 'val.json'}")
    assert told == []
    assert [e.record.referring for e in found] == ["left ball", "right ball"]
    boxes = ((1.0, 2.0, 11.0, 12.0), (20.0, 2.0, 30.0, 12.0))
    assert [e.record.candidate_boxes for e in found] == [boxes, boxes]
    assert [e.record.answer_boxes for e in found] == [boxes[:1], boxes[1:]]
    assert found[0].record.category == "object"


def test_refcoco_in_coco_form_and_with_bad_rows(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    whole = {
        "images": [
            {"id": 7, "file_name": "a.png", "caption": "left ball"},
            {"id": 8, "file_name": "a.png", "caption": "x"},
        ],
        "annotations": [{"image_id": 7, "bbox": [1, 2, 10, 10]}],
    }
    (tmp_path / "mdetr.json").write_text(json.dumps(whole))
    found, told = examples(f"refcoco:{tmp_path / 'mdetr.json'}")
    assert [(e.record.referring, e.record.answer_boxes) for e in found] == [
        ("left ball", ((1.0, 2.0, 11.0, 12.0),))
    ]
    assert told == ["mdetr.json, line 2: None is not a box of four numbers (left out)"]
    changes: list[dict] = [{"bbox": [1, 2, 3, 10**400]}, {"sent": ""}, {"image": "none.png"}]
    rows = [json.dumps(QWEN), "{", json.dumps({"a": 1}), "[]", *(json.dumps(QWEN | c) for c in changes)]
    (tmp_path / "val.jsonl").write_text("\n".join(rows))
    found, told = examples(f"refcoco:{tmp_path / 'val.jsonl'}")
    assert len(found) == 2  # an empty expression is left to the model's own check
    assert [t.split(": ")[0] for t in told] == [f"val.jsonl, line {n}" for n in (2, 3, 4, 5, 7)]
    (tmp_path / "other.json").write_text('[{"a": 1}]')
    with pytest.raises(
        DataError, match=r"no row of a known form.*image, sent, bbox.*keys a are of no known form"
    ):
        open_dataset(f"refcoco:{tmp_path / 'other.json'}")
    (tmp_path / "refs.p").write_bytes(b"cos\nsystem\n")
    with pytest.raises(DataError, match="a pickle, which can run code"):
        open_dataset(f"refcoco:{tmp_path / 'refs.p'}")
    (tmp_path / "broken.json").write_text("[1,")
    with pytest.raises(DataError, match="not JSON"):
        open_dataset(f"refcoco:{tmp_path / 'broken.json'}")


@pytest.mark.parametrize("form", ["lmms", "sentences", "refcoco_m"])
def test_refcoco_in_parquet(form: str, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    stream = BytesIO()
    Image.new("RGB", (40, 60)).save(stream, "PNG")
    rows = [
        row | ({"image": {"bytes": stream.getvalue(), "path": "a.png"}} if form != "sentences" else {})
        for row in FORMS[form]
    ]
    if form == "sentences":
        picture(tmp_path / "a.png")
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "val.parquet", row_group_size=1)
    found, told = examples(f"refcoco:{tmp_path / 'val.parquet'}")
    assert told == []
    assert [(e.record.referring, e.size) for e in found] == [
        ("left ball", (40, 60)),
        ("right ball", (40, 60)),
    ]
    assert found[1].record.answer_boxes == ((20.0, 2.0, 30.0, 12.0),)
    (tmp_path / "val.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="not parquet"):
        open_dataset(f"refcoco:{tmp_path / 'val.parquet'}")


def test_coco_detection(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    whole = {
        "images": [{"id": 3, "file_name": "a.png"}, {"file_name": "x"}],
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": [
            {"image_id": 3, "category_id": 1, "bbox": [1, 2, 3, 4]},
            {"image_id": 3, "category_id": 2, "bbox": [5, 5, 5, 5]},
            {"image_id": 3, "category_id": 1, "bbox": [9, 9, 9, 9]},
            {"image_id": 3, "category_id": 1, "bbox": [0, 0, 9, 9], "iscrowd": 1},
            {"image_id": 4, "category_id": 1, "bbox": [0, 0, 9, 9]},
            {"image_id": 3, "category_id": 9, "bbox": [0, 0, 9, 9]},
            {"image_id": 3, "category_id": 1},
            {"image_id": 3, "category_id": 1, "bbox": [9, 9, 0, 9]},
            {"image_id": 3, "category_id": 1, "bbox": [50, 9, 9, 9]},
        ],
    }
    (tmp_path / "c.json").write_text(json.dumps(whole))
    found, told = examples(f"coco:{tmp_path / 'c.json'}")
    assert [(e.record.category, len(e.candidates)) for e in found] == [("cat", 1), ("dog", 2)]
    assert (found[1].known_answers(), found[1].answers()) == ({0, 1}, None)  # one answer is outside
    assert found[0].answers() == {0}
    assert [t.partition(": ")[2] for t in told] == [
        "image 1: no field 'id' (left out)",
        "annotations[4]: image_id 4 is unknown (left out)",
        "annotations[5]: category_id 9 is unknown (left out)",
        "annotations[6]: no field 'bbox' (left out)",
        "annotations[7]: bbox [9.0, 9.0, 0.0, 9.0] has no area (left out)",
        "candidate 2 [50, 9, 59, 18] lies outside the picture of 40 x 60 px (kept)",
    ]
    assert told[-1].startswith("c.json, record 1: ")
    (tmp_path / "d.json").write_text("[]")
    with pytest.raises(DataError, match="no list `images`"):
        open_dataset(f"coco:{tmp_path / 'd.json'}")


def test_workbench_by_name() -> None:
    with open_dataset("workbench:easy") as whole, open_dataset("workbench:easy:1000000:3") as three:
        assert (len(whole), len(three)) == (1000, 3)
        example = three.example(2, [])
        assert example is not None
        assert example.record == whole.record(2)
        assert example.size == (example.picture.shape[1], example.picture.shape[0])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("humanref", "no KIND:PLACE, one of humanref:DIR"),
        ("zip:x", "kind 'zip'"),
        ("workbench:hard", "workbench 'hard'"),
        ("workbench:easy:x", "workbench 'easy:x'"),
        ("workbench:easy:1:2:3", "workbench 'easy:1:2:3'"),
    ],
)
def test_names_that_are_none(spec: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        open_dataset(spec)


def test_missing_files(tmp_path: Path) -> None:
    for kind in ("humanref", "humanref-cot", "refcoco", "coco"):
        with pytest.raises(DataError, match="no such file"):
            open_dataset(f"{kind}:{tmp_path / 'none'}")
    with pytest.raises(DataError, match="no such folder of pictures"):
        open_dataset("workbench:easy", tmp_path / "none")


def test_pictures_and_boxes(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    assert picture_size(tmp_path / "turned.jpg") == (20, 40)
    with pytest.raises(ValueError, match="the picture is missing"):
        picture_size(tmp_path / "none.jpg")
    (tmp_path / "code.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(ValueError, match="cannot be read"):
        picture_size(tmp_path / "code.eps")
    with pytest.raises(ValueError, match="does not stay"):
        find_picture("/etc/passwd", [tmp_path])
    assert usable_box((0.0, 0.0, 40.8, 60.0), (40, 60)) == ((0.0, 0.0, 40.0, 60.0), "")
