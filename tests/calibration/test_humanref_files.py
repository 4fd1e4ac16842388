"""HumanRef's two layouts on disk: bytes against the published description, and everything back again."""

import base64
import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from rexthinker_edge.calibration import cot_pair
from rexthinker_edge.calibration.cot_pair import PAIR, REJECTION_PAIR
from rexthinker_edge.calibration.humanref import HumanRef, box_rle, write_humanref
from rexthinker_edge.calibration.humanref_cot import HumanRefCot, write_humanref_cot
from rexthinker_edge.calibration.records import Problem, Record
from rexthinker_edge.runtime.errors import DataError

BOXES = ((10.0, 20.0, 30.0, 50.0), (5.5, 6.25, 15.0, 16.0))
FOUND = Record(
    0, "a.png", 'the "ré" ball', "attribute", "color", "ball", BOXES, BOXES[1:], "OK, ✅\n- Ball 1"
)
ABSENT = replace(FOUND, id=1, image_name="b.png", domain="rejection", answer_boxes=(), trace="OK, ❌")
AGAIN = replace(FOUND, id=2, referring="the first ball", answer_boxes=BOXES)


def _picture(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (60, 40, 3), dtype=np.uint8)


ITEMS = [(FOUND, _picture(0)), (AGAIN, _picture(0)), (ABSENT, _picture(1))]


def read_humanref(folder: Path, problems: list[Problem] | None = None) -> list[Record]:
    with HumanRef(folder) as dataset:
        return [record for _, record in dataset.records([] if problems is None else problems)]


def test_humanref_reads_back_equal(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "set"
    assert write_humanref(folder, ITEMS) == 3
    problems: list[Problem] = []
    assert read_humanref(folder, problems) == [replace(record, trace=None) for record, _ in ITEMS]
    assert problems == []
    assert sorted(path.name for path in (folder / "images").iterdir()) == ["a.png", "b.png"]
    assert (np.asarray(Image.open(folder / "images" / "b.png")) == _picture(1)).all()
    assert [path.name for path in folder.parent.iterdir()] == ["set"]


def test_humanref_line_is_pinned(tmp_path: Path) -> None:
    write_humanref(tmp_path / "set", ITEMS[:1])
    line = (tmp_path / "set" / "annotations.jsonl").read_text(encoding="utf-8")
    assert line == (
        '{"id": 0, "image_name": "a.png", "referring": "the \\"ré\\" ball", "domain": "attribute", '
        '"sub_domain": "color", "candidate_boxes": [[10, 20, 30, 50], [5.5, 6.25, 15, 16]], '
        '"answer_boxes": [[5.5, 6.25, 15, 16]], '
        '"answer_segmentations": [{"size": [60, 40], "counts": "^;:b1000000000000000f^1"}], '
        '"category": "ball"}\n'
    )


def _decode_rle(counts: str, height: int, width: int) -> NDArray[np.uint8]:
    """COCO's rleFrString and decode, from maskApi.c."""
    runs: list[int] = []
    place = 0
    while place < len(counts):
        value = shift = 0
        more = True
        while more:
            code = ord(counts[place]) - 48
            value |= (code & 0x1F) << shift
            more = bool(code & 0x20)
            place += 1
            shift += 5
            if not more and code & 0x10:
                value |= -1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
    assert sum(runs) == height * width
    assert all(run >= 0 for run in runs)
    flat = np.repeat(np.arange(len(runs)) % 2, runs)
    return flat.reshape(width, height).T.astype(np.uint8)


@pytest.mark.parametrize(
    "box",
    [
        (3, 4, 9, 20),
        (0, 0, 30, 40),
        (0, 0, 5, 40),
        (7, 0, 30, 40),
        (29, 39, 30, 40),
        (4, 0, 12, 7),
        (0, 30, 30, 40),
    ],
)
def test_box_rle_is_the_region_of_the_box(box: tuple[int, int, int, int]) -> None:
    coded = box_rle(tuple(float(v) for v in box), 30, 40)
    mask = np.zeros((40, 30), np.uint8)
    mask[box[1] : box[3], box[0] : box[2]] = 1
    assert coded["size"] == [40, 30]
    assert (_decode_rle(str(coded["counts"]), 40, 30) == mask).all()


def test_humanref_names_bad_lines_and_goes_on(tmp_path: Path) -> None:
    write_humanref(tmp_path / "set", ITEMS)
    path = tmp_path / "set" / "annotations.jsonl"
    good = path.read_text(encoding="utf-8").splitlines()
    bare = {key: value for key, value in json.loads(good[0]).items() if key != "referring"}
    bad = [
        good[0][:40],
        json.dumps(bare),
        "[1]",
        good[0].replace("[10, 20, 30, 50]", "[10, 20, 30]"),
        good[0].replace("[10, 20, 30, 50]", "[10, 20, 30, NaN]"),
        good[0].replace('"id": 0', '"id": "0"'),
    ]
    path.write_bytes("\n".join([*bad, good[2], ""]).encode() + b"\xff\xfe\n")
    problems: list[Problem] = []
    assert [record.id for record in read_humanref(tmp_path / "set", problems)] == [1]
    assert [(p.file, p.line) for p in problems] == [("annotations.jsonl", n) for n in (1, 2, 3, 4, 5, 6, 8)]
    assert "no field 'referring'" in problems[1].reason
    assert "not a box of four" in problems[3].reason
    assert "finite" in problems[4].reason


def test_humanref_without_our_category_is_about_persons(tmp_path: Path) -> None:
    write_humanref(tmp_path / "set", ITEMS[:1])
    path = tmp_path / "set" / "annotations.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace(', "category": "ball"', ""), encoding="utf-8")
    assert [record.category for record in read_humanref(tmp_path / "set")] == ["person"]


def test_cot_pairs_read_back_equal(tmp_path: Path) -> None:
    assert write_humanref_cot(tmp_path / "set", ITEMS) == 3
    problems: list[Problem] = []
    with HumanRefCot(tmp_path / "set") as dataset:
        assert list(dataset.records(problems)) == [
            (0, FOUND), (1, replace(AGAIN, id=1)), (2, replace(ABSENT, id=2))
        ]  # fmt: skip
        pair = dataset.pairs[0]
        assert (len(pair), len(pair.image_offsets)) == (2, 1)  # one picture for both
        picture = np.asarray(Image.open(BytesIO(pair.read_picture(1)))).astype(int)
        assert pair.read_picture(0) == pair.read_picture(1)
    assert picture.shape == (60, 40, 3)
    for index in (tmp_path / "set").glob("*.lineidx"):
        index.unlink()
    with HumanRefCot(tmp_path / "set") as dataset:  # read through for their newlines
        assert [record.referring for _, record in dataset.records(problems)] == [
            r.referring for r in (FOUND, AGAIN, ABSENT)
        ]
        assert dataset.doubt(1) == ""
    assert {(p.file, p.kept) for p in problems} == {
        (f"{name}.{part}.tsv.lineidx", True)
        for name in (PAIR, REJECTION_PAIR) for part in ("annotations", "images")
    }  # fmt: skip


def test_lines_are_found_whatever_the_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, path = np.random.default_rng(2), tmp_path / "lines"
    for end in (b"", b"\n"):
        lines = [bytes(rng.integers(48, 58, int(n)).tolist()) for n in rng.integers(0, 9, 40)]
        path.write_bytes(b"\n".join([*lines, b"last"]) + end)
        starts = [sum(len(line) + 1 for line in lines[:k]) for k in range(len(lines) + 1)]
        for piece in (1, 3, 64, 2**20):
            monkeypatch.setattr(cot_pair, "SCAN_BYTES", piece)
            with path.open("rb") as stream:
                assert cot_pair.beginnings(stream).tolist() == starts


def test_cot_files_are_as_published(tmp_path: Path) -> None:
    """Byte offsets, tabs, xywh boxes and 0-based indices, read from the raw bytes."""
    write_humanref_cot(tmp_path / "set", ITEMS)
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == sorted(
        f"{name}.{part}.{end}"
        for name in (PAIR, REJECTION_PAIR)
        for part in ("images", "annotations")
        for end in ("tsv", "tsv.lineidx")
    )
    for part in ("images", "annotations"):
        raw = (tmp_path / "set" / f"{PAIR}.{part}.tsv").read_bytes()
        starts = [0, *(k + 1 for k, byte in enumerate(raw) if byte == 10)][:-1]
        offsets = (tmp_path / "set" / f"{PAIR}.{part}.tsv.lineidx").read_text().split("\n")
        assert offsets == [*map(str, starts), ""]
    first, second = (tmp_path / "set" / f"{PAIR}.annotations.tsv").read_text(encoding="utf-8").splitlines()
    offset, _, text = second.partition("\t")
    assert offset == "0"
    assert json.loads(text)["region_map"] == {"the first ball": [0, 1]}
    fields = json.loads(first.partition("\t")[2])
    assert fields["gt_boxes"] == [[10, 20, 20, 30], [5.5, 6.25, 9.5, 9.75]]
    assert fields["region_map"] == {'the "ré" ball': [1]}
    assert fields["think"] == "OK, ✅\n- Ball 1"
    key, _, picture = (tmp_path / "set" / f"{PAIR}.images.tsv").read_bytes().partition(b"\t")
    assert key == b"a.png"
    assert base64.b64decode(picture)[:3] == b"\xff\xd8\xff"


def _real_pair(
    folder: Path, annotations: list[bytes], images: list[bytes], index: str = ".tsv.lineidx"
) -> None:
    """A pair as downloaded: no extra fields, base64 as Python printed it."""
    folder.mkdir()
    for part, lines in (("images", images), ("annotations", annotations)):
        (folder / f"{PAIR}.{part}.tsv").write_bytes(b"".join(line + b"\n" for line in lines))
        starts = [sum(len(line) + 1 for line in lines[:k]) for k in range(len(lines))]
        (folder / f"{PAIR}.{part}{index}").write_text("".join(f"{start}\n" for start in starts))


def _annotation(offset: int, **fields: object) -> bytes:
    whole = {"gt_boxes": [[1, 2, 3, 4]], "region_map": {"a man": [0]}, "think": "OK"} | fields
    return f"{offset}\t{json.dumps(whole, ensure_ascii=False)}".encode()


@pytest.mark.parametrize("index", [".tsv.lineidx", ".lineidx"])
def test_the_published_pair_drops_in(index: str, tmp_path: Path) -> None:
    plain, wrapped = base64.b64encode(b"picture one"), b"b'" + base64.b64encode(b"picture two") + b"'"
    images = [b"one.jpg\t" + plain, "zwei ü.jpg\t".encode() + wrapped]
    _real_pair(
        tmp_path / "set", [_annotation(len(images[0]) + 1), _annotation(0, think="é 👍")], images, index
    )
    with HumanRefCot(tmp_path / "set") as dataset:
        record, other = dataset.record(0), dataset.record(1)
        assert dataset.picture(0, record) == b"picture two"
        assert dataset.picture(1, other) == b"picture one"
        assert (record.image_name, record.category, record.domain) == ("zwei ü.jpg", "person", "")
        assert record.candidate_boxes == ((1.0, 2.0, 4.0, 6.0),)
        assert other.trace == "é 👍"
        assert (dataset.file_problems, dataset.doubt(0)) == ((), "")


def test_cot_names_bad_lines_and_goes_on(tmp_path: Path) -> None:
    annotations = [
        b"no tab",
        b"x\t{}",
        b"0\t{",
        b"0\t[]",
        _annotation(0, region_map={"a": [1]}),
        _annotation(0, region_map={"a": [0], "b": [0]}),
        _annotation(0, think=None),
        _annotation(0, gt_boxes=[[1, 2, 3]]),
        b'0\t{"gt_boxes": []}',
        _annotation(99999),
        _annotation(0),
    ]
    _real_pair(tmp_path / "set", annotations, [b"one.jpg\t###"])
    with HumanRefCot(tmp_path / "set") as dataset:
        problems: list[Problem] = []
        assert [number for number, _ in dataset.records(problems)] == [10]
        assert [p.line for p in problems] == list(range(1, 11))
        assert problems[2].reason.startswith("not JSON (")
        assert problems[8].reason == "no field 'region_map'"
        assert problems[9].reason == "no picture begins at byte 99999: the index does not match the file"
        with pytest.raises(DataError, match=r"line 1: the line has no picture offset, .* Leave it out"):
            dataset.record(0)
        assert dataset.example(10, problems) is None
        assert problems[-1].reason.startswith("not base64")


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"annotations\.jsonl: no such file"):
        read_humanref(tmp_path)
    with pytest.raises(DataError, match=r"humanref_cot\.annotations\.tsv: no such file"):
        HumanRefCot(tmp_path)
    _real_pair(tmp_path / "set", [_annotation(0)], [b"one.jpg\tAAAA"])
    (tmp_path / "set" / f"{PAIR}.images.tsv").unlink()
    with pytest.raises(DataError, match=r"humanref_cot\.images\.tsv: no such file"):
        HumanRefCot(tmp_path / "set")


@pytest.mark.parametrize("write", [write_humanref, write_humanref_cot])
def test_a_folder_is_never_overwritten_nor_left_half_written(write, tmp_path: Path) -> None:
    target = tmp_path / "set"
    target.mkdir()
    assert write(target, ITEMS) == 3  # an empty folder is filled
    before = sorted(path.name for path in target.iterdir())
    with pytest.raises(DataError, match="the folder has files in it"):
        write(target, ITEMS[:1])
    assert sorted(path.name for path in target.iterdir()) == before
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file"):
        write(tmp_path / "file", ITEMS)

    def crash():
        yield ITEMS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "other", crash())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "set"]
