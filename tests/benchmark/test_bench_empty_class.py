"""A class without ROI (normal tissue) in a benchmark: who is told, what is measured, recorded and shown."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from fake_bench import flat, write_bench, write_cell, write_settings
from PIL import Image

from histoloc.benchmark.cell import run_cell
from histoloc.benchmark.cells import cell_config, plan
from histoloc.benchmark.presets import Choices
from histoloc.benchmark.results import read_bench, results_frame
from histoloc.benchmark.rows import ROWS as TABLES
from histoloc.benchmark.rows import Row
from histoloc.benchmark.settings import claim
from histoloc.benchmark.tables import benchmark_table
from histoloc.config import plain, read_recipe, run_config
from histoloc.errors import InputError
from histoloc.model_folder import ModelConfig, build_method
from histoloc.nn.backbone import BackboneConfig

SIDE, TUMOR_SHARE = 48, 0.25
ROWS = {row.name: row for row in (*TABLES["table1"], *TABLES["ablation"])}
CHOICES = Choices(Path("t.csv"), Path("bench"), preset="camelyon16", empty_class="normal")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Two tumor images, a quarter of each dark and outlined, and two normal ones without mask file, in every split."""
    folder = tmp_path_factory.mktemp("tissue")
    random = np.random.default_rng(0)
    rows = []
    for split in ("train", "valid", "test"):
        for number, label in enumerate(("normal", "normal", "tumor", "tumor")):
            image = random.integers(200, 256, (SIDE, SIDE, 3), dtype=np.uint8)
            truth = np.zeros((SIDE, SIDE), np.uint8)
            name, mask = f"{split}{number}.png", ""
            if label == "tumor":
                truth[: SIDE // 2, : SIDE // 2] = 255
                image[truth > 0] //= 2
                mask = f"{split}{number}_mask.png"
                Image.fromarray(truth).save(folder / mask)
            Image.fromarray(image).save(folder / name)
            rows.append({"image": name, "label": label, "mask": mask, "split": split, "group": name})
    pd.DataFrame(rows).to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"


@pytest.fixture
def choices(data, tmp_path) -> Choices:
    return Choices(data, tmp_path / "bench", rows="allones", preset="camelyon16", empty_class="normal")


# --- who is told ---


@pytest.mark.parametrize("name", ["sem", "eem"])
def test_max_min_is_the_recipe(name):
    recipe = run_config({**read_recipe(f"camelyon16-{name}"), "data": "t.csv"}, where="recipe")
    result = cell_config(ROWS[f"maxmin-{name}"], None, 0, CHOICES)
    training = dataclasses.replace(recipe.training, seed=0, devices="1")
    assert result == dataclasses.replace(recipe, training=training, recipe=None, published=None)


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_every_row_knows_the_class_without_roi_and_max_min_has_no_stretched_map(row: Row):
    knows, plain_ = (
        cell_config(row, None, 0, dataclasses.replace(CHOICES, empty_class=name)) for name in ("normal", None)
    )
    assert (knows.empty_class, plain_.empty_class) == ("normal", None)
    changed = {name for name, value in plain(knows.options).items() if value != plain(plain_.options)[name]}
    assert changed == ({"normalisation", "slope"} if row.method == "maxmin" else set())
    assert dataclasses.replace(knows, empty_class=None, options=plain_.options) == plain_
    # The options allow each other.
    backbone = BackboneConfig("test_efficientnet_ln", 0, weights="none")
    config = ModelConfig(row.method, ("normal", "tumor"), knows.options, backbone, empty_class="normal")
    assert build_method(config, load_backbone=True).empty_class == 0


def test_what_is_no_class_or_has_no_published_numbers_is_refused(choices):
    with pytest.raises(InputError, match=r"--empty-class 'benign' is not a class of .*choose one of \['normal', 't"):
        plan("table1", dataclasses.replace(choices, empty_class="benign"))
    with pytest.raises(InputError, match="--published camelyon16: no numbers were published on it for the rows of abl"):
        plan("ablation", dataclasses.replace(choices, rows=None, published="camelyon16"))


def test_methods_that_learn_from_masks_need_none_of_the_class_without_roi(choices):
    (cell,) = plan("table1", dataclasses.replace(choices, rows="unet"))[0]
    assert cell.config.empty_class == "normal"
    with pytest.raises(InputError, match="name the class whose images have no ROI by --empty-class, or choose other"):
        plan("table1", dataclasses.replace(choices, rows="unet", empty_class=None))
    with pytest.raises(InputError, match="unet learns from masks, and training rows have none"):
        plan("table1", dataclasses.replace(choices, rows="unet", empty_class="tumor"))


# --- what is measured and recorded ---


def test_every_row_is_measured_with_the_empty_class(choices):
    (cell,) = plan("table1", choices)[0]
    claim("table1", choices, [cell])
    run_cell(cell)
    assert yaml.safe_load((cell.folder / "request.yaml").read_text())["empty_class"] == "normal"
    assert cell.finished
    record = json.loads((cell.folder / "evaluation/test/metrics.json").read_text())
    assert record["empty_class"] == "normal"
    metrics = record["metrics"]
    assert (metrics["specificity_without_roi"]["value"], metrics["specificity_without_roi"]["n"]) == (0.0, 2)
    assert metrics["f1_plus"]["n"] == 2
    assert metrics["f1_plus"]["value"] == pytest.approx(100 * 2 * TUMOR_SHARE / (1 + TUMOR_SHARE))
    assert (metrics["f1_minus"]["value"], metrics["f1_minus"]["n"]) == (0.0, 4)
    bench = read_bench(choices.out)
    assert (bench.empty_class, bench.cells[0].value("specificity_without_roi")) == ("normal", 0.0)
    assert results_frame(bench)["specificity_without_roi"].tolist() == [0.0]


def test_another_empty_class_is_another_benchmark(choices):
    def call(**changes) -> dict:
        chosen = dataclasses.replace(choices, **changes)
        claim("table1", chosen, plan("table1", chosen)[0])
        return json.loads((choices.out / "benchmark.json").read_text())

    settings = call()
    assert (settings["empty_class"], settings["published"]) == ("normal", None)
    assert " --empty-class=normal " in settings["command"]
    assert "--published" not in settings["command"]
    for other in (None, "tumor"):
        with pytest.raises(InputError, match=rf"other settings \(empty_class was normal and is {other}\); restore"):
            call(empty_class=other)
    # What stands beside the numbers may be named later, and stays.
    assert call(published="camelyon16")["published"] == call()["published"] == "camelyon16"
    assert " --published=camelyon16 " in call()["command"]


def test_a_benchmark_without_one_stays_finished(choices):
    """Folders from before there was this option say nothing of it."""
    chosen = dataclasses.replace(choices, empty_class=None)
    (cell,) = plan("table1", chosen)[0]
    assert "empty_class" not in cell.request
    other = dataclasses.replace(cell, config=dataclasses.replace(cell.config, empty_class="normal"))
    assert other.request == cell.request | {"empty_class": "normal", "run": plain(other.config)}
    claim("table1", chosen, [cell])
    path = choices.out / "benchmark.json"
    earlier = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in earlier.items() if k not in ("empty_class", "published", "inputs")}))
    claim("table1", chosen, [cell])
    assert json.loads(path.read_text()) == earlier


# --- what is shown ---


def fake(folder: Path, **settings) -> Path:
    """GAP and max-min over two seeds with a specificity on normal images."""
    defaults = {"folds": [None], "data": "p512/table.csv", "split": "test", "empty_class": "normal"}
    write_settings(folder, ["gap", "maxmin-sem"], **defaults | settings)
    for row, specificity in (("gap", 60.0), ("maxmin-sem", 90.0)):
        for seed in (0, 1):
            run = write_cell(folder, row, None, seed, flat(70.0), flat(math.nan), split="test")
            path = run / "evaluation/test/metrics.json"
            content = json.loads(path.read_text())
            content["empty_class"] = settings.get("empty_class", "normal")
            content["metrics"]["specificity_without_roi"] = {"value": specificity + 4 * seed, "low": 0.0, "high": 100.0}
            path.write_text(json.dumps(content))
    options = {"normalisation": "none", "slope": 5.0, "kmax": 0.3}
    for seed in (0, 1):
        run = folder / "cells" / "maxmin-sem" / f"nofold-seed{seed}"
        (run / "run.yaml").write_text(yaml.safe_dump({"options": options, "empty_class": "normal"}))
    return folder


def columns(folder: Path) -> dict[str, list[str]]:
    """Entries of every column from above, by heading."""
    table = benchmark_table(read_bench(folder))
    texts = zip(*[[f"{e.text} {e.spread}".strip() for e in line.cells] for line in table.rows], strict=True)
    heads = [f"{group} {text}".strip().removeprefix("ours ") for group, text in table.headings]
    return dict(zip(heads, map(list, texts), strict=True))


def test_the_specificity_has_a_column_where_a_class_is_named(tmp_path):
    folder = fake(tmp_path / "bench")
    assert columns(folder)["specificity on normal images"] == ["62.00 ± 2.83", "92.00 ± 2.83"]
    table = benchmark_table(read_bench(folder))
    (place,) = [number for number, (_, text) in enumerate(table.headings) if text.startswith("specificity")]
    assert [line.cells[place].bold for line in table.rows] == [False, True]
    assert "Images of class normal have no ROI: F1⁺ leaves them out" in " ".join(table.general)
    assert "Because images of class normal have no ROI: normalisation none, slope 5.0." in table.notes
    assert not any("specificity" in heading for heading in columns(write_bench(tmp_path / "other")))


def test_published_numbers_are_those_that_are_named(tmp_path):
    values = columns(fake(tmp_path / "named", published="camelyon16"))
    assert values["published (Camelyon16-P512, test) F1⁺"] == ["62.75", "68.26"]
    assert values["published (Camelyon16-P512, test) F1⁻"] == ["79.05", "88.55"]
    assert values["published (Camelyon16-P512, test) Cl. error"] == ["2.40", "6.95"]
    headings = benchmark_table(read_bench(tmp_path / "named")).headings
    assert {group for group, _ in headings} == {"", "ours", "published (Camelyon16-P512, test)"}
    assert not has_published(fake(tmp_path / "not"))
    assert not has_published(fake(tmp_path / "a", data="camelyon16.csv"))
    assert not has_published(fake(tmp_path / "b", data="glas.csv", published="none"))
    assert columns(fake(tmp_path / "c", data="glas.csv"))["published (GlaS, test) F1⁺"] == ["66.90", "71.94"]


def has_published(folder: Path) -> bool:
    return any(heading.startswith("published") for heading in columns(folder))
