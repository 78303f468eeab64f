"""Which cells a call asks for, where they lie, when they count as finished, and what is refused before any of them."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from histoloc.benchmark.cell import run_cell
from histoloc.benchmark.cells import PlannedCell, choose_folds, choose_rows, epochs_logged, parse_numbers, plan
from histoloc.benchmark.presets import Choices
from histoloc.benchmark.rows import ROWS
from histoloc.benchmark.run import benchmark
from histoloc.benchmark.settings import claim
from histoloc.config import run_config
from histoloc.data.table import Table, read_table
from histoloc.errors import InputError
from histoloc.work_folder import inputs_of


@pytest.fixture(scope="module")
def choices(tiny_table, tmp_path_factory) -> Choices:
    return Choices(tiny_table, tmp_path_factory.mktemp("cells") / "bench", rows="gap,allones", preset="fast")


def make_table(folder: Path, tiny_table: Path, change) -> Path:
    """A copy of the tiny table with other cells; its paths are absolute."""
    rows = pd.read_csv(tiny_table, dtype=str, keep_default_na=False)
    for column in ("image", "mask"):
        rows[column] = [str((tiny_table.parent / cell).resolve()) for cell in rows[column]]
    change(rows).to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"


# --- numbers ---


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0-4", (0, 1, 2, 3, 4)), ("0,2", (0, 2)), ("none", (None,)), ("2,0-1, 2", (0, 1, 2)), ("7", (7,)), ("3-3", (3,))],
)
def test_numbers(text, numbers):
    assert parse_numbers(text, "--folds") == numbers


@given(st.sets(st.integers(0, 500), min_size=1))
def test_numbers_written_one_by_one_or_as_ranges_are_the_same(numbers):
    assert parse_numbers(",".join(map(str, numbers)), "--seeds") == tuple(sorted(numbers))
    lowest, highest = min(numbers), max(numbers)
    assert parse_numbers(f"{lowest}-{highest}", "--seeds") == tuple(range(lowest, highest + 1))


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "4-0", "0,,1", "0;1", "1.5", "0-999999", "²", "none,1"])
def test_what_is_no_list_of_numbers_is_named(text):
    with pytest.raises(InputError, match=r"^--seeds .*: cannot be understood at .*; write 0-4, or 0,2, or none$"):
        parse_numbers(text, "--seeds")


def test_folds_are_those_of_the_table():
    table = Table(Path("t.csv"), (), ("a", "b"), folds=(0, 1, 2))
    assert choose_folds(None, table) == (0, 1, 2)
    assert choose_folds(None, dataclasses.replace(table, folds=())) == (None,)
    assert choose_folds("none", table) == (None,)
    assert choose_folds("1-2", table) == (1, 2)
    with pytest.raises(InputError, match=r"--folds 0-4: .*t\.csv has the folds 0, 1, 2"):
        choose_folds("0-4", table)
    with pytest.raises(InputError, match="has no folds"):
        choose_folds("0", dataclasses.replace(table, folds=()))


# --- rows ---


def test_rows_keep_the_order_of_the_table():
    assert choose_rows("table1", None) == ROWS["table1"]
    assert choose_rows("ablation", None) == ROWS["ablation"]
    assert [row.name for row in choose_rows("table1", "unet, gap,allones")] == ["allones", "gap", "unet"]


def test_an_unknown_row_names_the_nearest():
    with pytest.raises(InputError, match=r"table1 has no row 'maxmin-se' \(did you mean maxmin-sem\?\); its rows are"):
        choose_rows("table1", "gap,maxmin-se")


# --- the plan ---


def test_cells_in_their_order_and_folders(tiny_table, tmp_path):
    def folds(rows):
        training = rows["split"].isin(["train", "valid"])
        rows.loc[training, "split"] = "train"
        rows["fold"] = ""
        rows.loc[training, "fold"] = [str(i // 2 % 2) for i in range(training.sum())]
        return rows

    data = make_table(tmp_path, tiny_table, folds)
    chosen = Choices(data, tmp_path / "bench", seeds="0,5", rows="gap,allones,wildcat", preset="fast")
    cells, notes = plan("table1", chosen)
    names = [cell.folder.relative_to(tmp_path / "bench" / "cells").as_posix() for cell in cells]
    per_row = ["fold0-seed0", "fold0-seed5", "fold1-seed0", "fold1-seed5"]
    assert names == [f"{row}/{cell}" for row in ("allones", "gap", "wildcat") for cell in per_row]
    assert [(c.fold, c.seed, c.config.fold, c.config.training.seed) for c in cells[:4]] == [
        (0, 0, 0, 0),
        (0, 5, 0, 5),
        (1, 0, 1, 0),
        (1, 5, 1, 5),
    ]
    assert {cell.split for cell in cells} == {"test"}
    assert notes == [
        "split test is measured",
        "images with a shorter side below the 216 px of preset fast (here 64 px) are scaled up",
    ]
    assert cells[0].label == "allones, fold 0, seed 0"


def test_without_folds_and_without_test_rows(tiny_table, tmp_path):
    data = make_table(tmp_path, tiny_table, lambda rows: rows[rows["split"] != "test"])
    cells, notes = plan("table1", Choices(data, tmp_path, rows="gap"))
    assert [(c.folder, c.fold, c.split) for c in cells] == [(tmp_path / "cells/gap/nofold-seed0", None, "valid")]
    assert notes[0] == "split valid is measured"
    with pytest.raises(InputError, match="no row is of split 'test'"):
        plan("table1", Choices(data, tmp_path, rows="gap", split="test"))


def test_rows_that_need_masks_are_refused_before_anything_starts(tiny_table, tmp_path):
    def no_masks(rows):
        return rows.assign(mask=rows["mask"].where(rows["split"] != "train", ""))

    data = make_table(tmp_path, tiny_table, no_masks)
    with pytest.raises(InputError, match=r"unet learns from masks, and training rows have none; .* --rows gap$"):
        plan("table1", Choices(data, tmp_path, rows="gap,unet"))
    assert len(plan("table1", Choices(data, tmp_path, rows="gap"))[0]) == 1


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seeds": "none"}, "--seeds none: training needs a seed"),
        ({"maps": -1}, "--maps -1 is wrong .must be at least 0"),
        ({"epochs": 0}, "--epochs 0 is wrong .must be at least 1"),
        ({"backbone": "resnet18"}, "resnet18"),
        ({"weights": "nowhere.pth"}, "--weights nowhere.pth: there is no such file"),
        ({"data": Path("nowhere.csv")}, "nowhere.csv: there is no such table"),
    ],
)
def test_what_would_make_every_cell_fail_is_refused(choices, changes, sentence):
    with pytest.raises(InputError, match=sentence):
        plan("table1", dataclasses.replace(choices, **changes))


def test_epochs_count_all_stages(choices):
    cells, _ = plan("table1", dataclasses.replace(choices, rows="allones,gap,erase"))
    rounds = {c.row.name: c.config.options for c in cells}["erase"].rounds
    assert rounds > 1
    assert {c.row.name: c.epochs for c in cells} == {"allones": 0, "erase": 20 * rounds, "gap": 20}


# --- finished or not ---


@pytest.fixture
def cell(choices, tmp_path) -> PlannedCell:
    return dataclasses.replace(plan("table1", choices)[0][-1], folder=tmp_path / "cell")


def test_finished_means_cell_json_and_the_same_request(cell):
    assert not cell.finished
    cell.prepare()
    assert not cell.finished
    (cell.folder / "cell.json").write_text("{}")
    assert cell.finished
    other = dataclasses.replace(cell.config, training=dataclasses.replace(cell.config.training, lr=0.5))
    assert not dataclasses.replace(cell, config=other).finished
    assert not dataclasses.replace(cell, split="valid").finished
    (cell.folder / "error.txt").write_text("an earlier try")
    cell.prepare()
    assert not cell.finished
    assert sorted(f.name for f in cell.folder.iterdir()) == ["request.yaml"]
    (cell.folder / "cell.json").write_text("{}")
    (cell.folder / "request.yaml").write_bytes(b"\xff: [")
    assert not cell.finished


def test_the_request_replays_the_run(cell):
    cell.prepare()
    request = yaml.safe_load((cell.folder / "request.yaml").read_text())
    assert run_config(request.pop("run"), where="test") == cell.config
    assert request.pop("inputs") == inputs_of(read_table(cell.config.data))
    assert request == {"row": "gap", "fold": None, "seed": 0, "split": "test", "maps": 200}


def test_seconds_of_all_epochs(tmp_path):
    assert epochs_logged(tmp_path) == (0, 0.0)
    rng = np.random.default_rng(0)
    log = pd.DataFrame({"epoch": range(3), "seconds": rng.random(3), "valid_seconds": rng.random(3)})
    log.to_csv(tmp_path / "log.csv", index=False)
    assert epochs_logged(tmp_path) == (3, pytest.approx(log["seconds"].sum() + log["valid_seconds"].sum()))


# --- the folder ---


def test_a_folder_grows_by_rows_folds_and_seeds_but_keeps_its_settings(choices, tmp_path):
    choices = dataclasses.replace(choices, out=tmp_path / "my bench")

    def call(**changes):
        chosen = dataclasses.replace(choices, **changes)
        claim("table1", chosen, plan("table1", chosen)[0])
        return json.loads((choices.out / "benchmark.json").read_text())

    first = call(seeds="2", epochs=3)
    assert {k: first[k] for k in ("kind", "preset", "folds", "seeds", "rows", "split", "overrides", "format")} == {
        "kind": "table1",
        "preset": "fast",
        "folds": [None],
        "seeds": [2],
        "rows": ["allones", "gap"],
        "split": "test",
        "overrides": {"epochs": 3},
        "format": 1,
    }
    assert {"python", "torch", "processor", "cores", "memory", "GPU"} <= set(first["machine"])
    assert first["image_sides"] == [64, 96]
    second = call(seeds="0", rows="lse", epochs=3)
    assert (second["seeds"], second["rows"]) == ([0, 2], ["allones", "lse", "gap"])
    assert second["command"] == (
        f"histoloc benchmark table1 --data={choices.data.as_posix()} --folds=none --seeds=0,2 --rows=allones,lse,gap "
        f"--preset=fast --split=test --maps=200 --epochs=3 '--out={(tmp_path / 'my bench').as_posix()}'"
    )
    for changes, message in [
        ({"preset": "paper", "epochs": 3}, "preset was fast and is paper"),
        ({}, "overrides.epochs was 3 and is None"),
        ({"split": "valid", "epochs": 3}, "split was test and is valid"),
    ]:
        with pytest.raises(InputError, match=rf"my bench: was begun with other settings \({message}\); restore"):
            call(**changes)
    with pytest.raises(InputError, match="kind was table1 and is ablation"):
        claim("ablation", dataclasses.replace(choices, epochs=3), plan("table1", dataclasses.replace(choices))[0])
    assert json.loads((choices.out / "benchmark.json").read_text()) == second
    (choices.out / "benchmark.json").write_text("{}")
    with pytest.raises(InputError, match=r"benchmark\.json: does not list"):
        call()


def exchange_labels(rows):
    return rows.assign(label=rows["label"].map({"benign": "malignant", "malignant": "benign"}))


def test_all_cells_of_a_folder_are_of_one_table(choices, tiny_table, tmp_path, capsys):
    """Also those that are finished, and those whose turn comes when the table is no longer what it was."""
    data = make_table(tmp_path, tiny_table, lambda rows: rows)
    chosen = dataclasses.replace(choices, data=data, out=tmp_path / "bench", rows="allones")
    (cell,) = plan("table1", chosen)[0]
    claim("table1", chosen, [cell])
    cell.prepare()
    make_table(tmp_path, tiny_table, exchange_labels)
    differs = r"was begun with another content of table\.csv \(the counts are the same\); restore the table"
    with pytest.raises(InputError, match=rf"allones/nofold-seed0: {differs}"):
        run_cell(cell)
    assert sorted(f.name for f in cell.folder.iterdir()) == ["request.yaml"]
    claim("table1", chosen, plan("table1", chosen)[0])  # where nothing was made yet, another table may follow
    make_table(tmp_path, tiny_table, lambda rows: rows)
    claim("table1", chosen, plan("table1", chosen)[0])
    run_cell(cell)
    assert cell.finished
    capsys.readouterr()
    before = (chosen.out / "benchmark.json").read_bytes()
    for change, message in [
        (exchange_labels, differs),
        (lambda rows: rows[1:], r"was begun with another content of table\.csv \(rows was 20 and is 19, counts\.train"),
    ]:
        make_table(tmp_path, tiny_table, change)
        for more in (chosen, dataclasses.replace(chosen, rows="stain", seeds="1")):
            with pytest.raises(InputError, match=rf"bench: {message}"):
                claim("table1", more, plan("table1", more)[0])
    assert (chosen.out / "benchmark.json").read_bytes() == before
    assert capsys.readouterr().err == ""


def test_a_folder_of_an_earlier_version_is_continued_with_a_note(choices, tmp_path, capsys):
    chosen = dataclasses.replace(choices, out=tmp_path / "bench", rows="allones")
    (cell,) = plan("table1", chosen)[0]
    claim("table1", chosen, [cell])
    cell.prepare()
    (cell.folder / "model").mkdir()
    (cell.folder / "cell.json").write_text("{}")
    for file, write, read in [
        (chosen.out / "benchmark.json", json.dumps, json.loads),
        (cell.folder / "request.yaml", yaml.safe_dump, yaml.safe_load),
    ]:
        values = read(file.read_text())
        del values["inputs"]
        file.write_text(write(values))
    assert cell.finished
    for note in (f"note: {chosen.out}: was begun by histoloc 0.1, which kept nothing of its table", ""):
        claim("table1", chosen, [cell])
        output = capsys.readouterr().err
        assert output.startswith(note)
        assert bool(output) == bool(note)


def test_two_benchmarks_do_not_write_into_one_folder(choices, tmp_path, another_call):
    chosen = dataclasses.replace(choices, out=tmp_path / "bench")
    with another_call(chosen.out), pytest.raises(InputError, match="bench: another call is writing here"):
        benchmark("table1", chosen)
    (cell,) = plan("table1", dataclasses.replace(chosen, rows="gap"))[0]
    with another_call(cell.folder), pytest.raises(InputError, match="seed0: another call is writing here"):
        run_cell(cell)
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]
