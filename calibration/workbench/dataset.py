"""Workbench items as a dataset: made when they are asked for, nothing is stored.

Contract  Number i of a seed is the same whatever the count, and equal to what `data make` writes.
Elsewhere items: items.py; pictures: render.py; the dataset: calibration/dataset.py.
"""

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.calibration.dataset import Dataset
from rexthinker_edge.calibration.records import Record
from rexthinker_edge.calibration.workbench.items import Item, item_record, make_item
from rexthinker_edge.calibration.workbench.render import render
from rexthinker_edge.calibration.workbench.world import Level

EVALUATION_SEED = 1_000_000  # the first of the evaluation seeds; training seeds lie below
EVALUATION_COUNT = 1000


class Workbench(Dataset):
    """`count` items of a level and seed."""

    def __init__(self, level: Level, seed: int = EVALUATION_SEED, count: int = EVALUATION_COUNT) -> None:
        super().__init__(f"workbench:{level}:{seed}:{count}")
        self.level, self.seed, self.count = level, seed, count
        self._last: tuple[int, Item] | None = None

    def __len__(self) -> int:
        return self.count

    def place(self, number: int) -> tuple[str, int]:
        """The set's name and the item, from 1."""
        return f"workbench {self.level}, seed {self.seed}", number + 1

    def read(self, number: int) -> Record:
        """One item as a record."""
        return item_record(self._item(number), number)

    def picture(self, number: int, record: Record) -> NDArray[np.uint8]:
        """The item's picture, painted."""
        return render(self._item(number).scene)

    def _item(self, number: int) -> Item:
        """An item; its record and its picture are asked for one after the other."""
        if self._last is None or self._last[0] != number:
            self._last = (number, make_item(self.level, self.seed, number))
        return self._last[1]
