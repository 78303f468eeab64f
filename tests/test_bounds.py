"""Every option that is a number refuses what is none: on the command line, in YAML and in Python."""

from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from cyclopts import CycloptsError, Token

import histoloc
from histoloc.cli.main import app
from histoloc.config import run_config
from histoloc.errors import InputError
from histoloc.methods import METHODS
from histoloc.options import PredictionOptions, SlideOptions
from histoloc.runner import JobOptions

NEVER = ("nan", "inf", "-inf", "1e400", "true", "x", "9" * 5000)
# Options of which zero, or a number below it, means something.
ZERO = set(
    """--seed --fold --test --valid --tissue --p1 --coarse --retries --weight-decay --momentum --lr-floor --cache-gb
    --small-side --brightness --contrast --saturation --hue --horizontal-flip --vertical-flip --mean
    --background-weight --foreground-weight --localizer-weight --sigma-start --sigma-step --sigma-cap --kmin --alpha
    --dropout --average --drawn-weight --consistency-weight --noise --noise-seed --hidden --lower --upper --sigma
    --class-weight --map-weight --cross-entropy-weight --dice-weight --threshold --overlap --min-area --maps
    --port --cue-weight""".split()  # noqa: SIM905
)
BELOW = {"--mean", "--sigma-start", "--sigma-step", "--sigma-cap"}


def commands(part: Any = app, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    names = [name for name in part if not name.startswith("-")]
    for name in names:
        yield from commands(part[name], (*path, name))
    if not names:
        yield path, part


def numbers() -> Iterator[Any]:
    """Each option that is a number, with its command; what all methods share once."""
    seen: set[str] = set()
    for path, part in commands():
        for argument in part.assemble_argument_collection():
            hint, name = str(argument.hint), f"{path[0]} {argument.name}"
            if ("int" in hint or "float" in hint) and "Literal" not in hint and argument.parse and name not in seen:
                seen.add(name)
                yield pytest.param(argument, id=name.replace(" ", ""))


OPTIONS = list(numbers())


def accepted(argument: Any, value: str) -> bool:
    count = {"--mean": 3, "--std": 3, "--zoom": 2}.get(argument.name, 1)
    argument = copy(argument)  # one that has a value keeps it
    argument.tokens = [Token(keyword=argument.name, value=value, index=i) for i in range(count)]
    try:
        argument.convert_and_validate()
    except CycloptsError:
        return False
    return True


def test_there_are_options_of_every_command():
    assert len(OPTIONS) > 100
    names = {str(option.id).split("--")[0] for option in OPTIONS}
    assert names >= {"train", "data", "slides", "benchmark", "predict", "evaluate", "view", "prior", "quickstart"}


@pytest.mark.parametrize("argument", OPTIONS)
def test_a_number_out_of_range_is_refused_at_its_option(argument, request):
    name = request.node.callspec.id
    for value in NEVER:
        assert not accepted(argument, value), value
    if "int" in str(argument.hint):
        assert not accepted(argument, "1.5")
        assert not accepted(argument, "2.000001")
        assert accepted(argument, "64.0") or name.endswith(("--coarse", "--nodes"))
    assert accepted(argument, "0") == (
        argument.name in ZERO or name in ("train--workers", "train--stride", "benchmark--stride")
    )
    assert accepted(argument, "-1") == (argument.name in BELOW or name == "train--workers")


SECTIONS = [
    ("training", "epochs"), ("training", "lr"), ("training", "momentum"), ("training", "workers"), ("input", "crop"),
    ("input", "hue"), ("backbone", "stride"), ("options", "slope"), ("options", "modalities"), (None, "fold"),
]  # fmt: skip


@pytest.mark.parametrize(("section", "key"), SECTIONS)
@pytest.mark.parametrize("value", ["true", "false", ".nan", ".inf", "-.inf", "1e400", "-2", "[1]", "{a: 1}", "yes"])
def test_yaml_refuses_the_same(section, key, value):
    text = f"{key}: {value}" if section is None else f"{section}:\n  {key}: {value}"
    with pytest.raises(InputError, match=rf"run\.yaml.*{key} = .* is wrong|must be at most"):
        run_config({"method": "maxmin", "data": "t.csv", **yaml.safe_load(text)}, "run.yaml")


@pytest.mark.parametrize("value", ["1.5", "'1.5'", "'x'"])
def test_yaml_refuses_a_part_of_a_whole_number(value):
    with pytest.raises(InputError, match=r"training\.epochs = .* is wrong \(must be a"):
        run_config({"method": "gap", "data": "t.csv", "training": yaml.safe_load(f"epochs: {value}")}, "run.yaml")


@pytest.mark.parametrize("value", ["foo", "0", "-1", "1.5", "0x1", "a,b", "²", "99999", ""])
def test_devices_are_a_number_or_numbers(value):
    with pytest.raises(InputError, match=r"devices = .* is wrong .must be auto, a number from 1, or numbers of GPUs"):
        run_config({"method": "gap", "data": "t.csv", "training": {"devices": value}}, "run.yaml")
    assert run_config({"method": "gap", "data": "t.csv", "training": {"devices": "0,1"}}, "r").training.devices == "0,1"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: JobOptions(workers=0), "--workers 0 is wrong .must be at least 1"),
        (lambda: JobOptions(retries=True), "--retries True is wrong .must be a number"),
        (lambda: SlideOptions(min_area_mm2=-1), "--min-area -1 is wrong"),
        (lambda: PredictionOptions(threshold=float("nan")), "--threshold nan is wrong"),
        (lambda: histoloc.load("prior:glands").predict("x.png", threshold=2), "x.png|--threshold 2 is wrong"),
    ],
)
def test_python_refuses_the_same(make, says):
    with pytest.raises(InputError, match=says):
        make()


def test_texts_become_paths_and_lists_become_tuples():
    config = run_config({"method": "gap", "data": "t.csv"}, "x")
    changed = type(config)(method="gap", data="t.csv", teachers=["a", "b"])  # pyright: ignore[reportArgumentType]
    assert changed.data == Path("t.csv")
    assert changed.teachers == (Path("a"), Path("b"))


def test_every_method_takes_its_own_defaults():
    for name, method in METHODS.items():
        run_config({"method": name, "data": "t.csv", "options": vars(method.Options())}, "run.yaml")
