"""What usually comes next: the habits of calibration traces, as a table that is walked token by token.

Layout    `draft.bin`, little-endian: magic `RXDRAFT1`, then u32 vocab, u32 states, u32 depth, u32 zero;
          then six arrays of `states` numbers: token, first child, suffix, next token, next state (u32 each),
          sureness (u8). A state is a run of tokens that calibration traces hold often; state 0 is the
          empty run.
          States stand by length and then by parent, children of one parent by token; a state's children end
          where the next state's begin. `token` is the last of the run, `suffix` the state of the longest
          shorter run that ends alike. `next token` follows a state most often, in `sureness` / 255 of all
          cases, and leads to `next state`.
          The token `vocab` stands for the beginning of an answer; it is never drafted.
Contract  `Table` checks every number it will follow, so that no file makes it read outside or run forever.
          A table decides only what is tried, never what is said.
Elsewhere who fills it: calibration/draft_table.py; who asks it: draft.py.
Source    docs/drafting.md
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rexthinker_edge.runtime.errors import BundleError

MAGIC = b"RXDRAFT1"
_HEADER = struct.Struct("<8sIIII")
_BYTES_PER_STATE = 5 * 4 + 1
MAX_STATES = 1 << 20


@dataclass(frozen=True)
class TableArrays:
    """The arrays of a table, each (states,); see the module's layout."""

    vocab: int
    depth: int
    token: NDArray[np.uint32]
    first_child: NDArray[np.uint32]
    suffix: NDArray[np.uint32]
    next_token: NDArray[np.uint32]
    next_state: NDArray[np.uint32]
    sureness: NDArray[np.uint8]

    def to_bytes(self) -> bytes:
        """The file."""
        numbers = (self.token, self.first_child, self.suffix, self.next_token, self.next_state)
        return b"".join(
            [
                _HEADER.pack(MAGIC, self.vocab, len(self.token), self.depth, 0),
                *(np.ascontiguousarray(array, "<u4").tobytes() for array in numbers),
                np.ascontiguousarray(self.sureness, np.uint8).tobytes(),
            ]
        )


class Table:
    """A table file, memory-mapped."""

    def __init__(self, path: Path, vocab: int) -> None:
        """Map and check `path`.

        Args:
            vocab: number of tokens of the model that is to be drafted for.

        Raises:
            BundleError: it is no table, a damaged one, or another model's.
        """
        with path.open("rb") as stream:
            head = stream.read(_HEADER.size)
            size = stream.seek(0, 2)
            if len(head) < _HEADER.size or not head.startswith(MAGIC):
                raise _damaged(path, "no draft table (its first bytes differ)")
            _, stated, states, depth, zero = _HEADER.unpack(head)
            if stated != vocab:
                raise _damaged(path, f"made for {stated:,} tokens, the model has {vocab:,}")
            if not 0 < states <= MAX_STATES or zero or size != _HEADER.size + states * _BYTES_PER_STATE:
                raise _damaged(path, f"{size:,} bytes do not hold {states:,} states")
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self.vocab, self.states, self.depth = vocab, states, depth
        numbers = [
            np.frombuffer(self._map, "<u4", states, _HEADER.size + 4 * states * part) for part in range(5)
        ]
        sureness = np.frombuffer(self._map, np.uint8, states, _HEADER.size + 20 * states)
        token, first, suffix, following, after = numbers
        wrong = _wrong(token, first, suffix, following, after, vocab)
        if wrong:
            raise _damaged(path, wrong)
        # memoryviews give plain integers at a tenth of an array's price
        self._token, self._first, self._suffix = _plain(token), _plain(first), _plain(suffix)
        self._next, self._after, self._sure = _plain(following), _plain(after), _plain(sureness)

    def begin(self) -> int:
        """The state at the beginning of an answer."""
        return self.step(0, self.vocab)

    def step(self, state: int, token: int) -> int:
        """The state after one more token."""
        if self._next[state] == token:
            return self._after[state]
        while True:
            found = self._child(state, token)
            if found:
                return found
            if state == 0:
                return 0
            state = self._suffix[state]

    def _child(self, state: int, token: int) -> int:
        """The state one token longer, or 0."""
        low = self._first[state]
        end = high = self._first[state + 1] if state + 1 < self.states else self.states
        while low < high:
            middle = (low + high) // 2
            if self._token[middle] < token:
                low = middle + 1
            else:
                high = middle
        return low if low < end and self._token[low] == token else 0

    def walk(self, state: int, most: int, least: int) -> tuple[list[int], list[int]]:
        """The likeliest way on: up to `most` tokens, and the sureness of each (0 to 255).

        Stops before a token less sure than `least`.
        """
        tokens: list[int] = []
        sure: list[int] = []
        while len(tokens) < most:
            sureness = self._sure[state]
            if sureness < least or sureness == 0:
                break
            tokens.append(self._next[state])
            sure.append(sureness)
            state = self._after[state]
        return tokens, sure


def _plain(array: NDArray[np.uint32] | NDArray[np.uint8]) -> memoryview:
    return array.data


def _wrong(
    token: NDArray[np.uint32], first: NDArray[np.uint32], suffix: NDArray[np.uint32],
    following: NDArray[np.uint32], after: NDArray[np.uint32], vocab: int,
) -> str:  # fmt: skip
    """What is wrong with the arrays, or nothing."""
    states = len(token)
    if suffix[0] != 0 or (suffix[1:] >= np.arange(1, states)).any():
        return "a suffix is no shorter run"
    if (after >= states).any():
        return "a state leads outside"
    if (following >= vocab).any() or (token > vocab).any():
        return "a token is outside the vocabulary"
    if first[0] != 1 or (np.diff(first.astype(np.int64)) < 0).any() or (first > states).any():
        return "children are out of order"
    if (first <= np.arange(states)).any():
        return "a state is its own child"
    return ""


def _damaged(path: Path, seen: str) -> BundleError:
    return BundleError(
        f"{path.parent.name}/{path.name}: {seen}, a draft table of this bundle is needed. "
        "Copy or export the bundle again."
    )
