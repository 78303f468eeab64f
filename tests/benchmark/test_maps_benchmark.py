"""Tiers of supervision: which cells are planned, what they learn from, and a text file of them that is enough."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import histoloc.benchmark.run as benchmark_run
from histoloc.benchmark.cell import run_cell
from histoloc.benchmark.cells import PlannedCell, plan
from histoloc.benchmark.held_out import write_pictures
from histoloc.benchmark.presets import PRESETS, MapChoices, PictureOptions
from histoloc.benchmark.priors import drawn_of
from histoloc.benchmark.report import write_benchmark_report
from histoloc.benchmark.results import read_bench
from histoloc.benchmark.results_file import restore, write_cells
from histoloc.benchmark.rows import TIERS, rows_of
from histoloc.benchmark.settings import claim
from histoloc.benchmark.tiers import SOURCES
from histoloc.data.images import image_size
from histoloc.data.table import read_table
from histoloc.errors import InputError
from histoloc.methods import METHODS
from histoloc.model_folder import load_model, read_model_config, save_images, save_model
from histoloc.nn.backbone import statistics
from histoloc.prior import AdaptOptions, drawn_beside

TINY = {
    "input": {"small_side": 64, "crop": 64},
    "training": {"epochs": 1, "batch": 4, "lr": 1e-2, "precision": "32-true", "workers": 0, "accelerator": "cpu"},
}
ROWS = {row.name: row for row in rows_of("maps")}
LEARNED = {"student": ["image"], "prior": ["synthetic"], "prior-adapted": ["synthetic"], "unet-sum": ["pixel"]}
LEARNED |= {"gap": ["image"], "maxmin-sem": ["image"], "stain": [], "unet": ["pixel"]}
LEARNED |= {"crossfit": ["image"], "crossfit-cue": ["cue", "image"]}
LEARNED |= {"student-prior": ["image", "synthetic"], "maxmin-prior": ["image", "synthetic"]}


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """The preset `fast` and the number of drawn images at a size for tests."""
    patch = pytest.MonkeyPatch()
    patch.setitem(PRESETS, "fast", TINY)
    patch.setattr(benchmark_run, "AdaptOptions", lambda seed: AdaptOptions(seed=seed, count=4, drawers=1))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def choices(tiny_table, prior_folder, tmp_path_factory) -> MapChoices:
    """Of a prior that says of which scene it is; the table is the tiny one, as fold 0 of two."""
    folder = tmp_path_factory.mktemp("maps")
    method, config = load_model(prior_folder / "discs")
    facts = {"structure": "disc", "scene": "disc", "size": [80, 96]}
    mean, std = statistics(config.backbone.backbone) or (None, None)
    seen = dataclasses.replace(config.input, mean=mean, std=std)
    save_model(folder / "prior", method.state_dict(), dataclasses.replace(config, input=seen, provenance=facts))
    save_images(folder / "prior", ())
    rows = pd.read_csv(tiny_table, dtype=str, keep_default_na=False)
    rows = rows[rows["split"] != "test"].assign(
        split="train", fold=[str(i // 2 % 4 // 3) for i in range(16)], mpp="2.0"
    )
    for column in ("image", "mask"):
        rows[column] = [str((tiny_table.parent / cell).resolve()) for cell in rows[column]]
    rows.to_csv(folder / "table.csv", index=False)
    tiny: dict[str, Any] = {"backbone": "test_efficientnet_ln", "stride": 0, "weights": "none", "epochs": 1}
    return MapChoices(
        folder / "table.csv", folder / "bench", folds="1", prior=str(folder / "prior"), looked_at="none", **tiny
    )


@pytest.fixture(scope="module")
def done(choices) -> list[PlannedCell]:
    """Every cell of fold 1 and seed 0, finished in this process; do not write into the folder."""
    cells, _ = plan("maps", choices)
    claim("maps", choices, cells)
    drawn_beside(choices.prior_of(0), drawn_of(choices, 0).parent, AdaptOptions(seed=0, count=4, drawers=1))
    for cell in cells:
        run_cell(cell)
    return cells


def test_rows_say_what_they_learn_from():
    """The strongest of method, prior and teachers: the table sorts by it before anything is measured."""
    for row in ROWS.values():
        options = METHODS[row.method].Options(**row.options)
        sources = set(METHODS[row.method].learns_from(options))
        sources -= {"image"} if row.prior in ("alone", "adapted") else set()
        sources |= {"synthetic"} if row.drawn or row.prior in ("alone", "adapted", "begin") else set()
        for name in row.teachers:
            sources |= set(METHODS[ROWS[name].method].supervision)
        assert row.learns_from == next((tier for key, tier in SOURCES.items() if key in sources), "nothing"), row.name
        assert row.learns_from in TIERS


def test_no_row_chooses_an_epoch_by_held_out_labels(choices):
    assert {
        cell.config.training.selection for cell in plan("maps", choices)[0] if cell.epochs and cell.run == cell.folder
    } == {"last"}


def test_teachers_come_first_and_are_done_too(choices):
    cells, _ = plan("maps", dataclasses.replace(choices, rows="student", folds="0-1"))
    assert [(cell.row.name, cell.fold, cell.stage) for cell in cells] == [
        (name, fold, stage) for name, stage in (("gap", 0), ("maxmin-sem", 0), ("student", 1)) for fold in (0, 1)
    ]
    assert cells[-1].config.teachers == tuple(
        choices.out / "cells" / name / "fold1-seed0" for name in ("gap", "maxmin-sem")
    )


def test_rows_with_a_prior_look_as_it_does(choices):
    cells = {cell.row.name: cell.config for cell in plan("maps", choices)[0]}
    prior = read_model_config(Path(choices.prior))

    for name in ("student-prior", "maxmin-prior", "unet-sum"):
        config = cells[name]
        assert (config.input.mpp, config.input.small_side, config.input.crop) == (1.0, 0, 64)
        assert (config.input.mean, config.input.std) == (prior.input.mean, prior.input.std)
        assert (config.backbone.backbone, config.backbone.stride) == (prior.backbone.backbone, 0)
        assert config.prior == (None if name == "unet-sum" else choices.prior)
        assert config.drawn == (None if name == "unet-sum" else choices.out / "drawn" / "seed0" / "table.csv")
    assert cells["unet-sum"].input.brightness == 0.5
    assert cells["student-prior"].input.brightness == 0
    assert cells["unet-sum"].options.decoder == "sum"
    assert cells["student-prior"].options.average == METHODS["student"].with_prior["average"]
    assert (cells["gap"].input.mpp, cells["gap"].input.small_side) == (None, 64)


def test_a_prior_that_is_absent_is_one_sentence_with_the_command(choices, tmp_path):
    chosen = dataclasses.replace(choices, seeds="0-1")
    with pytest.raises(InputError, match=r"needs a prior of seed 1; `histoloc prior make --seed 1 --out priors/seed1`"):
        plan("maps", chosen)
    with pytest.raises(InputError, match=r"has no prior seed1; `histoloc prior make --seed 1 --out .*seed1` makes it"):
        plan("maps", dataclasses.replace(chosen, priors=tmp_path))
    (tmp_path / "seed1").symlink_to(Path(choices.prior))
    cells, _ = plan("maps", dataclasses.replace(chosen, priors=tmp_path, rows="prior"))
    assert [cell.config.prior for cell in cells] == [choices.prior, str(tmp_path / "seed1")]
    assert len(plan("maps", dataclasses.replace(chosen, rows="gap"))[0]) == 2
    with pytest.raises(InputError, match=r"--looked-at 2-0: cannot be understood"):
        dataclasses.replace(choices, looked_at="2-0")


def test_cells_are_measured_and_say_what_they_learned_from(done):
    for cell in done:
        assert cell.finished, cell.label
        record = json.loads((cell.folder / "evaluation" / "valid" / "metrics.json").read_text())
        assert record["supervision"] == LEARNED[cell.row.name], cell.label
        assert record["n_images"] == 4
    by_name = {cell.row.name: cell for cell in done}
    cost = {name: json.loads((cell.folder / "cell.json").read_text()) for name, cell in by_name.items()}
    assert (cost["prior"]["epochs"], cost["prior"]["train_seconds"], cost["prior"]["method"]) == (0, 0, "prior")
    assert cost["prior-adapted"]["epochs"] == 1
    assert by_name["prior-adapted"].epochs == 1


def test_an_adapted_prior_saw_training_images_without_labels_and_masks(done, choices):
    folder = next(cell.folder for cell in done if cell.row.name == "prior-adapted")
    seen = pd.read_csv(folder / "images.csv", keep_default_na=False)
    training = read_table(choices.data, fold=1).split("train")
    assert [Path(text).name for text in seen["image"]] == [sample.image.name for sample in training]
    assert set(seen["label"]) == {"none"}
    assert set(seen["mask"]) == {""}


def test_another_prior_is_refused(done, choices, tmp_path):
    method, config = load_model(Path(choices.prior))
    state = method.state_dict()
    save_model(tmp_path / "other", {**state, "decoder.head.bias": state["decoder.head.bias"] + 1}, config)
    chosen = dataclasses.replace(choices, prior=str(tmp_path / "other"), rows="prior")
    with pytest.raises(InputError, match=r"cells.prior.fold1-seed0: was begun with another prior"):
        claim("maps", chosen, plan("maps", chosen)[0])


def test_a_text_file_of_cells_is_enough_to_go_on(done, choices, tmp_path):
    file = tmp_path / "maps.jsonl"
    write_cells(file, done, read_bench(choices.out))
    text = file.read_text()
    assert str(choices.data.parent) not in text
    other = dataclasses.replace(choices, out=tmp_path / "bench")
    cells, _ = plan("maps", other)
    claim("maps", other, cells)
    assert restore(file, cells) == len(done)
    assert all(cell.finished for cell in cells)
    for before, after in zip(read_bench(choices.out).cells, read_bench(other.out).cells, strict=True):
        assert before.result.numbers == after.result.numbers
        assert before.evaluation.images["name"].tolist() == after.evaluation.images["name"].tolist()
    assert (write_benchmark_report(other.out).parent / "tables.md").read_text() == (
        write_benchmark_report(choices.out).parent / "tables.md"
    ).read_text()
    write_cells(file, cells, read_bench(other.out))
    assert file.read_text() == text


def test_a_moved_table_is_the_same_and_one_with_another_mask_is_not(done, choices, tmp_path):
    file, moved = tmp_path / "maps.jsonl", tmp_path / "elsewhere"
    write_cells(file, done, read_bench(choices.out))
    shutil.copytree(choices.data.parent, moved)
    other = dataclasses.replace(choices, data=moved / choices.data.name, out=tmp_path / "bench")
    cells, _ = plan("maps", other)
    assert restore(file, cells) == len(done)
    mask = next(sample.mask for sample in read_table(other.data).samples if sample.mask is not None)
    mask.write_bytes(mask.read_bytes() + b" ")
    cells, _ = plan("maps", dataclasses.replace(other, out=tmp_path / "again"))
    assert restore(file, cells) == 0


def test_teachers_of_unfinished_cells_are_not_taken_from_a_file(done, choices, tmp_path):
    file = tmp_path / "maps.jsonl"
    write_cells(file, done, read_bench(choices.out))
    lines = [line for line in file.read_text().splitlines() if json.loads(line)["row"] != "student"]
    other = dataclasses.replace(choices, out=tmp_path / "bench")
    cells, _ = plan("maps", other)
    assert restore(file, cells) == len(done)  # the student's model is needed by nobody
    file.write_text("\n".join(lines) + "\n")
    cells, _ = plan("maps", dataclasses.replace(other, out=tmp_path / "again"))
    assert restore(file, cells) == len(done) - 3
    assert {cell.row.name for cell in cells if not cell.finished} == {"student", "gap", "maxmin-sem"}
    cells, _ = plan("maps", dataclasses.replace(other, out=tmp_path / "longer", epochs=2))
    assert restore(file, cells) == 0
    file.write_text("[]\n")
    with pytest.raises(InputError, match=r"--results .*: is no file of finished cells"):
        restore(file, cells)


def test_pictures_of_held_out_images(done, choices, tmp_path):
    write_pictures(choices.out, tmp_path, PictureOptions(row="unet", folds="1", count=3))
    table = pd.read_csv(tmp_path / "unet" / "images.csv")
    assert table["rank"].tolist() == ["best", "median", "worst"]
    assert table["f1_mean"].is_monotonic_decreasing
    assert len(pd.read_csv(tmp_path / "prior-worst" / "images.csv")) == 3
    width, height = image_size(tmp_path / "unet" / table["picture"][0])
    assert (width, height) == (3 * 96 + 16, 64)
    for options, sentence in (
        (PictureOptions(row="gpa"), "row gpa has no finished cell"),
        (PictureOptions(count=2), "--count 2"),
    ):
        with pytest.raises(InputError, match=sentence):
            write_pictures(choices.out, tmp_path, options)
