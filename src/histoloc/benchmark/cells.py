"""A benchmark as a list of cells (row, fold, seed), each an ordinary run in a folder of its own."""

import csv
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from histoloc.benchmark.presets import PRESETS, Choices, MapChoices, parse_numbers
from histoloc.benchmark.priors import SeedPrior, drawn_of, prior_values, seed_prior
from histoloc.benchmark.results import CELL_FILE, ERROR_FILE, cell_name
from histoloc.benchmark.rows import Row, rows_of
from histoloc.config import RunConfig, method_class, plain, run_config, without_places
from histoloc.data.images import image_size
from histoloc.data.sample import Split
from histoloc.data.table import Table, read_table
from histoloc.errors import InputError
from histoloc.nn.backbone import embedded_weights
from histoloc.work_folder import inputs_of, write_text

REQUEST_FILE = "request.yaml"
LOOKED_AT = 32  # images whose size is looked at


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
        stage: cells that teach others are of an earlier one.
        prior: checksum of the prior's weights, where there is one.
    """

    row: Row
    fold: int | None
    seed: int
    folder: Path
    config: RunConfig
    split: Split
    maps: int
    inputs: dict[str, Any]
    stage: int = 0
    prior: str | None = None

    @property
    def run(self) -> Path:
        """The folder of the training."""
        return self.folder / "run" if self.row.prior == "adapted" else self.folder

    @property
    def model(self) -> Path:
        """What is measured."""
        return Path(str(self.config.prior)) if self.row.prior == "alone" else self.folder

    @property
    def label(self) -> str:
        """For people: `gap, fold 0, seed 1`."""
        return f"{self.row.name}, {'no fold' if self.fold is None else f'fold {self.fold}'}, seed {self.seed}"

    @property
    def epochs(self) -> int:
        """Epochs of all stages, if none is left out; 0 where nothing is learned."""
        method = method_class(self.config.method)
        if not method.supervision or self.row.prior == "alone":
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
            **({} if self.prior is None else {"prior": self.prior}),
            "run": plain(self.config),
        }

    @property
    def finished(self) -> bool:
        """Whether this very request has its result."""
        try:
            request = yaml.safe_load((self.folder / REQUEST_FILE).read_text(encoding="utf-8"))
            return (self.folder / CELL_FILE).is_file() and portable(request) == portable(self.request)
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
    rows = with_teachers(choose_rows(kind, choices.rows), rows_of(kind))
    table = read_table(choices.data, columns=choices.columns)
    table.check_classes()
    _check(kind, choices, table)
    folds = choose_folds(choices.folds, table)
    seeds = [seed for seed in parse_numbers(choices.seeds, "--seeds") if seed is not None]
    if not seeds:
        raise InputError("--seeds none: training needs a seed; give 0, or several such as 0-2")
    best: Split = "test" if any(sample.split == "test" for sample in table.samples) else "valid"
    split: Split = best if choices.split == "auto" else choices.split
    inputs = inputs_of(table)
    priors: dict[int, SeedPrior] = {}
    if isinstance(choices, MapChoices) and any(row.prior for row in rows):
        priors = {seed: seed_prior(choices.prior_of(seed), table) for seed in seeds}
    cells = [
        PlannedCell(row, fold, seed, folder, config, split, choices.maps, inputs, stages(rows)[row.name], prior)
        for row in rows
        for fold in folds
        for seed in seeds
        for folder in [choices.out / "cells" / row.name / cell_name(fold, seed)]
        for config in [cell_config(row, fold, seed, choices, priors.get(seed))]
        for prior in [priors[seed].config.weights_sha256 if row.prior else None]
    ]
    _check_table(cells, folds, choices)
    return sorted(cells, key=lambda cell: (cell.stage, cell.epochs > 0)), _notes(choices, table, split)


def portable(request: dict[str, Any]) -> dict[str, Any]:
    """A request without the places of files: what they hold is compared in other ways."""
    return {**request, "inputs": 0, "run": without_places(request.get("run") or {})}


def with_teachers(rows: Sequence[Row], known: Sequence[Row]) -> tuple[Row, ...]:
    """The rows and those that teach them, in the order of the table."""
    names = {row.name for row in rows}
    while more := {name for row in known if row.name in names for name in row.teachers} - names:
        names |= more
    return tuple(row for row in known if row.name in names)


def stages(rows: Sequence[Row]) -> dict[str, int]:
    """When a row's turn is: after those that teach it."""
    by_name = {row.name: row for row in rows}

    def stage(row: Row) -> int:
        return 1 + max((stage(by_name[name]) for name in row.teachers), default=-1)

    return {row.name: stage(row) for row in rows}


def cell_config(row: Row, fold: int | None, seed: int, choices: Choices, prior: SeedPrior | None = None) -> RunConfig:
    """The configuration of one cell's run, from nothing but preset, what the method needs instead, row and overrides.

    An empty class reaches the methods that have the option.

    Raises:
        InputError: an option of the row or an override has a wrong value.
    """
    preset, method = PRESETS[choices.preset], method_class(row.method)
    backbone = choices.overrides
    epochs = {"epochs": backbone.pop("epochs")} if "epochs" in backbone else {}
    own = {"lr": min(preset["training"]["lr"], method.highest_lr), **method.default_training, **row.training}
    of_prior = prior_values(row, prior) if row.prior and prior is not None else {}
    needed = method.with_empty_class if choices.empty_class is not None else {}
    values: dict[str, Any] = {
        **of_prior,
        "method": row.method,
        "data": choices.data.as_posix(),
        "columns": choices.columns,
        "fold": fold,
        "empty_class": choices.empty_class,
        "options": {**of_prior.get("options", {}), **needed, **row.options},
        # One device for each cell: cells run side by side, not their batches.
        "training": {**preset["training"], **own, **epochs, "seed": seed, "devices": "1", "range": choices.range},
        "input": {**of_prior.get("input", preset["input"]), **row.input},
        **({"drawn": drawn_of(choices, seed)} if row.drawn else {}),
    }
    if backbone or "backbone" in of_prior:
        values["backbone"] = {**backbone, **of_prior.get("backbone", {})}
    if row.teachers:
        folders = {name: choices.out / "cells" / name / cell_name(fold, seed) for name in row.teachers}
        itself = {} if prior is None else {"prior": prior.path}  # that row is measured and has no model of its own
        values["teachers"] = [str({**folders, **itself}[name]) for name in row.teachers]
    return run_config(values, where=f"row {row.name}")


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
        table = read_table(choices.data, fold=fold, columns=choices.columns, check_files=False)
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
