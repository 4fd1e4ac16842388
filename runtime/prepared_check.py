"""Asks a bundle one thing and prints the outcome, in a process of its own that may crash.

Contract  `python -m rexthinker_edge.runtime.prepared_check BUNDLE [ROOT]` prints a hash over what the
          detector finds and over tokens of an answer. ROOT is where prepared graphs of the bundle lie;
          without it the bundle's own are run. Equal outcomes are equal bit for bit.
Elsewhere who compares: prepared.py.
"""

import hashlib
import sys
from pathlib import Path

import numpy as np

from rexthinker_edge.runtime.bundle import open_bundle
from rexthinker_edge.runtime.opening import session_options
from rexthinker_edge.runtime.parts import open_parts
from rexthinker_edge.runtime.thinker import Thinker

BOXES = [[10, 10, 60, 60], [70, 40, 130, 100]]
TOKENS = 4


def outcome(bundle: Path, root: Path | None) -> str:
    """What the bundle makes of a picture of noise."""
    opened, options = open_bundle(bundle), session_options(1)
    parts = open_parts(opened, options, "cpu", root or bundle / "nothing-prepared")
    picture = np.random.default_rng(7).integers(0, 256, (112, 140, 3), np.uint8)
    logits, shares = parts.detector.raw(picture, "person")
    answer = Thinker(opened, parts, "cpu", 1).look(picture, "person", BOXES).refer("the left person", TOKENS)
    digest = hashlib.sha256(logits.tobytes() + shares.tobytes() + str(answer.token_ids).encode())
    return digest.hexdigest()


if __name__ == "__main__":
    print(outcome(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None))
