"""A sign of life on stderr for whatever takes over a second.

Contract  Nothing is written in the first second. On a terminal one line counts seconds and is wiped at the
          end; elsewhere each phase writes one line.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE_SECONDS = 1.0


@contextmanager
def phase(text: str, quiet: bool = False) -> Iterator[None]:
    """Tell that `text` goes on, while the block runs.

    Args:
        text: such as "loading the bundle".
        quiet: write nothing, for output that shows its own progress.
    """
    if quiet:
        yield
        return
    done = threading.Event()
    teller = threading.Thread(target=_tell, args=(text, done), daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()


def _tell(text: str, done: threading.Event) -> None:
    stream, seconds = sys.stderr, 0
    while not done.wait(PATIENCE_SECONDS):
        seconds += 1
        if stream.isatty():
            stream.write(f"\r\x1b[2K{text} … {seconds} s")
        elif seconds == 1:
            stream.write(f"{text} …\n")
        stream.flush()
    if seconds and stream.isatty():
        stream.write("\r\x1b[2K")
        stream.flush()
