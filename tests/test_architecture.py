"""The rooms of the project: who may import whom, and what is never imported at all."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("bitfount_model", "tasks", "flows", "deployments")
FORBIDDEN = {
    "bitfount_model": {"tasks", "flows", "deployments", "prefect", "mlflow"},
    "tasks": {"flows", "deployments"},
    "flows": {"deployments"},
}
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
FILES = sorted(path.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def imported(path: Path) -> Iterator[tuple[str, str | None]]:
    """Every import of a file, at its top or inside a function: (module, name or None)."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)


def attributes(path: Path) -> set[str]:
    """Every attribute of a plain name that a file uses, as `name.attribute`."""
    nodes = ast.walk(ast.parse((ROOT / path).read_text()))
    return {f"{n.value.id}.{n.attr}" for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)}


def test_there_are_files_to_look_at() -> None:
    assert len(FILES) > 30
    assert Path("bitfount_model/model.py") in FILES


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_go_down_only(path: Path) -> None:
    wrong = {module for module, _ in imported(path) if module.split(".")[0] in FORBIDDEN.get(path.parts[0], set())}
    assert not wrong


@pytest.mark.parametrize("path", FILES, ids=str)
def test_private_names_stay_in_their_module(path: Path) -> None:
    wrong = {
        f"{module}.{name}"
        for module, name in imported(path)
        if module.split(".")[0] in ROOMS and (name or "").startswith("_") and not (name or "").startswith("__")
    }
    assert not wrong


@pytest.mark.parametrize("path", FILES, ids=str)
def test_nothing_is_unpickled(path: Path) -> None:
    found = {module for module, _ in imported(path) if module.split(".")[0] in UNPICKLERS}
    if path == Path("bitfount_model/weights_files.py"):
        assert found == {"pickle"}
        assert {name for name in attributes(path) if name.startswith("pickle.")} == {"pickle.UnpicklingError"}
    else:
        assert not found
        assert "torch.load" not in attributes(path)
        assert ("torch", "load") not in set(imported(path))


@pytest.mark.parametrize("path", FILES, ids=str)
def test_there_is_no_shell_and_no_eval(path: Path) -> None:
    assert not attributes(path) & {"os.system", "os.popen", "subprocess.getoutput"}
    calls = (node.func for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, ast.Call))
    assert "eval" not in {call.id for call in calls if isinstance(call, ast.Name)}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_module_says_its_place_and_postpones_annotations(path: Path) -> None:
    tree = ast.parse((ROOT / path).read_text())
    assert ast.get_docstring(tree)
    if len(tree.body) > 1:
        assert ("__future__", "annotations") in set(imported(path))


def test_importing_the_library_loads_neither_prefect_nor_mlflow() -> None:
    code = "import bitfount_model, json, sys; print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(json.loads(result.stdout))
    assert "bitfount_model" in loaded
    assert not loaded & {"prefect", "mlflow", "tasks", "flows"}


def test_every_package_that_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [*project["dependencies"], *(name for names in project["optional-dependencies"].values() for name in names)]
    declared = {re.split(r"[\[<>=!~ ]", requirement)[0].lower().replace("_", "-") for requirement in named}
    distributions = packages_distributions()
    packages = {module.partition(".")[0] for path in FILES for module, _ in imported(path)}
    undeclared = {
        name
        for name in packages - set(sys.stdlib_module_names) - set(ROOMS)
        if not declared & {owner.lower().replace("_", "-") for owner in distributions.get(name, [name])}
    }
    assert undeclared == set()
