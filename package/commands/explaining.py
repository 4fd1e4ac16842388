"""`refer --explain FILE`: what an answer rests on, in the form that the file's ending names.

Elsewhere what it is: runtime/explain.py.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rexthinker_edge.commands.judging import write_text
from rexthinker_edge.runtime.errors import OptionError

if TYPE_CHECKING:
    from rexthinker_edge.runtime.explain import Explanation

FORMS: dict[str, "Callable[[Explanation], str]"] = {
    ".html": lambda explanation: explanation.to_html(),
    ".json": lambda explanation: json.dumps(explanation.to_json(), indent=1, ensure_ascii=False) + "\n",
    ".svg": lambda explanation: explanation.to_svg(),
    ".txt": lambda explanation: explanation.to_text(),
}


def check_explanation(path: Path) -> None:
    """Say before the work whether an explanation can be written there.

    Raises:
        OptionError: an unknown ending, or no such directory.
    """
    if path.suffix.lower() not in FORMS:
        known = ", ".join(FORMS)
        raise OptionError(f"{path}: it ends with {path.suffix!r}, one of {known} is needed. Rename it.")
    if not path.parent.is_dir():
        raise OptionError(f"{path}: no such directory, an existing one is needed. Make it, or name another.")


def write_explanation(explanation: "Explanation", path: Path) -> None:
    """Write it; OptionError when it cannot be written there."""
    write_text(path, FORMS[path.suffix.lower()](explanation))
