"""The generated pages are those that the table of methods and the docstrings give."""

import importlib.util
from pathlib import Path

import pytest

from histoloc.methods import METHODS

SCRIPT = Path(__file__).parents[1] / "docs" / "make_methods.py"


@pytest.fixture(scope="module")
def pages():
    spec = importlib.util.spec_from_file_location("make_methods", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.pages()


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
