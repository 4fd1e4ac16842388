"""The public names, and what importing them costs."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

import rexthinker_edge
from rexthinker_edge import runtime

PUBLIC = [
    "Abstention", "BoxError", "Bundle", "BundleError", "BundleInfo", "Candidate", "CandidateVerdict",
    "CandidatesEvent", "CheckpointError", "ConfigError", "DataError", "DecidedEvent", "DeviceError",
    "Explanation", "GroundedThought", "ImageError", "ImageInfo", "Manifest", "Milliseconds",
    "MissingExtraError", "OptionError", "Reference", "Result", "ResultEvent", "RexThinkerError", "Scene",
    "SceneBusyError", "SceneError", "Status", "Step", "TextError", "TextEvent", "Thinker", "Tokens",
    "Verdict", "draw_result", "load", "open_bundle", "read_grounded", "write_grounded",
]  # fmt: skip


def test_public_names():
    assert rexthinker_edge.__all__ == PUBLIC == sorted(PUBLIC)
    assert dir(rexthinker_edge) == PUBLIC
    for name in PUBLIC:
        assert getattr(rexthinker_edge, name).__name__ == name
    with pytest.raises(AttributeError, match="module rexthinker_edge has no attribute 'chat'"):
        _ = rexthinker_edge.chat


def test_every_error_is_a_rexthinker_error_with_a_reason_in_its_docstring():
    errors = [getattr(rexthinker_edge, name) for name in PUBLIC if name.endswith("Error")]
    assert all(issubclass(error, rexthinker_edge.RexThinkerError) and error.__doc__ for error in errors)


def modules_after(code: str) -> set[str]:
    """What a fresh interpreter has imported after some code."""
    code = f"{code}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


HEAVY = {"torch", "transformers", "onnx", "onnxscript", "onnx_ir", "scipy", "torchvision", "safetensors"}


def test_the_runtime_imports_nothing_of_the_workstation():
    names = [f"rexthinker_edge.runtime.{module.name}" for module in pkgutil.iter_modules(runtime.__path__)]
    assert len(names) > 20
    loaded = modules_after("\n".join(f"import {name}" for name in [*names, "rexthinker_edge.commands.refer"]))
    assert not HEAVY & loaded
    for layer in ("export", "calibration", "training", "benchmarks"):
        assert f"rexthinker_edge.{layer}" not in loaded


def test_importing_the_package_and_asking_for_help_start_nothing():
    loaded = modules_after("import rexthinker_edge, rexthinker_edge.cli\nrexthinker_edge.cli.run(['--help'])")
    assert not (HEAVY | {"onnxruntime", "numpy", "PIL", "rich", "tokenizers"}) & loaded


def test_no_command_module_imports_heavy_things():
    commands = importlib.import_module("rexthinker_edge.commands")
    names = [f"rexthinker_edge.commands.{module.name}" for module in pkgutil.iter_modules(commands.__path__)]
    assert not HEAVY & modules_after("\n".join(f"import {name}" for name in names))
