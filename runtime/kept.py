"""The last few results of something that depends on its key alone.

Contract  At most `most` entries; the one that was not asked for longest goes first. Safe between threads; two
          that ask for the same new key at once may both make it.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Kept(Generic[Key, Value]):
    """A bounded table, least recently used out first."""

    def __init__(self, most: int) -> None:
        assert most > 0, most
        self._most, self._entries, self._lock = most, OrderedDict[Key, Value](), threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """The value kept under `key`, made and kept where there is none."""
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key]
        made = make()
        with self._lock:
            self._entries[key] = made
            self._entries.move_to_end(key)
            while len(self._entries) > self._most:
                self._entries.popitem(last=False)
        return made
