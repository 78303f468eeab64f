"""The rows of a benchmark's tables: which method with which options, from what it learns, and what was published."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Literal, NamedTuple

import yaml

Group = Literal["bound", "baseline", "ours"]
DATASETS = {"glas": "GlaS", "camelyon16": "Camelyon16-P512"}
KINDS = ("table1", "ablation", "methods", "maps")
TIERS = {
    "nothing": "Learns nothing",
    "labels": "Labels only",
    "cue": "Labels + cue",
    "prior": "+ synthetic prior (no human masks)",
    "masks": "+ masks",
}


class PublishedRow(NamedTuple):
    """Percentages on a test set; None where the paper has a dash."""

    cl_error: float | None
    f1_plus: float | None
    f1_minus: float | None


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        name: key of the row and name of its folder.
        title: what tables print.
        method: key of METHODS.
        group: bound (learns nothing, or from masks), baseline, or ours.
        options: of the method; its defaults where absent.
        input: instead of the preset's.
        training: instead of the preset's.
        prior: what the prior of the cell's seed is for: it is measured itself (alone), adapted to the training images
            (adapted), the training begins with it (begin), or has its network's stride, its input and augmentation
            (input).
        drawn: whether images of the prior's scene are seen beside the real ones.
        teachers: rows whose cells of the same fold and seed teach.
        published: by data set (a key of DATASETS), on the test set.
        learns_from: the strongest of what it learns from, a key of TIERS.
        reference: whether the other rows are compared with this one.
        note: what is particular about the row; a footnote of the table.
    """

    name: str
    title: str
    method: str
    group: Group = "baseline"
    options: Mapping[str, Any] = field(default_factory=dict)
    input: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    prior: Literal["", "alone", "adapted", "begin", "input"] = ""
    drawn: bool = False
    teachers: Sequence[str] = ()
    published: Mapping[str, PublishedRow] = field(default_factory=dict)
    learns_from: Literal["nothing", "labels", "cue", "prior", "masks"] = "labels"
    reference: bool = False
    note: str = ""


def shipped(name: str) -> dict[str, Any]:
    """A YAML file of the recipes."""
    return yaml.safe_load((resources.files("histoloc.recipes") / f"{name}.yaml").read_text(encoding="utf-8"))


def _row(values: Mapping[str, Any]) -> Row:
    values = {"method": values["name"], **values}
    published = {name: _published(values.pop(name)) for name in DATASETS if name in values}
    return Row(**values, published=published)


def _published(numbers: Any) -> PublishedRow:
    """Numbers, or those of the recipe of this name."""
    if isinstance(numbers, str):
        numbers = [shipped(numbers)["published"][name] for name in PublishedRow._fields]
    return PublishedRow(*numbers)


ROWS: dict[str, tuple[Row, ...]] = {kind: tuple(map(_row, rows)) for kind, rows in shipped("benchmark/rows").items()}


def rows_of(kind: str) -> tuple[Row, ...]:
    """The rows of a table; of `methods` every method that learns from a table alone, with its defaults.

    Args:
        kind: one of KINDS.
    """
    if kind != "methods":
        return ROWS[kind]
    from histoloc.methods import METHODS  # here, because it needs torch, and a report does not

    rows: list[Row] = []
    for name, method in METHODS.items():
        # Masks of drawn images are not those of a table, and a student needs other models.
        if method.supervision == {"synthetic"} or method.taught:
            continue
        learns: Any = "masks" if "pixel" in method.supervision else "labels" if method.supervision else "nothing"
        rows.append(Row(name, method.title, name, "baseline" if learns == "labels" else "bound", learns_from=learns))
    return tuple(rows)
