"""The user's list of slides: reading it, and putting whole groups of slides into splits."""

from __future__ import annotations

import string
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from histoloc.data.labels import group_problems, label_problems
from histoloc.data.table import SPLITS
from histoloc.datasets.patches import random_for
from histoloc.errors import InputError

_LISTED_PROBLEMS = 20


@dataclass(frozen=True)
class OwnSlide:
    """One row of the user's table of slides.

    Attributes:
        name: the cell as written; unique in the table.
        path: of the slide, absolute.
        label: name of the class.
        annotation: absolute path of the outlines of its ROI (ASAP XML, GeoJSON), or None.
        group: what must not be on two sides of a split; by default the slide itself.
        mpp: micrometres per pixel of level 0, which overrule the file, or None.
    """

    name: str
    path: Path
    label: str
    annotation: Path | None
    group: str
    mpp: float | None


def read_slides(table: Path) -> list[OwnSlide]:
    """Read a table of slides: columns slide, label and, optionally, annotation, group, mpp; others are ignored.

    Raises:
        InputError: names the first 20 problems: missing columns or files, empty cells, slides listed twice.
    """
    table = Path(table)
    if not table.is_file():
        raise InputError(f"{table}: there is no such table; write a CSV with the columns slide and label")
    try:
        rows = pd.read_csv(table, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{table}: is no readable CSV ({str(error).strip()}); save it as UTF-8 CSV") from error
    rows.columns = rows.columns.str.strip()
    if lacking := [column for column in ("slide", "label") if column not in rows.columns]:
        raise InputError(
            f"{table}: missing columns: {', '.join(lacking)}; the header has {', '.join(rows.columns)}, "
            f"it needs slide and label, separated by commas"
        )
    slides: list[OwnSlide] = []
    problems: list[str] = []
    seen: dict[Path, int] = {}
    for line, row in enumerate(rows.to_dict("records"), start=2):
        cells = {str(name): str(cell).strip(string.whitespace) for name, cell in row.items()}
        slide = _own_slide(table.absolute().parent, cells)
        found = _problems(slide, cells)
        first = seen.setdefault(slide.path.resolve(), line)
        if first != line and not found:
            found.append(f"is the same slide as line {first}; delete one of the rows")
        problems += [f"line {line} ({slide.name or 'no slide'}): {problem}" for problem in found]
        slides.append(slide)
    problems += label_problems(Counter(slide.label for slide in slides if slide.label))
    problems += group_problems(Counter(slide.group for slide in slides if slide.group != slide.name))
    if problems:
        more = len(problems) - _LISTED_PROBLEMS
        said = "; ".join(problems[:_LISTED_PROBLEMS]) + (f"; and {more} more" if more > 0 else "")
        raise InputError(f"{table}: {said}")
    if not slides:
        raise InputError(f"{table}: the table is empty; list one slide per row")
    return slides


def _own_slide(folder: Path, cells: Mapping[str, str]) -> OwnSlide:
    annotation = cells.get("annotation", "")
    name = Path(cells["slide"]).as_posix() if cells["slide"] else ""
    return OwnSlide(
        name=name,
        path=folder / cells["slide"],
        label=cells["label"],
        annotation=folder / annotation if annotation else None,
        group=cells.get("group", "") or name,
        mpp=_positive(cells.get("mpp", "")),
    )


def _positive(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if 0 < value < float("inf") else None


def _problems(slide: OwnSlide, cells: Mapping[str, str]) -> list[str]:
    problems = []
    if not slide.name:
        problems.append("the cell slide is empty; name a file or delete the row")
    elif not slide.path.is_file():
        problems.append("there is no such file; correct the path")
    if not slide.label:
        problems.append("the cell label is empty; name the class")
    if slide.annotation is not None and not slide.annotation.is_file():
        problems.append(f"there is no annotation {cells['annotation']}; correct the path or empty the cell")
    if cells.get("mpp") and slide.mpp is None:
        problems.append(f"mpp '{cells['mpp']}' is no positive number; give micrometres per pixel or leave it empty")
    return problems


def class_without_roi(table: Path, slides: Sequence[OwnSlide], given: str | None = None) -> str | None:
    """The class of tiles without ROI: the one given, or that of the slides without annotation.

    Returns:
        The class; None where nothing is annotated.

    Raises:
        InputError: none is given, and the slides without annotation have no class or several; or it is a class that
            slides are annotated for.
    """
    annotated = {slide.label for slide in slides if slide.annotation is not None}
    plain = sorted({slide.label for slide in slides if slide.annotation is None})
    if not annotated:
        return None
    if given is not None:
        if given in annotated:
            raise InputError(f"--empty-class {given}: {table} has annotated slides of it; name a class without ROI")
        return given
    if len(plain) != 1:
        raise InputError(
            f"{table}: tiles without ROI get the class of the slides without annotation, which must be exactly one, "
            f"not {', '.join(plain) or 'none'}; name it by --empty-class, or take all annotations out"
        )
    if plain[0] in annotated:
        raise InputError(
            f"{table}: the class {plain[0]} has slides with and without annotation, so the class of tiles without ROI "
            f"is not clear; annotate all of them, and list slides of a class without ROI"
        )
    return plain[0]


def labels_by_group(slides: Sequence[OwnSlide]) -> dict[str, set[str]]:
    """The labels of the slides of each group."""
    labels: dict[str, set[str]] = defaultdict(set)
    for slide in slides:
        labels[slide.group].add(slide.label)
    return labels


def split_groups(
    groups: Mapping[str, set[str]], *, valid: float = 0.2, test: float = 0.2, seed: int = 0
) -> dict[str, str]:
    """Put whole groups into train, valid and test, so that the shares hold within every label.

    The labels come one after the other, that of the fewest groups first. Groups of several labels count for each.
    Every label gets at least one group in each set whose share is not 0.

    Args:
        groups: the labels of each group; their order does not matter.
        valid: share of the groups of each label, in [0, 1), rounded.
        test: likewise; together below 1.
        seed: whole number from 0 up.

    Returns:
        The split of each group.

    Raises:
        InputError: the shares leave nothing to train on, or a label has too few groups.
    """
    shares = {"test": test, "valid": valid}
    if not (0 <= test < 1 and 0 <= valid < 1 and test + valid < 1):
        raise InputError(f"shares test {test:g} and valid {valid:g}: give shares from 0 up, together below 1")
    sides = [split for split in SPLITS if split == "train" or shares[split]]
    members: dict[str, list[str]] = defaultdict(list)
    for group in sorted(groups):
        for label in groups[group]:
            members[label].append(group)
    splits: dict[str, str] = {}
    for label in sorted(members, key=lambda label: (len(members[label]), label)):
        mine = members[label]
        left = [group for group in mine if group not in splits]
        order = [left[index] for index in random_for(seed, "split", label).permutation(len(left))]
        for split in sides:
            if order and all(splits.get(group) != split for group in mine):
                splits[order.pop()] = split
        for split, wanted in shares.items():
            lacking = round(wanted * len(mine)) - sum(splits.get(group) == split for group in mine)
            for _ in range(min(lacking, len(order))):
                splits[order.pop()] = split
        splits |= dict.fromkeys(order, "train")
    for label, mine in members.items():
        if not set(sides) <= {splits[group] for group in mine}:
            raise InputError(
                f"the class {label} has too few groups ({len(mine)}) to be cut into {', '.join(sides)}; "
                f"add slides of other groups or set a share to 0"
            )
    return splits
