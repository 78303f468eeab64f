"""The generated pages are those that the table of methods and the docstrings give."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from histoloc.methods import METHODS

SCRIPT = Path(__file__).parents[1] / "docs" / "make_methods.py"


def _script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, SCRIPT.parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages():
    return _script("make_methods").pages()


def test_every_page_is_up_to_date(pages):
    assert {path.stem for path in pages} == {"methods", *METHODS}
    for path, text in pages.items():
        assert path.read_text(encoding="utf-8") == text, f"run python docs/make_methods.py: {path.name} is out of date"


@pytest.mark.parametrize("name", METHODS)
def test_a_page_says_what_the_method_is(pages, name):
    text = pages[SCRIPT.parent / "methods" / f"{name}.md"]
    method = METHODS[name]
    assert text.startswith(f"# {method.title}\n")
    assert method.paper in text
    for option in vars(method.Options()):
        assert f"`--{option.replace('_', '-')}`" in text


def test_the_walks_name_rooms_that_are_there():
    module = _script("make_walks")
    for name, steps in module.WALKS.items():
        for room, _ in steps:
            assert importlib.util.find_spec(f"histoloc.{room}"), f"{room} is no module; correct docs/make_walks.py"
        written = (SCRIPT.parent / f"walk-{name}.svg").read_text(encoding="utf-8")
        assert written == module.drawn(steps), f"run python docs/make_walks.py: walk-{name}.svg is out of date"
