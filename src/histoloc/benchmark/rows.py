"""The rows of the paper's tables: which method with which options, and what was published."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Literal, NamedTuple

import yaml

Group = Literal["bound", "baseline", "ours"]
DATASETS = {"glas": "GlaS", "camelyon16": "Camelyon16-P512"}
KINDS = ("table1", "ablation", "methods")


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
        published: by data set (a key of DATASETS), on the test set.
        learns_from: nothing, labels or masks.
        note: what is particular about the row; a footnote of the table.
    """

    name: str
    title: str
    method: str
    group: Group = "baseline"
    options: Mapping[str, Any] = field(default_factory=dict)
    published: Mapping[str, PublishedRow] = field(default_factory=dict)
    note: str = ""
    learns_from: Literal["nothing", "labels", "masks"] = "labels"


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


TABLE1, ABLATION = (tuple(map(_row, shipped("benchmark/rows")[kind])) for kind in ("table1", "ablation"))


def rows_of(kind: str) -> tuple[Row, ...]:
    """The rows of a table: of Table 1, of the ablation, or every method that needs no other model, with its defaults.

    Args:
        kind: one of KINDS.
    """
    if kind != "methods":
        return {"table1": TABLE1, "ablation": ABLATION}[kind]
    from histoloc.methods import METHODS  # here, because it needs torch, and a report does not

    rows: list[Row] = []
    for name, method in METHODS.items():
        # Masks of drawn images are not those of a table, and a student needs other models.
        if method.supervision == {"synthetic"} or method.taught:
            continue
        learns: Any = "masks" if "pixel" in method.supervision else "labels" if method.supervision else "nothing"
        rows.append(Row(name, method.title, name, "baseline" if learns == "labels" else "bound", learns_from=learns))
    return tuple(rows)
