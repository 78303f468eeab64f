"""What every row of a benchmark is trained with, to the last value."""

import dataclasses
from pathlib import Path

import pytest

from histoloc.benchmark.cells import cell_config
from histoloc.benchmark.presets import Choices
from histoloc.benchmark.rows import KINDS, Row, rows_of
from histoloc.config import RunConfig, TrainingConfig
from histoloc.data.transforms import InputConfig
from histoloc.methods import METHODS

PAPER = {"epochs": 80, "batch": 4, "lr": 1e-3, "selection": "error-latest"}
FAST = {"epochs": 20, "batch": 4, "lr": 1e-2, "selection": "error-latest"}
SIDES = {"paper": (432, 416), "fast": (216, 208)}
ROWS = [row for kind in KINDS for row in rows_of(kind) if not (row.prior or row.teachers)]


@pytest.mark.parametrize(("preset", "training"), [("paper", PAPER), ("fast", FAST)])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_cell_is_exactly_preset_and_row(row: Row, preset, training):
    method = METHODS[row.method]
    result = cell_config(row, 3, 7, Choices(Path("a/glas.csv"), Path("bench"), preset=preset))
    small_side, crop = SIDES[preset]
    training = {**training, "lr": min(training["lr"], method.highest_lr), **method.default_training, **row.training}
    assert result == RunConfig(
        row.method,
        Path("a/glas.csv"),
        3,
        dataclasses.replace(method.Options(), **row.options),
        method.default_backbone,
        InputConfig(small_side=small_side, crop=crop),
        TrainingConfig(seed=7, devices="1", **training),
        recipe=None,
        published=None,
    )
    assert result.training.accelerator == "auto"


def test_overrides_replace_what_they_name_and_nothing_else():
    row = next(row for row in ROWS if row.method == "gap")
    chosen = Choices(Path("t.csv"), Path("bench"), epochs=3, backbone="resnet18", stride=0, weights="none")
    assert chosen.overrides == {"epochs": 3, "backbone": "resnet18", "stride": 0, "weights": "none"}
    plain, result = (cell_config(row, None, 0, c) for c in (Choices(Path("t.csv"), Path("bench")), chosen))
    assert result.backbone == dataclasses.replace(plain.backbone, backbone="resnet18", stride=0, weights="none")
    assert result.training == dataclasses.replace(plain.training, epochs=3)
    assert dataclasses.replace(result, backbone=plain.backbone, training=plain.training, input=plain.input) == plain
    assert result.input == dataclasses.replace(plain.input, mean=result.input.mean, std=result.input.std)
    assert dataclasses.replace(chosen, epochs=None, backbone=None, stride=None, weights=None).overrides == {}
