"""`histoloc evaluate` on folders of heatmaps as people have them."""

import json
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histoloc.cli.main import main
from histoloc.data.images import read_mask, write_mask


@pytest.fixture
def scene(tmp_path):
    """A table of four images in two folders with equal names, and their masks as heatmaps in the same folders."""
    rng = np.random.default_rng(0)
    rows = []
    for folder, label in (("a", "x"), ("b", "y")):
        for name in ("1", "2"):
            image, mask = tmp_path / "images" / folder / f"{name}.png", tmp_path / "masks" / folder / f"{name}.png"
            for path in (image, mask):
                path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(image)
            write_mask(mask, rng.random((40, 50)) < 0.4)
            map_file = tmp_path / "maps" / folder / f"{name}.npy"
            map_file.parent.mkdir(parents=True, exist_ok=True)
            np.save(map_file, read_mask(mask).astype(np.float32))
            rows.append({"image": f"images/{folder}/{name}.png", "label": label, "mask": f"masks/{folder}/{name}.png"})
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    return tmp_path


def evaluated(folder: Path, capsys, code: int = 0) -> tuple[dict, list[str]]:
    """metrics.json, and what was printed as failed."""
    try:
        main(["evaluate", str(folder / "maps"), "--data", str(folder / "t.csv"), "--out", str(folder / "out")])
        ended = 0
    except SystemExit as error:
        ended = error.code
    errors = capsys.readouterr().err
    assert ended == code, errors
    path = folder / "out" / "metrics.json"
    metrics = json.loads(path.read_text()) if path.exists() else {}
    return metrics, [line for line in errors.splitlines() if line.startswith(("failed", "histoloc"))]


def test_equal_names_keep_their_folders_and_all_rows_of_a_table_without_splits_are_measured(scene, capsys):
    metrics, failed = evaluated(scene, capsys)
    assert (metrics["n_images"], metrics["metrics"]["f1_plus"]["value"], metrics["split"]) == (4, 100, "all")
    assert failed == []
    (scene / "maps" / "predictions.csv").write_text(
        "image,class\n/elsewhere/images/a/1.png,x\n/elsewhere/images/a/2.png,y\nb/1.png,y\nb/2.png,y\n"
    )
    shutil.rmtree(scene / "out")
    assert evaluated(scene, capsys)[0]["metrics"]["cl_error"]["value"] == 25


def test_heatmaps_are_found_whatever_their_ending_case_and_unicode_form(scene, capsys):
    text = (scene / "t.csv").read_text().replace("a/1.png", unicodedata.normalize("NFC", "a/é.png"))
    (scene / "t.csv").write_text(text.replace("masks/a/é", "masks/a/1"))
    (scene / "images/a/1.png").rename(scene / "images/a" / unicodedata.normalize("NFC", "é.png"))
    maps = scene / "maps"
    (maps / "a/1.npy").rename(maps / "a" / (unicodedata.normalize("NFD", "é") + ".NPY"))
    (maps / "b").rename(maps / "B")
    np.save(maps / "a/2_map.npy", np.load(maps / "a/2.npy"))
    (maps / "a/2.npy").unlink()
    metrics, failed = evaluated(scene, capsys)
    assert (metrics["n_images"], metrics["metrics"]["f1_plus"]["value"], failed) == (4, 100, [])


def test_bad_heatmaps_are_listed_and_the_others_measured(scene, capsys):
    maps = scene / "maps"
    (maps / "a/1.npy").write_bytes(b"\x93NUMPY\x01\x00 broken")
    np.save(maps / "b/1.npy", np.zeros((9, 9), dtype=np.float32))
    (maps / "b/2.npy").unlink()
    metrics, failed = evaluated(scene, capsys, code=1)
    assert [line.split(": ")[1] for line in failed] == ["images/a/1.png", "images/b/1.png", "images/b/2.png"]
    assert "9x9 pixels, its image 50x40" in failed[1]
    assert failed[2].endswith("there is no heatmap in maps; add it")
    assert (metrics["n_images"], metrics["metrics"]["f1_plus"]["value"]) == (1, 100)
    assert list(metrics["failed"]) == ["images/a/1.png", "images/b/1.png", "images/b/2.png"]
    assert "3 of 4 images have no heatmap that can be used: not measured" in metrics["notes"]
    assert len(pd.read_csv(scene / "out" / "per_image.csv")) == 1


def test_without_any_usable_heatmap_it_is_an_error(scene, capsys):
    for file in (scene / "maps").rglob("*.npy"):
        file.write_bytes(b"x")
    metrics, failed = evaluated(scene, capsys, code=2)
    assert metrics == {}
    assert "4 problems" in failed[0]
    shutil.rmtree(scene / "maps")
    (scene / "maps").mkdir()
    _, failed = evaluated(scene, capsys, code=2)
    assert "has no heatmap for any of 4 images; name them as the images (1.npy, 1.png, 1.tif, 1.tiff)" in failed[0]
