"""The mapped layout stays honest: folders are packages, and bare names are never ours."""

import ast
import importlib.util
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGE_DIR = PROJECT["tool"]["setuptools"]["package-dir"]
LAYERS = {"runtime", "kernels", "export", "calibration", "training", "benchmarks"}
# which other layers each may import, at any level
MAY_IMPORT = {
    "kernels": set(),
    "runtime": {"kernels"},
    "calibration": {"kernels", "runtime"},  # what is calibrated is what runs: prompt, pixels, integers
    "export": {"kernels", "calibration", "runtime"},
    "training": {"calibration", "runtime", "kernels", "export"},
    "benchmarks": LAYERS,
}


def test_the_mapping_equals_the_folders():
    assert {"rexthinker_edge": "package"} | {f"rexthinker_edge.{n}": n for n in LAYERS} == PACKAGE_DIR
    on_disk = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert on_disk == LAYERS | {"package"}


def test_every_package_is_listed():
    packages = set()
    for folder in PACKAGE_DIR.values():
        for init in (ROOT / folder).rglob("__init__.py"):
            relative = init.parent.relative_to(ROOT)
            top = (
                "rexthinker_edge"
                if relative.parts[0] == "package"
                else f"rexthinker_edge.{relative.parts[0]}"
            )
            packages.add(".".join([top, *relative.parts[1:]]))
    assert packages == set(PROJECT["tool"]["setuptools"]["packages"])


def test_every_folder_with_modules_is_a_package():
    for folder in PACKAGE_DIR.values():
        for module in (ROOT / folder).rglob("*.py"):
            assert (module.parent / "__init__.py").is_file(), module


@pytest.mark.parametrize("name", sorted(LAYERS | {"package"}))
def test_bare_names_are_not_ours(name):
    spec = importlib.util.find_spec(name)
    origin = Path(spec.origin or "").resolve() if spec else Path("/")
    assert ROOT not in origin.parents


def test_the_guards_are_configured():
    assert "--import-mode=importlib" in PROJECT["tool"]["pytest"]["ini_options"]["addopts"]
    assert PROJECT["tool"]["pytest"]["ini_options"]["filterwarnings"][0] == "error"
    assert not (ROOT / "conftest.py").exists()
    banned = PROJECT["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]
    assert set(banned) >= LAYERS | {"package"}
    assert PROJECT["tool"]["ruff"]["lint"]["isort"]["known-first-party"] == ["rexthinker_edge"]
    assert "graft tests" in (ROOT / "MANIFEST.in").read_text()


def imports_of(module: Path, top_only: bool = False) -> set[str]:
    """Full names a module imports, at any level of it, or as it is itself imported."""
    names = set()
    tree = ast.parse(module.read_text(encoding="utf-8"))
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


# rules that have one home, in the runtime, and that everyone may use
SHARED = {"rexthinker_edge.runtime.errors", "rexthinker_edge.runtime.boxes", "rexthinker_edge.runtime.prompt"}


def test_layers_import_only_what_they_may():
    for layer, allowed in MAY_IMPORT.items():
        for module in (ROOT / layer).rglob("*.py"):
            for name in imports_of(module):
                parts = name.split(".")
                if ".".join(parts[:3]) in SHARED and layer != "kernels":
                    continue
                if parts[0] == "rexthinker_edge" and parts[1] in LAYERS:
                    assert parts[1] in allowed | {layer}, f"{module.relative_to(ROOT)} imports {name}"


def test_the_root_package_imports_the_runtime_alone_until_a_command_runs():
    for module in (ROOT / "package").rglob("*.py"):
        for name in imports_of(module, top_only=True):
            parts = name.split(".")
            assert parts[0] != "rexthinker_edge" or parts[1] not in LAYERS - {"runtime"}, f"{module}: {name}"


def test_the_device_layers_import_nothing_of_the_workstation():
    """The runtime and the kernels never; a command only inside its function."""
    heavy = {"torch", "transformers", "onnx", "onnxscript", "onnx_ir", "scipy", "safetensors"}
    for layer in ("runtime", "kernels", "package"):
        for module in (ROOT / layer).rglob("*.py"):
            found = {name.split(".")[0] for name in imports_of(module, layer == "package")} & heavy
            assert not found, f"{module.relative_to(ROOT)} imports {found}"
