"""From slides to maps: data camelyon16 -> train -> evaluate -> report, by the commands that a user types."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from camelyon_root import make_root
from factory import KINDS, Region, blob, box, kinds_at
from histoloc.cli.main import main

SIZE = (1536, 1280)
TISSUE = box("tissue", 60, 60, 1380, 1150)
FIRST_TEST = 10  # number of the first test slide
QUICK = ["--crop", "112", "--epochs", "8", "--batch", "16", "--lr", "0.01", "--accelerator", "cpu"]


def tumour(number: int) -> list[Region]:
    places = ((400, 420, 230), (1050, 800, 180), (500, 950, 110))
    return [TISSUE, *(blob("metastasis", x, y, r, number + i) for i, (x, y, r) in enumerate(places))]


def measured(run: Path) -> dict[str, float]:
    metrics = json.loads((run / "evaluation" / "test" / "metrics.json").read_text())["metrics"]
    return {name: metrics[name]["value"] for name in ("cl_error", "f1_plus", "specificity_without_roi")}


def area_dice(out: Path, number: int) -> float:
    """Dice index of map and truth on test slide `number`, over the cells of the map."""
    folder = out / f"test_{number:03}"
    record = json.loads((folder / "slide.json").read_text())
    mask = tifffile.imread(folder / "map.ome.tif") / 255 >= record["map"]["threshold"]
    truth = kinds_at(tumour(FIRST_TEST + number - 1), 0, 0, *SIZE) == list(KINDS).index("metastasis")
    cell = record["map"]["mpp"] / record["mpp"]
    rows, columns = (
        np.minimum((np.arange(n) + 0.5) * cell, side - 1).astype(int)
        for n, side in zip(mask.shape, truth.shape, strict=True)
    )
    sampled = truth[np.ix_(rows, columns)]
    return float(2 * (mask & sampled).sum() / (mask.sum() + sampled.sum()))


@pytest.mark.slow
def test_maxmin_finds_metastases_and_leaves_normal_tissue_alone(tmp_path):
    make_root(tmp_path / "root", SIZE, 0.25, [TISSUE], tumour, training=5, testing=2)
    data = ["data", "camelyon16", str(tmp_path / "root"), "--out", str(tmp_path / "p")]
    main([*data, "--size", "128", "--coarse", "3", "--workers", "1"])
    table = ["--data", str(tmp_path / "p" / "table.csv")]
    sem, gap = tmp_path / "sem", tmp_path / "gap"
    main(["train", "maxmin", *table, "--recipe", "camelyon16-sem", "--out", str(sem), *QUICK])
    main(["train", "gap", *table, "--out", str(gap), "--small-side", "0", "--empty-class", "normal", *QUICK])
    for run in (sem, gap):
        main(["evaluate", str(run), *table, "--empty-class", "normal", "--device", "cpu"])
    main(["report", str(sem), str(gap), "--out", str(tmp_path / "report.html")])
    assert (tmp_path / "report.html").stat().st_size > 100_000
    ours, cam = measured(sem), measured(gap)
    assert ours["cl_error"] <= 10
    assert ours["f1_plus"] > cam["f1_plus"]
    assert ours["specificity_without_roi"] >= cam["specificity_without_roi"] - 1
    for run in (sem, gap):
        out = ["--out", str(run / "slides"), "--tile", "128", "--empty-class", "normal", "--device", "cpu"]
        main(["slides", "predict", str(run), str(tmp_path / "root" / "testing" / "images"), *out])
    dice = {run.name: [area_dice(run / "slides", number) for number in (2, 4)] for run in (sem, gap)}
    print("area Dice of the two test slides with metastases:", dice)
    assert min(dice["sem"]) > 0.8
    assert min(dice["sem"]) > max(dice["gap"])
    for number in (1, 3):
        record = json.loads((sem / "slides" / f"test_{number:03}" / "slide.json").read_text())
        assert record["class"] == "normal"
        assert record["roi"]["share"] < 0.02
