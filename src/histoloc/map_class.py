"""Whose map: the class that is named, or whose a map is."""

from collections.abc import Sequence
from pathlib import Path

from histoloc.errors import InputError
from histoloc.model_folder import read_model_config


def map_class_of(classes: Sequence[str], label: int, maps: int, empty: int | None) -> str | None:
    """The class whose map is made for the class `label`; None where it is one map for all, or for several classes."""
    others = [name for index, name in enumerate(classes) if index != empty]
    if empty is not None and len(others) == 1:
        return others[0]
    return None if maps == 1 or label == empty else classes[label]


def named_class(name: str, classes: Sequence[str], maps: int, empty: int | None) -> int:
    """Index of the class that `--class` names.

    Raises:
        InputError: there is no such class, it has no ROI, or the method has one map for all classes.
    """
    if name not in classes:
        raise InputError(f"--class {name!r} is not a class of the model; choose one of {list(classes)}")
    index = list(classes).index(name)
    if index == empty:
        raise InputError(f"--class {name}: images of this class have no ROI, and so it has no map; choose another one")
    if maps == 1 and map_class_of(classes, index, maps, empty) != name:
        raise InputError(f"--class {name}: this method has one map for all classes; leave --class out")
    return index


def classes_of(folder: Path, empty_class: str | None = None) -> list[str]:
    """Names of a model's classes that have ROI.

    Raises:
        InputError: as `load`.
    """
    config = read_model_config(folder)
    return [name for name in config.classes if name not in (config.empty_class, empty_class)]
