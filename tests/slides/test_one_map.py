"""The map of an image is the map of its slide: `predict` and `slides predict` on the same pixels, of every method."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image

from histoloc.cli.main import main
from histoloc.data.images import read_map, read_mask
from histoloc.data.table import write_table
from histoloc.datasets.synthetic.dataset import render
from histoloc.evaluation import evaluate
from histoloc.maps import place
from histoloc.methods import METHODS
from histoloc.metrics import dice

SIZE = (281, 330)  # 4 x 5 tiles of 64 px at the model's 1 µm/px, and a rest
MARGIN = 64


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> tuple[Path, NDArray[np.bool_]]:
    """A large scene of glands, and its mask."""
    folder = tmp_path_factory.mktemp("scene")
    scene = render("malignant", seed=9, index=3, height=SIZE[0], width=SIZE[1])
    Image.fromarray(scene.image).save(folder / "scene.png")
    Image.fromarray(((scene.instances > 0) * 255).astype(np.uint8)).save(folder / "truth.png")
    return folder / "scene.png", scene.instances > 0


@pytest.fixture(scope="module")
def run(tiny: Callable[..., Any], prior_folder: Path, tmp_path_factory) -> Callable[[str], Path]:
    from histoloc.training import train

    folder = tmp_path_factory.mktemp("trained")

    def trained(method: str) -> Path:
        if not (folder / method).exists():
            options = {"stop_loss": 99.0} if method == "erase" else {}
            config = tiny(method, epochs=1, backbone="test_efficientnet", options=options)
            teachers = (prior_folder / "discs",) if METHODS[method].taught else ()
            train(replace(config, teachers=teachers), folder / method, progress=False)
        return folder / method

    return trained


def slide_map(folder: Path, size: tuple[int, int]) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """The map of a slide at the pixels of its level 0, and what slide.json says."""
    record = json.loads((folder / "slide.json").read_text())
    cells = tifffile.imread(folder / "map.ome.tif").astype(np.float32) / 255
    cell = round(record["map"]["mpp"] / record["mpp"])
    return place(torch.from_numpy(cells)[None, None], cell, size)[0, 0].numpy(), record


@pytest.mark.parametrize("method", METHODS)
def test_predict_and_slides_predict_give_one_map(method, run, image, tmp_path):
    path, _ = image
    common = [str(run(method)), str(path), "--device", "cpu"]
    main(["predict", *common, "--out", str(tmp_path / "image"), "--mpp", "1"])
    main(["slides", "predict", *common, "--out", str(tmp_path / "slide"), "--slide-mpp", "1"])
    row = pd.read_csv(tmp_path / "image" / "predictions.csv").iloc[0]
    whole, record = slide_map(tmp_path / "slide" / "scene", SIZE)
    inner = np.s_[MARGIN:-MARGIN, MARGIN:-MARGIN]
    own = read_map(tmp_path / "image" / "scene_map.png")
    assert np.abs(own - whole)[inner].max() <= 0.02
    mask = read_mask(tmp_path / "image" / "scene_mask.png")
    other = whole >= record["map"]["threshold"]
    assert dice(mask[inner], other[inner]) >= 98 or not (mask | other)[inner].any()
    assert row["range"] == record["calibration"]["range"]
    assert row["scale"] == "1 µm/px in tiles"
    if METHODS[method].classifies:
        assert row["class"] == record["class"]
        for name, p in record["probabilities"].items():
            assert row[f"prob_{name}"] == pytest.approx(p, abs=0.01)


def test_evaluate_measures_the_map_of_the_slide(run, image, tmp_path):
    path, truth = image
    rows = pd.DataFrame({"image": [str(path)], "label": ["malignant"], "mask": [str(path.with_name("truth.png"))]})
    write_table(tmp_path / "t.csv", rows.assign(split="test", group="", mpp=1.0))
    metrics = evaluate(run("gap"), tmp_path / "t.csv", device="cpu", progress=False, out=tmp_path / "out")
    main(["slides", "predict", str(run("gap")), str(path), "--device", "cpu", "--out", str(tmp_path / "slide"),
          "--slide-mpp", "1"])  # fmt: skip
    whole, record = slide_map(tmp_path / "slide" / "scene", SIZE)
    assert metrics.f1_plus.value == pytest.approx(float(dice(whole >= record["map"]["threshold"], truth)), abs=0.5)


def test_methods_that_depend_on_the_tile_say_so(run, image, tmp_path, capsys):
    main(["predict", str(run("erase")), str(image[0]), "--device", "cpu", "--out", str(tmp_path / "o"), "--mpp", "1"])
    assert "ERASE on an image in tiles: what later rounds see depends on" in capsys.readouterr().out


def test_the_per_image_rule_is_refused_on_slides_and_named_on_images(run, image, tmp_path, capsys):
    arguments = [str(run("gap")), str(image[0]), "--device", "cpu", "--range", "image"]
    with pytest.raises(SystemExit, match="2"):
        main(["slides", "predict", *arguments, "--out", str(tmp_path / "s"), "--slide-mpp", "1"])
    assert "--range image: stretches every image" in capsys.readouterr().err
    main(["predict", *arguments, "--out", str(tmp_path / "o"), "--mpp", "1"])
    row = pd.read_csv(tmp_path / "o" / "predictions.csv").iloc[0]
    assert (row["range"], row["scale"]) == ("image", "1 µm/px"), "in one piece: it depends on the whole image"


def test_another_class_is_chosen_by_name(run, image, tmp_path, capsys):
    arguments = [str(run("gap")), str(image[0]), "--device", "cpu", "--mpp", "1"]
    main(["predict", *arguments, "--class", "all", "--out", str(tmp_path / "all")])
    rows = pd.read_csv(tmp_path / "all" / "predictions.csv").set_index("map_class")
    assert sorted(rows.index) == ["benign", "malignant"]
    maps = {name: read_map(tmp_path / "all" / f"scene_{name}_map.png") for name in rows.index}
    assert np.abs(maps["benign"] - maps["malignant"]).max() > 0.05
    for name in rows.index:
        main(["predict", *arguments, "--class", name, "--out", str(tmp_path / name)])
        np.testing.assert_array_equal(read_map(tmp_path / name / "scene_map.png"), maps[name])
        main(["slides", "predict", *arguments[:4], "--slide-mpp", "1", "--class", name, "--out",
              str(tmp_path / f"s{name}")])  # fmt: skip
        whole, record = slide_map(tmp_path / f"s{name}" / "scene", SIZE)
        assert record["roi_class"] == name
        assert np.abs(whole - maps[name])[MARGIN:-MARGIN, MARGIN:-MARGIN].max() <= 0.02
    main(["predict", *arguments, "--empty-class", "benign", "--out", str(tmp_path / "e")])
    assert pd.read_csv(tmp_path / "e" / "predictions.csv")["map_class"].tolist() == ["malignant"]
    for wrong, words in (("nobody", "is not a class of the model"), ("benign", "have no ROI, and so no map")):
        with pytest.raises(SystemExit, match="2"):
            main(["predict", *arguments, "--empty-class", "benign", "--class", wrong, "--out", str(tmp_path / "x")])
        assert words in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["predict", str(run("stain")), *arguments[1:], "--class", "benign", "--out", str(tmp_path / "x")])
    assert "has one map for all classes" in capsys.readouterr().err
