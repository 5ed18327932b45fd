"""The rules of the tree: who may import whom, what is packaged, how long a file may get."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("compiler", "passes", "runtime", "targets")
SOURCE_SUFFIXES = {".py", ".c", ".h"}
MAX_LINES = 500

# The compiler's rooms from the bottom up. A module may import what stands on its own line and on the lines above it.
COMPILER_LAYERS = (
    ("errors", "tools"),
    ("formats",),
    ("options", "core"),
    ("checkpoint",),
    ("frontend",),
    ("quantisation",),
)
BOTTOM = tuple(f"dsv3c.compiler.{name}" for layer in COMPILER_LAYERS[:3] for name in layer)  # for passes and targets
# What targets share: planned calls, linked libraries, TIR; over these two families, which know nothing of each other.
TARGET_LAYERS = (
    ("calls", "link", "tir"),
    ("cpu", "gpu"),
)
STRICT_JSON = "dsv3c.runtime.artifact.strict_json"  # files of a checkpoint are no better than those of an artifact
BOUNDED_FILES = "dsv3c.runtime.artifact.jsonfile"  # nor is a plan that a person gives
PROGRESS = "dsv3c.runtime.progress"  # of what is fetched from a hub
BASE = "dsv3c.runtime.errors"  # of all errors
TEXT = ("dsv3c.runtime.text.tokenizer", BASE)  # texts for calibration become tokens as prompts do
# What lies in an artifact, as values: who writes it builds what the runtime reads. The runtime comes with the compiler.
STORED = tuple(f"dsv3c.runtime.artifact.{name}" for name in ("plan", "plan_reader", "costs", "dispatches", "weights"))
# What the native program has as constants: the runtime's defaults, and what its chat template renders.
GENERATING = (*TEXT, "dsv3c.runtime.engine.generation_config", "dsv3c.runtime.engine.params")
# The runtime's, likewise; on top stand the commands, and the package itself, where users import from.
RUNTIME_LAYERS = (
    ("errors", "progress", "turns"),
    ("artifact",),
    ("text",),
    ("devices",),
    ("engine",),
    ("measure", "model"),
    ("server",),
)
RUNTIME_PACKAGES = {"numpy", "tvm_ffi", "tokenizers", "jinja2", "click"}
SERVER_PACKAGES = {"starlette", "sse_starlette", "uvicorn", "prometheus_client", "anyio"}  # of that room alone
# Packages that one module of the runtime may import, inside the function that needs them.
RUNTIME_OPTIONAL = {
    "dsv3c.runtime.cli.bench_plot": {"matplotlib"},
    "dsv3c.runtime.devices.onnx.device": {"onnxruntime"},
    "dsv3c.runtime.devices.vulkan.binding": {"vulkan"},
    "dsv3c.runtime.engine.grammar": {"llguidance"},
}


def sources(*folders: str, pattern: str = "*.py") -> list[Path]:
    """Files of ours; `pip install ./runtime` leaves copies of them in runtime/build."""
    found = (path for folder in folders for path in (ROOT / folder).rglob(pattern))
    return sorted(path for path in found if not {"__pycache__", "build"} & set(path.relative_to(ROOT).parts))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("dsv3c", *(parts[:-1] if parts[-1] == "__init__" else parts)))


MODULES = {module_of(path) for path in sources(*FOLDERS)}


def imports(path: Path, top: bool = False) -> Iterator[str]:
    """The modules that a file imports, as absolute names: anywhere in it, or with `top` when it is imported itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    for node in tree.body if top else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}:{node.lineno}: relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else node.module


def within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def allowed(module: str) -> tuple[str, ...]:
    """The packages of ours that `module` may import."""
    _, folder, *rest = module.split(".")
    if folder == "passes":
        return BOTTOM
    if folder == "targets":
        # A room builds on the layers below its own and on nothing beside it; so does a target.
        room = rest[0] if rest else ""
        layer = next((number for number, names in enumerate(TARGET_LAYERS) if room in names), len(TARGET_LAYERS))
        lower = (name for names in TARGET_LAYERS[:layer] for name in names)
        constants = GENERATING if rest[:2] == ["cpu", "native"] else ()
        return (*BOTTOM, *STORED, *constants, *(f"dsv3c.targets.{name}" for name in (*lower, room)))
    layers = RUNTIME_LAYERS if folder == "runtime" else COMPILER_LAYERS
    from_runtime = {
        "errors": (BASE,),
        "checkpoint": (STRICT_JSON, PROGRESS),
        "core": STORED,
        "quantisation": (*TEXT, STRICT_JSON, BOUNDED_FILES),
    }
    from_runtime = from_runtime if folder == "compiler" else {}
    below: tuple[str, ...] = from_runtime.get(rest[0], ()) if rest else ()
    for layer in layers:
        below += tuple(f"dsv3c.{folder}.{name}" for name in layer)
        if rest and rest[0] in layer:
            return below
    return ("dsv3c.runtime",) if folder == "runtime" else ("dsv3c",)


@pytest.mark.parametrize("path", sources(*FOLDERS), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downwards(path: Path) -> None:
    module = module_of(path)
    wrong = [name for name in imports(path) if within(name, ("dsv3c",)) and not within(name, allowed(module))]
    assert not wrong, f"{module} must not import {', '.join(wrong)}"


def test_runtime_imports_only_its_few_packages() -> None:
    known = RUNTIME_PACKAGES | {"dsv3c"} | sys.stdlib_module_names
    for path in sources("runtime"):
        room = SERVER_PACKAGES if within(module_of(path), ("dsv3c.runtime.server",)) else set()
        found = {name.split(".")[0] for name in imports(path)} - known - room
        wrong = found - RUNTIME_OPTIONAL.get(module_of(path), set())
        assert not wrong, f"{module_of(path)} must not import {', '.join(sorted(wrong))}"
        early = found & {name.split(".")[0] for name in imports(path, top=True)}
        assert not early, f"{module_of(path)} must import {', '.join(sorted(early))} in the function that needs it"


RECORDS = "dsv3c.artifacts.tuning"  # a package of data


def test_packages_are_the_folders() -> None:
    """An unlisted package works in an editable install and is missing from the wheel."""
    for root, folders in ((ROOT, FOLDERS), (ROOT / "runtime", ("runtime",))):
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
        packages = {module_of(path) for path in sources(*folders) if path.name == "__init__.py"}
        data = {RECORDS} if root == ROOT else set()
        assert set(project["tool"]["setuptools"]["packages"]) == packages | data
    without_init = {path.parent for path in sources(*FOLDERS) if not (path.parent / "__init__.py").exists()}
    assert not without_init


def test_no_file_is_too_long() -> None:
    found = [path for folder in (*FOLDERS, "tests") for path in (ROOT / folder).rglob("*")]
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in found
        if path.suffix in SOURCE_SUFFIXES
    }
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}


def test_every_pass_has_a_test_file() -> None:
    passes = [path.stem for path in sources("passes") if path.stem != "__init__"]
    assert [name for name in passes if not (ROOT / "tests" / "passes" / f"test_{name}.py").exists()] == []
