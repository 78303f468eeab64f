"""A benchmark as a list of cells (row, fold, seed), each an ordinary run in a folder of its own, and its settings."""

import csv
import difflib
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from histoloc.benchmark.presets import PRESETS, Choices
from histoloc.benchmark.results import CELL_FILE, ERROR_FILE, FORMAT, SETTINGS_FILE, cell_name
from histoloc.benchmark.rows import Row, rows_of
from histoloc.config import RunConfig, method_class, plain, run_config
from histoloc.data.images import image_size
from histoloc.data.sample import Split
from histoloc.data.table import Table, read_table
from histoloc.doctor import machine
from histoloc.errors import InputError
from histoloc.nn.backbone import embedded_weights
from histoloc.work_folder import check_claim, check_inputs, inputs_of, read_json, write_json, write_text

REQUEST_FILE = "request.yaml"
LOOKED_AT = 32  # images whose size is looked at
# A folder holds one benchmark: these may not differ between calls. Rows, folds and seeds may be added.
FIXED = ("kind", "data", "preset", "split", "maps", "overrides", "range", "empty_class")
ADDED = ("folds", "seeds", "rows")


@dataclass(frozen=True)
class PlannedCell:
    """One training and its evaluation, to be done or done.

    Attributes:
        row: of the benchmark's table.
        fold: the validation split, or None where the table of images has its own.
        seed: of the training.
        folder: the run folder.
        config: of the run.
        split: what is measured.
        maps: of so many images maps are kept.
        inputs: what the benchmark keeps of its table, as `inputs_of`.
    """

    row: Row
    fold: int | None
    seed: int
    folder: Path
    config: RunConfig
    split: Split
    maps: int
    inputs: dict[str, Any]

    @property
    def label(self) -> str:
        """For people: `gap, fold 0, seed 1`."""
        return f"{self.row.name}, {'no fold' if self.fold is None else f'fold {self.fold}'}, seed {self.seed}"

    @property
    def epochs(self) -> int:
        """Epochs of all stages, if none is left out; 0 where nothing is learned."""
        method = method_class(self.config.method)
        if not method.supervision:
            return 0
        return self.config.training.epochs * method.stages_for(self.config.options)

    @property
    def request(self) -> dict[str, Any]:
        """All that the result depends on besides the table, as plain values."""
        # Only where it is named, so that cells of benchmarks without it stay finished.
        empty_class = self.config.empty_class
        return {
            "row": self.row.name,
            "fold": self.fold,
            "seed": self.seed,
            "split": self.split,
            "maps": self.maps,
            **({} if empty_class is None else {"empty_class": empty_class}),
            "run": plain(self.config),
        }

    @property
    def finished(self) -> bool:
        """Whether this very request has its result."""
        try:
            request = yaml.safe_load((self.folder / REQUEST_FILE).read_text(encoding="utf-8"))
            return (self.folder / CELL_FILE).is_file() and {**request, "inputs": 0} == {**self.request, "inputs": 0}
        except (OSError, ValueError, TypeError, yaml.YAMLError):
            return False  # no request, so the cell is done again

    def prepare(self) -> None:
        """Write the request for the process that will do it; what an earlier try said is taken away."""
        for name in (CELL_FILE, ERROR_FILE):
            (self.folder / name).unlink(missing_ok=True)
        # The table may change before it is the cell's turn.
        text = yaml.safe_dump({**self.request, "inputs": self.inputs}, sort_keys=False, allow_unicode=True)
        write_text(self.folder / REQUEST_FILE, text)


def plan(kind: str, choices: Choices) -> tuple[list[PlannedCell], list[str]]:
    """The cells of a benchmark in the order in which they are to be done, and what the user should know of them.

    Rows that learn nothing come first; then the order of the table, folds, seeds.

    Args:
        kind: one of KINDS.
        choices: what is asked for.

    Raises:
        InputError: anything that would make a cell fail before it began.
    """
    if choices.maps < 0:
        raise InputError(f"--maps {choices.maps} must be at least 0; correct it")
    rows = choose_rows(kind, choices.rows)
    table = read_table(choices.data)
    table.check_classes()
    _check(kind, choices, table)
    folds = choose_folds(choices.folds, table)
    seeds = [seed for seed in parse_numbers(choices.seeds, "--seeds") if seed is not None]
    if not seeds:
        raise InputError("--seeds none: training needs a seed; give 0, or several such as 0-2")
    best: Split = "test" if any(sample.split == "test" for sample in table.samples) else "valid"
    split: Split = best if choices.split == "auto" else choices.split
    inputs = inputs_of(table)
    cells = [
        PlannedCell(row, fold, seed, folder, config, split, choices.maps, inputs)
        for row in rows
        for fold in folds
        for seed in seeds
        for folder in [choices.out / "cells" / row.name / cell_name(fold, seed)]
        for config in [cell_config(row, fold, seed, choices)]
    ]
    _check_table(cells, folds, choices)
    return sorted(cells, key=lambda cell: cell.epochs > 0), _notes(choices, table, split)


def cell_config(row: Row, fold: int | None, seed: int, choices: Choices) -> RunConfig:
    """The configuration of one cell's run, from nothing but preset, what the method needs instead, row and overrides.

    An empty class reaches the methods that have the option.

    Raises:
        InputError: an option of the row or an override has a wrong value.
    """
    preset, method = PRESETS[choices.preset], method_class(row.method)
    backbone = choices.overrides
    epochs = {"epochs": backbone.pop("epochs")} if "epochs" in backbone else {}
    own = {"lr": min(preset["training"]["lr"], method.highest_lr)}
    values: dict[str, Any] = {
        "method": row.method,
        "data": choices.data.as_posix(),
        "fold": fold,
        "empty_class": choices.empty_class,
        "options": {**(method.with_empty_class if choices.empty_class is not None else {}), **row.options},
        "input": dict(preset["input"]),
        # One device for each cell: cells run side by side, not their batches.
        "training": {**preset["training"], **own, **epochs, "seed": seed, "devices": "1", "range": choices.range},
        **({"backbone": backbone} if backbone else {}),
    }
    return run_config(values, where=f"row {row.name}")


def parse_numbers(text: str, flag: str) -> tuple[int | None, ...]:
    """`0-2,5` -> (0, 1, 2, 5); `none` -> (None,). Sorted, each number once.

    Raises:
        InputError: anything else.
    """
    if text.strip().lower() == "none":
        return (None,)
    numbers: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part.strip(), re.ASCII)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first or last - first > 9999:
            raise InputError(f"{flag} {text}: cannot be understood at {part.strip()!r}; write 0-4, or 0,2, or none")
        numbers |= set(range(first, last + 1))
    return tuple(sorted(numbers))


def choose_folds(text: str | None, table: Table) -> tuple[int | None, ...]:
    """The folds that are asked for; by default all of the table, or none where it has none.

    Raises:
        InputError: the table lacks one of them.
    """
    if text is None:
        return table.folds or (None,)
    folds = parse_numbers(text, "--folds")
    for fold in folds:
        if fold is not None and fold not in table.folds:
            has = f"the folds {', '.join(map(str, table.folds))}" if table.folds else "no folds"
            raise InputError(f"--folds {text}: {table.path} has {has}; choose among them, or --folds none")
    return folds


def choose_rows(kind: str, text: str | None) -> tuple[Row, ...]:
    """The rows that are asked for, in the order of the table; by default all.

    Raises:
        InputError: there is no such row; the nearest one is named.
    """
    known = [row.name for row in rows_of(kind)]
    chosen = known if text is None else [name.strip() for name in text.split(",")]
    for name in chosen:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise InputError(f"--rows {text}: {kind} has no row {name!r}{hint}; its rows are {', '.join(known)}")
    return tuple(row for row in rows_of(kind) if row.name in chosen)


def epochs_logged(folder: Path) -> tuple[int, float]:
    """How many epochs a run has finished, and how many seconds they took together, over all resumptions."""
    log = folder / "log.csv"
    if not log.is_file():
        return 0, 0.0
    with log.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return len(rows), sum(float(row[name]) for row in rows for name in ("seconds", "valid_seconds"))


def _check_table(cells: Sequence[PlannedCell], folds: Sequence[int | None], choices: Choices) -> None:
    """Make sure that every fold has the splits and masks that its cells need."""
    methods = {cell.row.name: method_class(cell.config.method) for cell in cells}
    splits = {"valid", cells[0].split} | ({"train"} if any(m.supervision for m in methods.values()) else set())
    others = [name for name, method in methods.items() if "pixel" not in method.supervision]
    for fold in folds:
        table = read_table(choices.data, fold=fold, check_files=False)
        for split in splits:
            table.split(split)
        with_roi = [sample for sample in table.split("train") if sample.labels != (choices.empty_class,)]
        if len(others) < len(methods) and not table.has_masks(with_roi):
            remedy = f"leave them out by --rows {','.join(others)}" if others else "choose other --rows"
            raise InputError(
                f"{choices.data}: {', '.join(n for n in methods if n not in others)} learns from masks, and training "
                "rows have none; fill the column mask, name the class whose images have no ROI by --empty-class, or "
                f"{remedy}"
            )


def _check(kind: str, choices: Choices, table: Table) -> None:
    empty_class, named, weights = choices.empty_class, choices.published, choices.weights
    if empty_class is not None and empty_class not in table.classes:
        classes = list(table.classes)
        raise InputError(f"--empty-class {empty_class!r} is not a class of {choices.data}; choose one of {classes}")
    if named not in (None, "none") and not any(named in row.published for row in rows_of(kind)):
        raise InputError(f"--published {named}: no numbers were published on it for the rows of {kind}; leave it out")
    if choices.backbone is not None and weights in (None, "embedded"):
        embedded_weights(choices.backbone)
    if weights not in (None, "embedded", "hub", "none") and not Path(str(weights)).is_file():
        raise InputError(f"--weights {weights}: there is no such file; give embedded, hub, none or a file")


def image_sides(table: Table) -> tuple[int, int]:
    """Least and greatest side in pixels of the first images."""
    samples = table.samples[:LOOKED_AT]
    sizes = [(s.width, s.height) if s.width and s.height else image_size(s.image) for s in samples]
    return min(map(min, sizes)), max(map(max, sizes))


def _notes(choices: Choices, table: Table, split: str) -> list[str]:
    notes = [*table.notes, *([f"split {split} is measured"] if choices.split == "auto" else [])]
    small_side, smallest = PRESETS[choices.preset]["input"]["small_side"], image_sides(table)[0]
    if smallest < small_side:
        preset = f"the {small_side} px of preset {choices.preset} (here {smallest} px)"
        notes.append(f"images with a shorter side below {preset} are scaled up")
    return notes


def claim(kind: str, choices: Choices, cells: Sequence[PlannedCell]) -> None:
    """Write `benchmark.json`, merged with that of earlier calls.

    Raises:
        InputError: the folder holds a benchmark of other settings or of another table, or something else.
    """
    path = choices.out / SETTINGS_FILE
    now: dict[str, Any] = {
        "kind": kind,
        "data": choices.data.as_posix(),
        "preset": choices.preset,
        "folds": [cell.fold for cell in cells],
        "seeds": [cell.seed for cell in cells],
        "rows": [cell.row.name for cell in cells],
        "split": cells[0].split,
        "maps": choices.maps,
        "range": choices.range,
        "empty_class": choices.empty_class,
        "published": choices.published,
        "inputs": cells[0].inputs,
        "overrides": choices.overrides,
        "image_sides": list(image_sides(read_table(choices.data, check_files=False))),
        "machine": machine(),
        "format": FORMAT,
        "command": "",
    }
    earlier = read_json(path)
    if earlier is not None:
        if not all(isinstance(earlier.get(name), list) for name in ADDED):
            raise InputError(f"{path}: does not list the folds, seeds and rows of a benchmark; choose another --out")
        check_claim(choices.out, {name: earlier.get(name) for name in FIXED}, {name: now[name] for name in FIXED})
        if any(choices.out.glob("cells/*/*/model")):  # where nothing was made, the table may have been mended
            check_inputs(choices.out, earlier.get("inputs"), now["inputs"])
        now["published"] = choices.published or earlier.get("published")  # only what the tables show
        now |= {name: [*earlier[name], *now[name]] for name in ADDED}
    for name in ("folds", "seeds"):
        now[name] = sorted(set(now[name]), key=lambda number: -1 if number is None else number)
    now["rows"] = [row.name for row in rows_of(kind) if row.name in now["rows"]]
    write_json(path, now | {"command": command(now, choices.out)})


def command(settings: dict[str, Any], out: Path) -> str:
    """The command line that makes all that a benchmark's folder holds, or will hold: figures stand beside it."""
    folds = ",".join("none" if fold is None else str(fold) for fold in settings["folds"])
    flags = {"data": settings["data"], "folds": folds, "seeds": ",".join(map(str, settings["seeds"]))}
    if settings["rows"] != [row.name for row in rows_of(settings["kind"])]:
        flags["rows"] = ",".join(settings["rows"])
    named = ("preset", "split", "maps", "range", "empty_class", "published")
    flags |= {name.replace("_", "-"): settings[name] for name in named if settings[name] is not None}
    flags |= settings["overrides"] | {"out": out.as_posix()}
    return shlex.join(["histoloc", "benchmark", settings["kind"], *(f"--{k}={v}" for k, v in flags.items())])
