"""What is wrong with a table: one sentence each with the remedy, so that all of it is reported at once."""

import difflib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PureWindowsPath

import pandas as pd

from histoloc.data.images import check_image, check_mask
from histoloc.data.labels import EMPTY_WORDS, group_problems, label_problems, show
from histoloc.data.sample import OUTLINES, REGION, SPLITS, Sample
from histoloc.errors import InputError

LISTED_PROBLEMS = 20


def refuse(path: Path, problems: Iterable[str]) -> None:
    """Raise what is wrong with a file or folder, if anything is.

    Raises:
        InputError: lists the first 20 problems and how many more there are.
    """
    lines = list(problems)
    if len(lines) == 1:
        raise InputError(f"{path}: {lines[0]}")
    if lines:
        more = len(lines) - LISTED_PROBLEMS
        listed = [f"  {line}" for line in lines[:LISTED_PROBLEMS]] + [f"  ... and {more} more"] * (more > 0)
        raise InputError("\n".join([f"{path}: {len(lines)} problems:", *listed]))


def nearest(word: str, known: Sequence[str]) -> str:
    """A remedy for a word that is not known."""
    near = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.3)
    return f"did you mean '{near[0]}'?" if near else f"write one of {', '.join(known)}"


def empty_words(rows: pd.DataFrame) -> Iterator[str]:
    """Cells with 'nan' and the like, which are taken out of the rows; label and group are looked at elsewhere."""
    for column in ("mask", "split", "fold", *REGION):
        words = rows[column].isin(list(EMPTY_WORDS))
        for word, number in rows.loc[words, column].value_counts(sort=False).items():
            yield f"{column} '{word}' ({number} row(s)) is what programs write for an empty cell; leave it empty"
        rows.loc[words, column] = ""


def row_problems(rows: pd.DataFrame, numbers: pd.DataFrame) -> list[str]:
    """What is wrong with single rows, by line.

    Args:
        rows: the cells as written; the index is the line.
        numbers: of the same lines, the cells that are to hold numbers; None where they hold none.
    """
    filled = rows != ""
    wrong = filled[numbers.columns] & numbers.isna()
    region = filled[list(REGION)]
    no_mpp = "is no positive number; give micrometres per pixel or leave it empty"
    rules = {
        "the cell image holds a zero byte; write the path anew": rows["image"].str.contains("\0"),
        "the cell mask holds a zero byte; write the path anew": rows["mask"].str.contains("\0"),
        "the cell image is a path of a Windows drive; write it relative to the table": rows["image"].map(_of_windows),
        "the cell mask is a path of a Windows drive; write it relative to the table": rows["mask"].map(_of_windows),
        "the cell image is empty; name a file or delete the row": ~filled["image"],
        "the cell label is empty; name the class": ~filled["label"],
        "unknown split '{split}'; {nearest}": filled["split"] & ~rows["split"].isin(SPLITS),
        f"mpp '{{mpp}}' {no_mpp}": wrong["mpp"],
        f"slide_mpp '{{slide_mpp}}' {no_mpp}": wrong["slide_mpp"],
        "fold '{fold}' is no whole number from 0 up": wrong["fold"],
        "only rows of split train have a fold; leave the cell empty": filled["fold"] & (rows["split"] != "train"),
        "x, y, width and height come together; fill all four or none": region.any(axis=1) & ~region.all(axis=1),
        "x, y, width and height are whole numbers from 0 up": wrong[list(REGION)].any(axis=1),
        "width and height of a region are at least 1": numbers[["width", "height"]].eq(0).any(axis=1),
    }
    problems: list[tuple[int, str]] = []
    for problem, broken in rules.items():
        for line, row in zip(rows.index[broken], rows[broken].to_dict("records"), strict=True):
            cells = {str(column): show(str(cell)) for column, cell in row.items()}
            text = problem.format(**cells, nearest=nearest(str(row["split"]), SPLITS))
            problems.append((line, f"line {line} ({cells['image'] or 'no image'}): {text}"))
    return [problem for _, problem in sorted(problems, key=lambda pair: pair[0])]


def _of_windows(cell: str) -> bool:
    return os.name != "nt" and PureWindowsPath(cell).is_absolute()


def sample_problems(samples: Sequence[Sample], classes: Sequence[str] | None) -> Iterator[str]:
    """What is wrong with the samples together: names that nobody tells apart, repeated images, unknown classes.

    Args:
        samples: all of a table.
        classes: the known ones; None where the table defines them, of which split train, where it has rows, may lack
            none.
    """
    yield from label_problems(Counter(s.label for s in samples if s.label), known=classes or ())
    yield from group_problems(Counter(s.group for s in samples if s.group))
    names: dict[tuple[object, ...], str] = {}
    for s in samples:
        place = (s.image, s.x, s.y, s.width, s.height)
        if place in names:
            same = "" if names[place] == s.name else f", which is the same file as {names[place]}"
            yield f"{s.name}{same}: is listed twice; delete one of the rows"
        names.setdefault(place, s.name)
    counts = Counter(name for s in samples for name in set(s.labels) if name)
    trained = {name for s in samples if s.split == "train" for name in s.labels}
    if classes is None:
        for name in sorted(counts.keys() - trained) if trained else ():
            yield f"class '{show(name)}' has no samples in the split train; add some or leave the class out"
        return
    if len(set(classes)) < len(classes):
        yield f"a class is named twice in {', '.join(classes)}; name each once"
    for name in sorted(counts.keys() - set(classes)):
        yield f"unknown class '{show(name)}' in {counts[name]} row(s); {nearest(name, classes)}"


def fold_problems(fold: int, folds: Sequence[int], samples: Sequence[Sample]) -> Iterator[str]:
    """Why a fold cannot become the validation set."""
    if not folds:
        yield f"fold {fold} was asked for, but there is no fold in the table; leave the fold out"
    elif fold not in folds:
        yield f"there is no fold {fold}; the folds are {', '.join(map(str, folds))}"
    if folds and any(s.split == "valid" for s in samples):
        yield "there are rows of split valid besides the folds; leave the fold out, or empty the column fold"


def file_problems(sample: Sample) -> list[str]:
    """Look at the headers of image and mask; a region's slide is only looked for, its reader checks it."""
    problems: list[str] = []
    sizes: list[tuple[int, int]] = []
    region, mask = sample.x is not None, sample.mask
    outlines = region and mask is not None and mask.suffix.lower() in OUTLINES
    checks = (
        ("", sample.image, None if region else check_image),
        (f"mask of {sample.name}: ", mask, None if outlines else check_mask),
    )
    for what, path, check in checks:
        try:
            if path is None:
                continue
            if check is not None:
                sizes.append(check(path))
            elif not path.exists():
                problems.append(f"{what}{path}: there is no such file; correct the path")
        except InputError as error:
            problems.append(f"{what}{error}")
        except OSError as error:  # such as a name that is too long
            reason = f"image or mask cannot be looked at ({error.strerror}); correct the paths"
            problems.append(f"{sample.name[:100]}: {reason}")
    if len(sizes) == 2 and sizes[0] != sizes[1]:
        (width, height), (w, h) = sizes
        problems.append(
            f"{mask}: the mask is {w}x{h} px but its image {sample.name} is {width}x{height} px; "
            "give the mask of this image"
        )
    return problems
