"""Rows of a table that are regions of a slide: pixels and truth are read on the fly, in training and evaluation."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from shapely import Polygon

from factory import box, make_slide
from histoloc.data.pixels import read_pixels, read_truth
from histoloc.data.table import read_table
from histoloc.errors import InputError
from histoloc.evaluation import evaluate
from histoloc.slides.annotations import rasterise, read_annotations
from histoloc.slides.geojson import Feature, write_geojson
from histoloc.slides.reader import open_slide
from histoloc.training import train

MPP = 0.5


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """Eight regions of 64 px of one slide at 0.5 µm/px, two at twice the pixel size; metastasis on the left half."""
    folder = tmp_path_factory.mktemp("slide")
    tissue, metastasis = box("tissue", 0, 0, 1024, 512), box("metastasis", 32, 32, 448, 448)
    make_slide(folder / "slide.tif", (1024, 512), MPP, [tissue, metastasis])
    write_geojson(folder / "slide.geojson", [Feature(Polygon(metastasis.vertices), "metastasis")])
    rows = []
    for number, (x, y) in enumerate((x, y) for x in (0, 128, 512, 768) for y in (0, 192)):
        label = "tumor" if x < 480 else "normal"
        split = "train" if number % 2 == 0 else "valid"
        rows.append(["slide.tif", label, "slide.geojson", split, "", MPP, x, y, 64, 64])
    rows += [["slide.tif", "tumor", "slide.geojson", "test", "", 2 * MPP, 128, 128, 64, 64]]
    rows += [["slide.tif", "normal", "slide.geojson", "test", "", 2 * MPP, 640, 128, 64, 64]]
    names = ["image", "label", "mask", "split", "group", "mpp", "x", "y", "width", "height"]
    pd.DataFrame(rows, columns=names).to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"


def test_pixels_and_truth_are_those_of_the_region(table):
    slide = open_slide(table.parent / "slide.tif")
    annotations = read_annotations(table.parent / "slide.geojson")
    for sample in read_table(table).samples:
        assert sample.x is not None
        assert sample.y is not None
        assert sample.mpp is not None
        scale = sample.mpp / MPP
        assert np.array_equal(read_pixels(sample), slide.read(sample.x, sample.y, 64, 64, sample.mpp))
        truth = read_truth(sample)
        assert truth is not None
        assert np.array_equal(truth, rasterise(annotations, sample.x, sample.y, 64, 64, scale))
    first = read_truth(read_table(table).samples[0])
    assert first is not None
    # The square begins at 32, 32: a quarter of the first region.
    assert first.mean() == 0.25
    assert first[32:, 32:].all()


def test_train_and_evaluate_on_regions(table, tiny, tmp_path):
    run = train(tiny("maxmin", table, epochs=1), tmp_path / "run", progress=False)
    result = evaluate(run, table, split="test", progress=False)
    assert result.images == 2
    rows = pd.read_csv(run / "evaluation" / "test" / "per_image.csv", keep_default_na=False)
    for _, row in rows.iterrows():
        assert (run / "evaluation" / "test" / row["image"]).is_file()
        assert (run / "evaluation" / "test" / row["mask"]).is_file()


def test_a_supervised_method_learns_from_outlines(table, tiny, tmp_path):
    run = train(tiny("unet", table, epochs=1), tmp_path / "run", progress=False)
    assert (run / "model" / "config.json").is_file()


def test_a_region_that_leaves_the_slide(table):
    rows = pd.read_csv(table)
    rows.loc[0, "x"] = 1000
    rows.to_csv(table.with_name("outside.csv"), index=False)
    sample = read_table(table.with_name("outside.csv")).samples[0]
    with pytest.raises(InputError, match="the region ends at 1064, 64 and the slide at 1024, 512"):
        read_pixels(sample)


def test_outlines_that_are_absent(table):
    rows = pd.read_csv(table)
    rows.loc[0, "mask"] = "other.geojson"
    rows.to_csv(table.with_name("absent.csv"), index=False)
    with pytest.raises(InputError, match=r"other\.geojson: there is no such file"):
        read_table(table.with_name("absent.csv"))


def test_a_slide_without_scale_gets_it_from_the_table(table, tmp_path):
    make_slide(tmp_path / "plain.tif", (256, 256), None, [box("tissue", 0, 0, 128, 256)])
    row = ["plain.tif", "tumor", "", "train", "", 1.0, 0, 0, 64, 64]
    names = ["image", "label", "mask", "split", "group", "mpp", "x", "y", "width", "height"]
    pd.DataFrame([row], columns=names).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(InputError, match="give slide_mpp in the table"):
        read_pixels(read_table(tmp_path / "t.csv").samples[0])
    pd.DataFrame([[*row, 0.5]], columns=[*names, "slide_mpp"]).to_csv(tmp_path / "t.csv", index=False)
    result = read_pixels(read_table(tmp_path / "t.csv").samples[0])
    assert np.array_equal(result, open_slide(tmp_path / "plain.tif", mpp=0.5).read(0, 0, 64, 64, 1.0))
