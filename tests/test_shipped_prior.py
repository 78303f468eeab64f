"""A model without classes, named `prior:NAME`, works wherever a model is asked for."""

import json
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import histoloc
from factory import box, make_slide
from histoloc import InputError
from histoloc.cli.main import main
from histoloc.data.images import read_map, read_mask
from histoloc.data.table import read_table
from histoloc.model_folder import find_model, load_model
from histoloc.slides.geojson import read_geojson

P = 1 / (1 + np.exp(-2))  # of every pixel


@pytest.fixture
def image(tmp_path) -> Path:
    path = tmp_path / "one.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (75, 101, 3), dtype=np.uint8)).save(path)
    return path


def run(capsys, *arguments: object) -> str:
    main([str(argument) for argument in arguments])
    return capsys.readouterr().out


# --- which folder ---


def test_a_name_is_a_folder_of_the_package(shipped, prior_folder):
    assert find_model(Path(shipped)) == prior_folder / "discs"
    with pytest.raises(
        InputError, match=r"prior:disc: no prior of this name is shipped; choose one of prior:discs, or give"
    ):
        find_model(Path("prior:disc"))


def test_weights_of_half_precision_become_a_network_of_single_precision(shipped):
    method, config = load_model(Path(shipped))
    assert {value.dtype for value in method.state_dict().values()} == {torch.float32, torch.int64}
    assert (config.classes, method.calibration(config.range).range) == ((), "probability")


# --- images ---


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (75, 101), (200, 300)])
def test_a_map_and_no_class_for_images_of_any_size(shipped, size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    result = histoloc.load(shipped, "cpu").predict(pixels, mpp=1.0, tissue=False)
    assert (result.label, result.probabilities, result.map_class, result.classes) == (None, None, None, ())
    np.testing.assert_allclose(result.roi, np.full(size, P), atol=1e-6)
    assert result.mask.all()
    assert result.roi_mm2 == pytest.approx(size[0] * size[1] / 1e6)
    assert result.scale == "1 µm/px" + (" in tiles" if size == (200, 300) else "")
    assert result.notes == ()


def test_without_a_known_scale_it_says_which_it_took(shipped, image):
    result = histoloc.load(shipped, "cpu").predict(image)
    assert (result.scale, result.roi_mm2) == ("taken as 1 µm/px", None)
    (note,) = result.notes
    assert note.startswith(
        "the image's scale is unknown: it is taken as 1 µm/px, that of the model; where it is another"
    )


def test_predicted_files_have_no_class(shipped, image, tmp_path, capsys):
    printed = run(capsys, "predict", shipped, image, "--out", tmp_path / "out", "--device", "cpu")
    assert "note: one.png: the image's scale is unknown: it is taken as 1 µm/px" in printed
    row = pd.read_csv(tmp_path / "out" / "predictions.csv").iloc[0]
    assert [name for name in row.index if name.startswith("prob_")] == []
    assert row[["class", "map_class", "mpp", "roi_mm2"]].isna().all()
    assert (row["roi_fraction"], row["range"], row["threshold"]) == (1.0, "probability", 0.5)


def test_several_scales_are_looked_at_each_by_itself(shipped, image, tmp_path, capsys):
    out = tmp_path / "out"
    printed = run(capsys, "predict", shipped, image, "--scales", "0.5", "1", "2", "--out", out, "--device", "cpu")
    assert "scale is unknown" not in printed
    sure = "0.5: 0.76, 1: 0.76, 2: 0.76"  # 2 / (1 + exp(-2)) - 1
    assert f"note: maps are surest as 0.5 µm/px (mean of |2p - 1| by µm/px: {sure}); look which fits" in printed
    rows = pd.read_csv(out / "predictions.csv")
    assert rows["mpp"].tolist() == [0.5, 1.0, 2.0]
    np.testing.assert_allclose(rows["roi_mm2"], 75 * 101 * rows["mpp"] ** 2 / 1e6, atol=1e-6)
    for mpp in ("0.5", "1", "2"):
        assert read_map(out / f"one_{mpp}mpp_map.png").shape == read_mask(out / f"one_{mpp}mpp_mask.png").shape
    with pytest.raises(InputError, match="--mpp says at which scale images are, --scales that nobody knows it"):
        histoloc.predict(Path(shipped), [image], out, mpp=1.0, scales=(1.0, 2.0))
    with pytest.raises(InputError, match=r"--scales .*-1\.0.* is wrong .must be above 0"):
        histoloc.predict(Path(shipped), [image], out, scales=(1.0, -1.0))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--class", "benign"], "--class benign: the model has no classes, and one map for all; leave --class out"),
        (["--class", "all"], "--class all: the model has no classes, and one map for all; leave --class out"),
        (["--empty-class", "benign"], "--empty-class benign: the model has no classes; leave --empty-class out"),
        (["--range", "learned"], "--range learned: the evidence of Prior is a probability; leave --range out"),
    ],
)
def test_what_needs_a_class_or_a_range_is_refused(shipped, image, tmp_path, capsys, flags, says):
    with pytest.raises(SystemExit):
        main(["predict", shipped, str(image), "--out", str(tmp_path / "out"), "--device", "cpu", *flags])
    assert says in capsys.readouterr().err


# --- a table ---


def test_it_is_measured_on_a_table_of_any_classes(shipped, tiny_table, tmp_path, capsys):
    flags = ("evaluate", shipped, "--data", tiny_table, "--device", "cpu")
    printed = run(capsys, *flags, "--out", tmp_path / "e")
    assert "Cl. error –, F1+" in printed
    shares = [read_mask(cast(Path, s.mask)).mean() for s in read_table(tiny_table).split("test")]
    record = json.loads((tmp_path / "e" / "metrics.json").read_text())
    plus = np.mean([2 * p / (1 + p) for p in shares])
    assert record["metrics"]["f1_plus"]["value"] == pytest.approx(100 * plus, abs=1e-4)
    assert record["metrics"]["cl_error"]["value"] is None
    assert (record["run"], record["supervision"]) == (shipped, ["synthetic"])
    assert set(record["floors"]) == set(histoloc.METHODS) & {"allones", "stain"}
    rows = pd.read_csv(tmp_path / "e" / "per_image.csv")
    assert rows["predicted"].isna().all()
    with pytest.raises(
        InputError, match=r"prior:discs: lies in histoloc itself, where no results are kept; give --out"
    ):
        histoloc.evaluate(shipped, tiny_table, device="cpu", progress=False)


def test_images_of_a_class_without_roi_are_background(shipped, tiny_table, tmp_path):
    options = {"device": "cpu", "progress": False, "empty_class": "benign"}
    metrics = histoloc.evaluate(shipped, tiny_table, out=tmp_path / "e", **options)
    assert metrics.specificity_without_roi.value == 0, "all is marked"
    assert metrics.f1_plus.n == sum(sample.label != "benign" for sample in read_table(tiny_table).split("test"))


def test_its_report_has_no_column_of_classes_and_says_what_it_learned_from(shipped, tiny_table, tmp_path, capsys):
    histoloc.evaluate(shipped, tiny_table, out=tmp_path / "e", device="cpu", progress=False)
    run(capsys, "report", tmp_path / "e", "--out", tmp_path / "report.html")
    page = " ".join((tmp_path / "report.html").read_text("utf-8").split())
    assert "asked one question about every image" in page
    assert "prior<small>synthetic prior (no human masks)</small>" in page
    assert "Cl. error" not in page
    assert "one label for each whole image" not in page


# --- slides ---


def test_slides_end_in_outlines_named_by_the_structure(shipped, tmp_path, capsys):
    make_slide(tmp_path / "s.tif", (700, 600), 0.5, (box("tissue", 100, 100, 500, 400),))
    out = tmp_path / "out"
    run(capsys, "slides", "predict", shipped, tmp_path / "s.tif", "--out", out, "--device", "cpu", "--no-progress")
    record = json.loads((out / "s" / "slide.json").read_text())
    assert (record["class"], record["probabilities"], record["uncertainty"]) == (None, None, None)
    assert (record["roi_class"], record["model"]["classes"]) == (None, [])
    assert record["roi"]["share"] == pytest.approx(1)
    assert record["settings"]["mpp"] == 1.0
    features, _ = read_geojson(out / "s" / "regions.geojson")
    assert [f.label for f in features] == ["disc"]
    assert features[0].measurements["Probability"] == pytest.approx(P, abs=0.5 / 255)
    row = pd.read_csv(out / "slides.csv").iloc[0]
    assert pd.isna(row["class"])
    assert not any(name.startswith("prob_") for name in row.index)
    with pytest.raises(InputError, match="--empty-class normal: prior:discs has no classes; leave --empty-class out"):
        histoloc.predict_slides(Path(shipped), [tmp_path / "s.tif"], tmp_path / "e", empty_class="normal", device="cpu")


def test_the_viewer_shows_the_share_of_the_tissue(shipped, tmp_path):
    pytest.importorskip("starlette")
    from histoloc.viewer.catalog import Catalog

    make_slide(tmp_path / "s.tif", (700, 600), 0.5, (box("tissue", 100, 100, 500, 400),))
    histoloc.predict_slides(Path(shipped), [tmp_path / "s.tif"], tmp_path / "out", device="cpu", progress=False)
    (item,) = Catalog([tmp_path / "out"]).to_json()["items"]
    (entry,) = item["entries"]
    assert (entry["label"], entry["probabilities"], entry["score_of"]) == (None, {}, "ROI of tissue")
    assert entry["score"] == pytest.approx(1)
    assert ["Learned from", "synthetic prior (no human masks)"] in entry["facts"]
