"""The house keeps its plan: short files and functions, and imports that point downwards."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import histoloc

SOURCE = Path(histoloc.__file__).parent
MODULES = {".".join(path.relative_to(SOURCE).with_suffix("").parts): path for path in sorted(SOURCE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def imports(name: str) -> Iterator[str]:
    """Modules of histoloc that a module imports when it is loaded, by their names below histoloc."""
    for node in TREES[name].body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("histoloc"):
            room = (node.module or "").removeprefix("histoloc").removeprefix(".")
            for alias in node.names:
                inner = f"{room}.{alias.name}" if room else alias.name
                yield next((n for n in (inner, room, f"{room}.__init__") if n in MODULES), room)


def test_files_are_short():
    long = {name: lines for name, path in MODULES.items() if (lines := len(path.read_text().splitlines())) > 400}
    assert not long


def test_functions_are_short_and_have_few_parameters():
    wrong = []
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                parameters = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
                count = sum(parameter.arg not in ("self", "cls") for parameter in parameters)
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > 50 or count > 8:
                    wrong.append(f"{name}.{node.name}: {lines} lines, {count} parameters")
    assert not wrong


def test_no_module_is_called_like_a_public_name():
    assert not {name for name in MODULES if "." not in name} & set(dir(histoloc))


def test_imports_go_in_no_circle():
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"a circle of imports: {' -> '.join((*path[path.index(name) :], name))}"
        if name not in done:
            for other in imports(name):
                visit(other, (*path, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


FORBIDDEN = {
    "methods": ("data", "datasets", "training", "prediction", "evaluation", "slides", "benchmark", "report", "viewer"),
    "data": ("nn", "methods", "training", "prediction", "datasets", "benchmark"),
    "slides": ("methods", "nn", "training", "prediction", "datasets", "benchmark"),
    "metrics": ("data", "methods", "training", "prediction", "evaluation", "report", "benchmark"),
    "runner": ("data", "methods", "slides", "benchmark", "training"),
    "datasets": ("nn", "methods", "training", "prediction", "benchmark"),
    "report": ("training", "prediction", "benchmark", "viewer"),
    "viewer": ("training", "prediction", "benchmark"),
}


@pytest.mark.parametrize("room", FORBIDDEN)
def test_imports_point_downwards(room):
    upward = [
        f"{name} imports {other}"
        for name in MODULES
        if name.split(".")[0] == room
        for other in imports(name)
        if other.split(".")[0] in FORBIDDEN[room] or other.split(".")[0] == "cli"
    ]
    assert not upward
