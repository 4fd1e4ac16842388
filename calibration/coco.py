"""COCO-style detection JSON: `images`, `annotations` and `categories`.

Layout    A record per picture and category that occurs in it: the expression is the category's name, the
          candidates and the answers are all its boxes (x, y, width, height in the file; no crowd regions).
Contract  Entries that cannot be read are named problems; the file is read whole (instances_val2017: 20 MB).
Elsewhere expressions about COCO's pictures: refcoco.py; the dataset: dataset.py.
Source    docs/sources.md#coco
"""

from pathlib import Path
from typing import Any

from rexthinker_edge.calibration.dataset import BAD, Dataset, find_picture
from rexthinker_edge.calibration.records import Box, Problem, Record, read_box, read_json, read_text, why
from rexthinker_edge.runtime.errors import DataError

DOMAIN = "detection"
Group = tuple[int, str]  # place of the picture in the file, category


class CocoDetection(Dataset):
    """A COCO file of detections."""

    def __init__(self, path: Path, images: Path | None = None) -> None:
        """Read `path`; pictures are below `images` or beside the file.

        Raises:
            DataError: there is no such file, or it is no COCO JSON.
        """
        whole = _load(path)
        self.path, self.folders = path, [*([images] if images else []), path.parent]
        problems: list[Problem] = []
        self.images = self._by_id(whole["images"], "image", "file_name", problems)
        names = self._by_id(whole["categories"], "category", "name", problems)
        places = {image: place for place, image in enumerate(self.images)}
        self.groups: dict[Group, list[Box]] = {}
        for index, entry in enumerate(whole["annotations"]):
            try:
                if not isinstance(entry, dict):
                    raise ValueError("it is not a JSON object")
                if entry.get("iscrowd"):
                    continue
                box = _corners(read_box(entry["bbox"]))
                key = (
                    _known(places, entry["image_id"], "image"),
                    _known(names, entry["category_id"], "category"),
                )
            except BAD as error:
                problems.append(Problem(path.name, 0, f"annotations[{index}]: {why(error)}"))
                continue
            self.groups.setdefault(key, []).append(box)
        self.keys = sorted(self.groups)
        self.names = list(self.images.values())
        super().__init__(f"coco:{path}", problems)

    def _by_id(self, entries: Any, what: str, field: str, problems: list[Problem]) -> dict[Any, str]:
        found: dict[Any, str] = {}
        for index, entry in enumerate(entries):
            try:
                if not isinstance(entry, dict):
                    raise ValueError("it is not a JSON object")
                found[entry["id"]] = read_text(entry[field], field)
            except BAD as error:
                problems.append(Problem(self.path.name, 0, f"{what} {index}: {why(error)}"))
        return found

    def __len__(self) -> int:
        return len(self.keys)

    def place(self, number: int) -> tuple[str, int]:
        """File name and number of the record: the file has no lines."""
        return f"{self.path.name}, record {number}", 0

    def read(self, number: int) -> Record:
        """One picture and category as a record."""
        place, category = self.keys[number]
        boxes = tuple(self.groups[place, category])
        return Record(number, self.names[place], category, DOMAIN, category, category, boxes, boxes)

    def picture(self, number: int, record: Record) -> Path:
        """The picture's file."""
        return find_picture(record.image_name, self.folders)


def _corners(box: Box) -> Box:
    x, y, width, height = box
    if width <= 0 or height <= 0:
        raise ValueError(f"bbox {[x, y, width, height]} has no area")
    return x, y, x + width, y + height


def _known(entries: dict[Any, Any], key: object, what: str) -> Any:
    if not isinstance(key, int | str) or key not in entries:
        raise ValueError(f"{what}_id {key!r} is unknown")
    return entries[key]


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"{path}: no such file, COCO annotations as JSON are needed. Name the file.")
    try:
        whole = read_json(path.read_bytes())
    except BAD as error:
        raise DataError(f"{path}: {why(error)}, a whole file is needed. Copy it again.") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(whole, dict) or not isinstance(whole.get(key), list):
            raise DataError(
                f"{path}: no list `{key}`, COCO's images, annotations and categories are needed. "
                "Give a detection file (instances_….json); expressions are opened with refcoco:."
            )
    found: dict[str, Any] = whole
    return found
