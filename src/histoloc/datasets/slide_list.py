"""Slides of a data set: the user's list of them, and whole groups of slides put into splits."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from histoloc.data.csv_cells import number_in, places_in, read_cells
from histoloc.data.labels import group_problems, label_problems, show
from histoloc.data.sample import parts
from histoloc.data.table_problems import refuse
from histoloc.errors import InputError
from histoloc.slides.dicom import series_of


@dataclass(frozen=True)
class ListedSlide:
    """One slide of a data set.

    Attributes:
        name: what it is called; unique.
        path: absolute.
        label: name of the class.
        annotations: absolute path of the outlines of its ROI (ASAP XML, GeoJSON), or None.
        mpp: micrometres per pixel of level 0, where the slide does not say it, or None.
        group: what must not be on two sides of a split.
        part: the set that the data set itself puts it into; empty where it leaves that open.
        roi_class: the classes of outlines that are ROI; none for the defaults of `read_annotations`.
        hole_class: further classes that are cut out of it.
    """

    name: str
    path: Path
    label: str
    annotations: Path | None = None
    mpp: float | None = None
    group: str = ""
    part: str = ""
    roi_class: tuple[str, ...] = ()
    hole_class: tuple[str, ...] = ()

    def item(self, **more: Any) -> dict[str, Any]:
        """What a task has to know of it, fit for JSON; a file that was exchanged makes it another item."""
        files = [file for file in (self.path, self.annotations) if file is not None]
        try:
            state = [[file.stat().st_size, file.stat().st_mtime_ns] for file in files]
        except OSError as error:
            state = [str(error)]  # the task opens the files and tells it as the slide's own failure
        slide, *annotations = map(str, files)
        return {
            "slide": slide,
            "annotations": next(iter(annotations), None),
            "slide_mpp": self.mpp,
            "files": state,
        } | more


def read_slides(table: Path, columns: str = "") -> list[ListedSlide]:
    """Read a table of slides: columns slide, label and, optionally, those below; others are ignored.

    annotation; group (a slide without one is a group of its own); mpp; roi_class and hole_class (several are `a|b`).

    Args:
        table: the CSV file, see `read_cells`.
        columns: what the file calls its columns, where not so.

    Raises:
        InputError: names the first 20 problems: missing columns or files, empty cells, slides listed twice.
    """
    table = Path(table)
    rows = read_cells(table, ("slide", "label"), ("annotation", "group", "mpp", "roi_class", "hole_class"), columns)
    place = places_in(table.parent)
    slides: list[ListedSlide] = []
    problems: list[str] = []
    first: dict[object, int] = {}
    for line, slide, label, annotation, group, mpp, roi, holes in rows.itertuples(name=None):
        name, scale = Path(slide).as_posix() if slide else "", number_in(mpp)
        if "\0" in slide + annotation:
            problems.append(f"line {line} ({show(name)}): a cell holds a zero byte; write the path anew")
            continue
        path, outlines = place(slide), place(annotation) if annotation else None
        classes = (tuple(filter(None, parts(cell))) for cell in (roi, holes))
        slides.append(ListedSlide(name, path, label, outlines, scale, group or name, "", *classes))
        same = path if _is_absent(path) else series_of(path) or path
        rules = {
            "the cell slide is empty; name a file or delete the row": not slide,
            "there is no such file; correct the path": slide and _is_absent(path),
            "the cell label is empty; name the class": not label,
            f"there is no annotation {annotation}; correct the path or empty the cell": outlines
            and _is_absent(outlines),
            f"mpp '{mpp}' is no positive number; give micrometres per pixel or leave it empty": mpp and scale is None,
            f"is the same slide as line {first.get(same)}; delete one of the rows": same in first,
        }
        first.setdefault(same, line)
        problems += [f"line {line} ({name or 'no slide'}): {problem}" for problem, broken in rules.items() if broken]
    problems += label_problems(Counter(slide.label for slide in slides if slide.label))
    problems += group_problems(Counter(slide.group for slide in slides if slide.group != slide.name))
    refuse(table, problems)
    return slides


def _is_absent(path: Path) -> bool:
    try:
        return not path.exists()
    except OSError:  # a name that is too long
        return True


def class_without_roi(table: Path, slides: Sequence[ListedSlide], name: str | None = None) -> str | None:
    """The class of tiles without ROI: `name`, or that of the slides without annotation.

    Returns:
        The class; None where nothing is annotated.

    Raises:
        InputError: none is given, and the slides without annotation have no class or several; or it is a class that
            slides are annotated for.
    """
    annotated = {slide.label for slide in slides if slide.annotations is not None}
    plain = sorted({slide.label for slide in slides if slide.annotations is None})
    if not annotated:
        return None
    if name is not None:
        if name in annotated:
            raise InputError(f"--empty-class {name}: {table} has annotated slides of it; name a class without ROI")
        return name
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
