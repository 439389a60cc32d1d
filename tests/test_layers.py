"""Import direction is a test: who may import whom, and where the heavy third parties may be used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "morphling_ray"

MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "importable": {"errors"},
    "masking": {"errors"},
    "autoscaler": {"errors"},
    "expressions": {"errors"},
    "space": {"errors", "expressions"},
    "measurement": {"errors", "space"},
    "objective": {"errors", "expressions"},
    "surface_table": {"errors", "space"},
    "surface": {"errors", "expressions", "space", "objective", "surface_table"},
    "evaluate": {"errors", "space", "measurement", "surface", "objective", "load", "serving"},
    "meta": {"errors", "space", "surface", "objective"},
    "search": {"errors", "space", "measurement", "objective", "meta"},
    "serving": {"errors", "masking", "space", "objective"},
    "load": {"errors", "measurement", "objective", "serving"},
    "store": {"errors", "space", "measurement", "objective"},
}
# What a run is told with: these may import each other.
TELLING = {
    *("console", "progress", "json_progress", "summary", "wording", "result", "exports", "trackers"),
    *("report", "sections", "tables", "plots", "knob_plots", "svg"),
    *("telemetry", "tensorboard"),
}
MAY_IMPORT |= {name: {"errors", "masking", "space", "measurement", "objective", "store"} | TELLING for name in TELLING}
ENTRY_POINTS = {
    *("__init__", "__main__", "tune", "record", "train", "experiment", "cluster", "environment"),
    *("target", "run", "trials", "outcome", "preview", "api", "export"),
}  # may import everything
RAY = {
    *(
        "search/ray_searcher.py",
        "search/tune_searcher.py",
        "load/driver.py",
        *("load/client.py", "load/crew.py", "load/loadgen.py"),
        "evaluate/stand.py",
        "evaluate/lanes.py",
        "evaluate/seating.py",
    ),
    *("run.py", "trials.py", "cluster.py", "autoscaler.py", "telemetry.py"),
}
RAY_FOLDERS = {"serving"}
TORCH_FOLDERS = {"meta", "search", "serving"}

FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def imports(source: str, file: str) -> set[str]:
    """Full names of all modules that a file imports, anywhere in it; relative imports are resolved.

    `from a import b` gives `a.b`, since b may be a module.
    """
    folder = ("morphling_ray", *Path(file).parent.parts)
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = [*folder[: len(folder) - node.level + 1]] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def layers(source: str, file: str) -> set[str]:
    """The layers of this package that a file imports, without its own."""
    names = [name.split(".") for name in imports(source, file)]
    inner = {name[1] if len(name) > 1 else "__init__" for name in names if name[0] == "morphling_ray"}
    return inner - {layer(file), "__version__"}


def third_parties(source: str, file: str) -> set[str]:
    return {name.split(".")[0] for name in imports(source, file)}


def layer(file: str) -> str:
    return Path(file).parts[0].removesuffix(".py")


@pytest.mark.parametrize(
    ("source", "file", "found"),
    [
        ("from ..load import probe", "search/gp.py", {"load"}),
        ("from .. import store", "search/gp.py", {"store"}),
        ("from .acquisition import x", "search/gp.py", set()),
        ("from . import space", "surface.py", {"space"}),
        ("def f():\n    import morphling_ray.tune as t", "space.py", {"tune"}),
        ("import morphling_ray", "space.py", {"__init__"}),
        ("from morphling_ray.space import Knob", "surface.py", {"space"}),
        ("from morphling_ray import __version__\nimport ray.serve", "store.py", set()),
    ],
)
def test_the_reader_of_imports(source: str, file: str, found: set[str]) -> None:
    """Fails if relative, lazy or plain imports are overlooked: the tests below could then not fail."""
    assert layers(source, file) == found


@pytest.mark.parametrize("file", FILES)
def test_import_direction(file: str) -> None:
    """Fails if a module imports a layer that the table does not grant it."""
    if layer(file) in ENTRY_POINTS:
        return
    assert layer(file) in MAY_IMPORT, f"{file} has no row in the table of layers"
    assert layers((PACKAGE / file).read_text(), file) <= MAY_IMPORT[layer(file)]


@pytest.mark.parametrize("file", FILES)
def test_ray_and_torch_are_used_only_where_they_belong(file: str) -> None:
    """Fails if replay or the report come to need Ray or torch, lazily too."""
    used = third_parties((PACKAGE / file).read_text(), file)
    assert "ray" not in used or file in RAY or layer(file) in RAY_FOLDERS
    assert "torch" not in used or layer(file) in TORCH_FOLDERS


def run(code: str) -> str:
    """Runs code in a fresh interpreter and returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=PACKAGE.parent, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("module", ["surface", "evaluate.replay", "store", "report", "export"])
def test_works_without_ray_and_torch(module: str) -> None:
    """Fails if anything that the module imports, at any depth, imports Ray or torch."""
    run(
        "import importlib, sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('ray', 'torch'):\n"
        "            raise ImportError(name + ' is blocked')\n"
        "sys.meta_path.insert(0, Block())\n"
        f"importlib.import_module('morphling_ray.{module}')\n"
    )


def test_import_of_the_package_is_light() -> None:
    """Fails if `__init__` imports a module that needs anything heavy."""
    loaded = run("import sys, morphling_ray; print(*sys.modules)").split()
    assert "morphling_ray" in loaded
    assert not {"torch", "ray", "pandas", "matplotlib", "numpy"} & set(loaded)


def test_help_is_light() -> None:
    """Fails if the command imports its verbs before it knows which one is asked for."""
    loaded = run("import sys; from morphling_ray.__main__ import main; main(['--help']); print(*sys.modules)").split()
    assert not {"torch", "ray", "pandas", "matplotlib", "numpy"} & set(loaded)
