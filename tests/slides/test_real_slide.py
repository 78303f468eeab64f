"""The one real slide: tiled with an outline, trained on as a table of regions, predicted on."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from shapely import Polygon

import histoloc
from histoloc.cli.main import main
from histoloc.data.images import read_image, read_map, write_picture
from histoloc.data.pixels import read_pixels, read_truth
from histoloc.data.table import read_table
from histoloc.evaluation import evaluate
from histoloc.slides.geojson import Feature, write_geojson
from histoloc.slides.reader import open_slide
from histoloc.training import train

# The folded strip of epithelium, roughly, in pixels of level 0.
EPITHELIUM = Polygon(
    [
        (1048, 660), (1320, 600), (1600, 600), (1620, 900), (1380, 1160), (1272, 1440), (1200, 1680), (1320, 1860),
        (1500, 1680), (1820, 1300), (1880, 1400), (1380, 2000), (1400, 2180), (1160, 2560), (1072, 2240), (1128, 1680),
        (820, 2760), (640, 2960), (540, 2960), (760, 2320), (1080, 1520), (1160, 1040),
    ]
)  # fmt: skip
SIDE = 128


@pytest.fixture(scope="module")
def slide(shared_data) -> Path:
    path = shared_data / "slides" / "CMU-1-Small-Region.svs"
    if not path.is_file():
        pytest.skip("no real slide")
    return path


@pytest.fixture(scope="module")
def table(slide, tmp_path_factory) -> Path:
    """By the command; the tiles of the lower part of the slide are then the validation set."""
    folder = tmp_path_factory.mktemp("cmu")
    write_geojson(folder / "epithelium.geojson", [Feature(EPITHELIUM, "epithelium")])
    (folder / "list.csv").write_text(f"slide,label,annotation\n{slide},epithelium,epithelium.geojson\n")
    words = ["--out", str(folder / "tiles.csv"), "--mpp", "1.0", "--size", str(SIDE), "--roi", "0.3"]
    more = ["--stride", "64", "--tissue", "0.3", "--empty-class", "dermis", "--valid", "0", "--test", "0"]
    main(["data", "slides", str(folder / "list.csv"), *words, *more, "--workers", "1"])
    rows = pd.read_csv(folder / "tiles.csv", keep_default_na=False)
    rows["group"] = ""
    rows.loc[rows["y"] >= 1500, "split"] = "valid"
    rows.to_csv(folder / "tiles.csv", index=False)
    return folder / "tiles.csv"


def test_tiles_are_labelled_by_the_outline(table, slide):
    samples = read_table(table).samples
    assert {sample.image for sample in samples} == {slide.resolve()}
    with open_slide(slide) as opened:
        scale = 1.0 / opened.mpp
    for split in ("train", "valid"):
        labels = [sample.label for sample in samples if sample.split == split]
        assert min(labels.count("dermis"), labels.count("epithelium")) >= 4
    for sample in samples[::5]:
        assert sample.x is not None
        assert sample.y is not None
        side = SIDE * scale
        box = Polygon([(sample.x + i * side, sample.y + j * side) for i, j in ((0, 0), (1, 0), (1, 1), (0, 1))])
        share = EPITHELIUM.intersection(box).area / box.area
        truth = read_truth(sample)
        assert truth is not None
        assert truth.mean() == pytest.approx(share, abs=0.01)
        assert truth.any() == (sample.label == "epithelium")


def test_trained_on_as_regions_and_predicted_on(table, slide, tiny, tmp_path):
    run = train(tiny("gap", table, epochs=1, batch=16), tmp_path / "run", progress=False)
    split = read_table(table).split("valid")
    assert evaluate(run, table, split="valid", empty_class="dermis", progress=False).images == len(split)

    sample = next(sample for sample in split if sample.label == "epithelium")
    assert sample.x is not None
    assert sample.y is not None
    with open_slide(slide) as opened:
        cut = opened.read(sample.x, sample.y, SIDE, SIDE, 1.0)
    assert np.array_equal(cut, read_pixels(sample))
    write_picture(tmp_path / "tile.png", cut)
    main(["predict", str(run), str(tmp_path / "tile.png"), "--out", str(tmp_path / "found"), "--device", "cpu"])
    wanted = histoloc.load(run, "cpu").predict(read_pixels(sample))
    assert np.abs(read_map(tmp_path / "found" / "tile_map.png") - wanted.roi).max() <= 0.5 / 255 + 1e-6
    record = pd.read_csv(tmp_path / "found" / "predictions.csv").iloc[0]
    assert wanted.probabilities is not None
    assert record["class"] == wanted.label
    assert record["prob_dermis"] == pytest.approx(wanted.probabilities[0], abs=1e-6)

    out = ["--out", str(tmp_path / "maps"), "--empty-class", "dermis", "--device", "cpu"]
    main(["slides", "predict", str(run), str(slide), *out])
    answer = json.loads((tmp_path / "maps" / slide.stem / "slide.json").read_text())
    assert answer["roi"]["tissue_mm2"] > 0.2
    assert read_image(tmp_path / "maps" / slide.stem / "overview.png").std() > 5
