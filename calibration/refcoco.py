"""RefCOCO, RefCOCO+ and RefCOCOg in the JSON and parquet forms they are passed around in.

Layout    One row is a picture's name, a box and one or more expressions; a record is made per expression.
          Forms, told apart by their keys, which also say how the box is written:
          `image`/`sent`/`bbox` xyxy (Qwen-VL's and InternVL's jsonl), `img_path`/`expression`/`bbox` xyxy
          (Shikra's), `image`/`problem`/`solution` xyxy (VLM-R1's), `file_name`/`sentences`/`bbox` xyxy (the
          parquet with `raw_sentences`), `file_name`/`answer`/`bbox` xywh (lmms-lab's parquet, pictures
          inside), `file_name`/`samples[sentences, bbox xywh]` (RefCOCO-M's parquet, pictures inside), and
          COCO form with `images[file_name, caption]` and `annotations[image_id, bbox xywh]` (MDETR's).
Contract  Candidates are all boxes the file has of the same picture and category: the sets name no others.
          Bad rows are named problems. JSON is read whole (RefCOCOg's is 50 MB); of parquet the columns
          without pictures, and one row group's pictures at a time. Pickles (`refs(unc).p`) are not opened:
          they can run code.
Elsewhere COCO's own detection files: coco.py; the dataset: dataset.py.
Source    docs/sources.md#refcoco
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rexthinker_edge.calibration.dataset import BAD, Dataset, PictureSource, find_picture
from rexthinker_edge.calibration.records import Box, Problem, Record, read_box, read_json, read_text, why
from rexthinker_edge.runtime.errors import DataError, MissingExtraError

CATEGORY = "object"  # what a hint calls the candidates where a file has no category
# (picture, expressions, box, whether the box is x, y, width, height), first match counts
FORMS: tuple[tuple[str, str, str, bool], ...] = (
    ("img_path", "expression", "bbox", False),
    ("image", "sent", "bbox", False),
    ("image", "problem", "solution", False),
    ("image", "normal_caption", "solution", False),
    ("file_name", "answer", "bbox", True),
    ("file_name", "sentences", "bbox", False),
    ("file_name", "expression", "bbox", False),
)
NEEDED = "; ".join(", ".join(form[:3]) for form in FORMS)


@dataclass(frozen=True)
class Row:
    """One box and one expression about it."""

    line: int
    image: str
    category: str
    expression: str
    box: Box


class RefCoco(Dataset):
    """A RefCOCO file; numbers count its expressions, rows that cannot be read are problems of the file."""

    def __init__(self, path: Path, images: Path | None = None) -> None:
        """Read the rows of `path`; pictures are below `images`, or beside the file, or inside it.

        Raises:
            DataError: there is no such file, or it is of none of the forms.
            MissingExtraError: parquet without pyarrow.
        """
        if not path.is_file():
            raise DataError(f"{path}: no such file, RefCOCO as JSON or parquet is needed. Name the file.")
        if path.suffix.lower() in {".p", ".pkl", ".pickle"}:
            raise DataError(
                f"{path}: a pickle, which can run code when it is opened; JSON or parquet is needed. "
                "Convert it where you trust it."
            )
        self.path = path
        self.folders = [*([images] if images else []), path.parent]
        self.parquet = Parquet(path) if path.suffix.lower() == ".parquet" else None
        problems: list[Problem] = []
        self.rows = list(
            read_rows(self.parquet.rows() if self.parquet else json_rows(path, problems), path, problems)
        )
        if not self.rows:
            told = f" The first row: {problems[0].reason}." if problems else ""
            raise DataError(
                f"{path}: no row of a known form, one of these is needed: {NEEDED}.{told} Convert it."
            )
        super().__init__(f"refcoco:{path}", problems)
        self._candidates: dict[tuple[str, str], dict[Box, None]] = {}
        for row in self.rows:
            self._candidates.setdefault((row.image, row.category), {})[row.box] = None

    def close(self) -> None:
        """Close a parquet file."""
        if self.parquet:
            self.parquet.close()

    def __len__(self) -> int:
        return len(self.rows)

    def place(self, number: int) -> tuple[str, int]:
        """File name and row."""
        return self.path.name, self.rows[number].line

    def read(self, number: int) -> Record:
        """One expression as a record."""
        row = self.rows[number]
        return Record(
            id=number,
            image_name=row.image,
            referring=row.expression,
            domain="refcoco",
            sub_domain=self.path.stem,
            category=row.category,
            candidate_boxes=tuple(self._candidates[row.image, row.category]),
            answer_boxes=(row.box,),
        )

    def picture(self, number: int, record: Record) -> PictureSource:
        """From the parquet file where it holds pictures, else from the folders."""
        inside = self.parquet.picture(self.rows[number].line - 1) if self.parquet else None
        return find_picture(record.image_name, self.folders) if inside is None else inside


def read_rows(rows: Iterator[tuple[int, Any]], path: Path, problems: list[Problem]) -> Iterator[Row]:
    """Make rows of parsed objects `(row number from 1, fields)`; what cannot be read goes to `problems`."""
    for line, fields in rows:
        try:
            yield from _read_fields(line, fields)
        except BAD as error:
            problems.append(Problem(path.name, line, why(error)))


def _read_fields(line: int, fields: Any) -> list[Row]:
    if not isinstance(fields, dict):
        raise ValueError("the row is not a JSON object")
    if isinstance(fields.get("samples"), list | tuple):  # RefCOCO-M: one row a picture
        shared = {"file_name": fields["file_name"]}
        return [
            row
            for sample in fields["samples"]
            for row in _rows_of(line, shared | sample, ("file_name", "sentences", "bbox", True))
        ]
    for form in FORMS:
        if all(key in fields for key in form[:3]):
            return _rows_of(line, fields, form)
    raise ValueError(f"keys {', '.join(sorted(map(str, fields)))[:120]} are of no known form")


def _rows_of(line: int, fields: dict[str, Any], form: tuple[str, str, str, bool]) -> list[Row]:
    image_key, said_key, box_key, is_xywh = form
    image = read_text(fields[image_key], image_key)
    box = read_box(list(fields[box_key]) if isinstance(fields[box_key], Sequence) else fields[box_key])
    if is_xywh:
        box = (box[0], box[1], box[0] + box[2], box[1] + box[3])
    said = fields[said_key]
    told = [said] if isinstance(said, str | dict) else said
    if not image or not isinstance(told, list | tuple) or not told:
        raise ValueError(f"{image_key} or {said_key} is empty")
    texts = [_sentence(one) for one in told]
    name = fields.get("category") or fields.get("category_name")
    category = read_text(name, "category") if isinstance(name, str) else CATEGORY
    return [Row(line, image, category, read_text(text, said_key).strip(), box) for text in texts]


def _sentence(one: Any) -> object:
    """A sentence is text, or an object with `sent` (cleaned) or `raw`."""
    return (one.get("sent") or one["raw"]) if isinstance(one, dict) else one


def json_rows(path: Path, problems: list[Problem]) -> Iterator[tuple[int, Any]]:
    """Rows of a JSON list, of JSON lines, or of a COCO form with captions."""
    whole = _whole_json(path)
    if isinstance(whole, dict) and "images" in whole and "annotations" in whole:
        yield from _captioned(whole)
    elif isinstance(whole, list):
        yield from enumerate(whole, 1)
    else:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    try:
                        yield number, read_json(line)
                    except BAD as error:
                        problems.append(Problem(path.name, number, why(error)))


def _whole_json(path: Path) -> Any:
    """The file as one JSON value; None where it is none, or one object a line."""
    with path.open("rb") as stream:
        first = stream.readline(1 << 20).strip()
    if first.startswith(b"{") and first.endswith(b"}") and b'"annotations"' not in first:
        return None
    try:
        return read_json(path.read_bytes())
    except BAD as error:
        if first.startswith(b"{"):
            return None
        raise DataError(
            f"{path}: {why(error)}, RefCOCO as JSON or parquet is needed. Copy the file again."
        ) from error


def _captioned(whole: dict[str, Any]) -> Iterator[tuple[int, Any]]:
    """MDETR's form: every picture entry carries one caption and has one annotation."""
    boxes = {a.get("image_id"): a.get("bbox") for a in whole["annotations"] if isinstance(a, dict)}
    for number, image in enumerate(whole["images"], 1):
        if not isinstance(image, dict):
            yield number, image
            continue
        fields = {"file_name": image.get("file_name"), "bbox": boxes.get(image.get("id"))}
        said = image.get("caption") or image.get("expressions")
        yield number, {"category": image.get("category"), **fields, "answer": said}


class Parquet:
    """A parquet file: its plain columns at once, its pictures one row group at a time.

    Raises:
        MissingExtraError: pyarrow is not installed.
        DataError: it is no parquet file.
    """

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow.parquet as pq  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"{path.name}: parquet, and the package pyarrow is not installed, the base install leaves it "
                "out. "
                "Install it: pip install 'rexthinker-edge[data]'."
            ) from error
        import pyarrow  # noqa: PLC0415

        try:
            self._file = pq.ParquetFile(path)
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise DataError(
                f"{path}: not parquet ({' '.join(str(error).split())[:120]}), a whole file is needed. "
                "Copy it again."
            ) from error
        self.columns = self._file.schema_arrow.names
        self._starts = [0]
        for group in range(self._file.num_row_groups):
            self._starts.append(self._starts[-1] + self._file.metadata.row_group(group).num_rows)
        self._held: tuple[int, list[Any]] | None = None

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def rows(self) -> Iterator[tuple[int, Any]]:
        """Every row without its picture, numbered from 1."""
        plain = [name for name in self.columns if name != "image"]
        number = 0
        for batch in self._file.iter_batches(batch_size=1024, columns=plain):
            for fields in batch.to_pylist():
                number += 1
                yield number, {key: _plain(value) for key, value in fields.items()}

    def picture(self, row: int) -> bytes | None:
        """The bytes of a row's picture; None where the file holds none; ValueError on other content."""
        if "image" not in self.columns:
            return None
        group = next(g for g in range(len(self._starts) - 1) if row < self._starts[g + 1])
        if self._held is None or self._held[0] != group:
            self._held = (
                group,
                self._file.read_row_group(group, columns=["image"]).column("image").to_pylist(),
            )
        value = self._held[1][row - self._starts[group]]
        held = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(held, bytes):
            raise ValueError("the row's picture is empty")
        return held


def _plain(value: Any) -> Any:
    """An answer column may hold a dict of lists, as `datasets` stores a list of dicts."""
    if isinstance(value, dict) and value and all(isinstance(v, list) for v in value.values()):
        return [dict(zip(value, row, strict=False)) for row in zip(*value.values(), strict=False)]
    return value
