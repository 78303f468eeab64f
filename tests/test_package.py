"""What the package shows to the outside, and what it does not load."""

import subprocess
import sys

import pytest

import histoloc

HEAVY = ("torch", "torchvision", "lightning_fabric", "timm", "pandas", "skimage", "matplotlib")


def loaded_by(statement: str) -> set[str]:
    """Heavy modules that a fresh interpreter has loaded after the statement."""
    program = f"import sys\n{statement}\nprint(*[m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_import_alone_loads_nothing_heavy():
    assert loaded_by("import histoloc; histoloc.__version__; dir(histoloc)") == set()


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["data", "--help"], ["predict", "--help"]])
def test_help_loads_nothing_heavy(arguments):
    assert loaded_by(f"from histoloc.cli.main import main; main({arguments!r})") == set()


@pytest.mark.parametrize("name", dir(histoloc))
def test_every_public_name_is_there_and_says_what_it_is(name):
    value = getattr(histoloc, name)
    assert name in ("METHODS", "__version__") or value.__doc__


def test_public_names_win_over_modules_of_the_same_name():
    functions = "histoloc.train, histoloc.evaluate, histoloc.predict"
    assert "torch" in loaded_by(f"import histoloc; histoloc.load; assert all(map(callable, [{functions}]))")
    imports = "import histoloc.training; from histoloc.training import fit"
    assert "torch" in loaded_by(f"{imports}; assert all(map(callable, [{functions}]))")


def test_a_star_imports_the_public_names():
    names: dict[str, object] = {}
    exec("from histoloc import *", names)
    assert set(names) - {"__builtins__"} == set(dir(histoloc)) - {"__version__"}


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'tran'"):
        _ = histoloc.tran  # pyright: ignore[reportAttributeAccessIssue]


def test_the_version_is_that_of_the_distribution():
    from importlib.metadata import version

    assert histoloc.__version__ == version("histoloc")
