"""Grounded vision-language answers on the edge.

Contract  The public names are those in `__all__`; anything else may change. They load on first use, so that
          importing the package, or asking the command line for help, starts nothing.
Elsewhere what they are: runtime/. The command line: cli.py.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rexthinker_edge.runtime.answer import Status
    from rexthinker_edge.runtime.bundle import Bundle, open_bundle
    from rexthinker_edge.runtime.draw import draw_result
    from rexthinker_edge.runtime.errors import (
        BoxError,
        BundleError,
        CheckpointError,
        ConfigError,
        DataError,
        DeviceError,
        ImageError,
        MissingExtraError,
        OptionError,
        RexThinkerError,
        SceneBusyError,
        SceneError,
        TextError,
    )
    from rexthinker_edge.runtime.explain import Explanation
    from rexthinker_edge.runtime.grounded import GroundedThought, Reference, read_grounded, write_grounded
    from rexthinker_edge.runtime.manifest import Manifest
    from rexthinker_edge.runtime.result import (
        Abstention,
        BundleInfo,
        Candidate,
        CandidatesEvent,
        CandidateVerdict,
        DecidedEvent,
        ImageInfo,
        Milliseconds,
        Result,
        ResultEvent,
        Step,
        TextEvent,
        Tokens,
    )
    from rexthinker_edge.runtime.scene import Scene
    from rexthinker_edge.runtime.thinker import Thinker, load
    from rexthinker_edge.runtime.trace import Verdict

__all__ = [
    "Abstention",
    "BoxError",
    "Bundle",
    "BundleError",
    "BundleInfo",
    "Candidate",
    "CandidateVerdict",
    "CandidatesEvent",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DecidedEvent",
    "DeviceError",
    "Explanation",
    "GroundedThought",
    "ImageError",
    "ImageInfo",
    "Manifest",
    "Milliseconds",
    "MissingExtraError",
    "OptionError",
    "Reference",
    "Result",
    "ResultEvent",
    "RexThinkerError",
    "Scene",
    "SceneBusyError",
    "SceneError",
    "Status",
    "Step",
    "TextError",
    "TextEvent",
    "Thinker",
    "Tokens",
    "Verdict",
    "draw_result",
    "load",
    "open_bundle",
    "read_grounded",
    "write_grounded",
]

_HOMES = {
    "answer": ("Status",),
    "bundle": ("Bundle", "open_bundle"),
    "draw": ("draw_result",),
    "errors": tuple(name for name in __all__ if name.endswith("Error")),
    "explain": ("Explanation",),
    "grounded": ("GroundedThought", "Reference", "read_grounded", "write_grounded"),
    "manifest": ("Manifest",),
    "result": (
        "Abstention", "BundleInfo", "Candidate", "CandidateVerdict", "CandidatesEvent", "DecidedEvent",
        "ImageInfo", "Milliseconds", "Result", "ResultEvent", "Step", "TextEvent", "Tokens",
    ),
    "scene": ("Scene",),
    "thinker": ("Thinker", "load"),
    "trace": ("Verdict",),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"rexthinker_edge.runtime.{module}"), name)
    raise AttributeError(f"module rexthinker_edge has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
