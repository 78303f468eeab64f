"""The viewer over evaluations of plain images, and the parts it is made of."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from scipy import ndimage
from skimage.draw import polygon2mask
from starlette.testclient import TestClient

from histoloc.data.images import write_map, write_mask
from histoloc.viewer.app import make_app
from histoloc.viewer.catalog import Catalog
from histoloc.viewer.tiles import finest_level, mask_outlines, tile_box

WIDTH, HEIGHT = 300, 200


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """An evaluation of three images: one with all, one without truth and kept map, one that is gone."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "run" / "evaluation" / "test"
    for name in ("one", "two"):
        Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[20:60, 30:90] = True
    write_mask(tmp_path / "truth.png", mask)
    roi = np.where(mask, 0.8, 0.2).astype(np.float32)
    write_map(folder / "images" / "00000_one_map.png", roi)
    write_mask(folder / "images" / "00000_one_mask.png", roi >= 0.5)
    rows = [
        ["one.png", "benign", "benign", 0.9, 0.1, "00000_one", tmp_path / "one.png", tmp_path / "truth.png"],
        ["two.png", "benign", "malignant", 0.05, 0.95, "", tmp_path / "two.png", ""],
        ["gone.png", "benign", "malignant", 0.4, 0.6, "../../secret", tmp_path / "gone.png", ""],
    ]
    columns = ["name", "label", "predicted", "prob_benign", "prob_malignant", "file", "image", "mask"]
    frame = pd.DataFrame(rows, columns=columns).assign(threshold=0.5)
    frame.to_csv(folder / "per_image.csv", index=False)
    (folder / "metrics.json").write_text(json.dumps({"method": "gap", "run": "run", "n_images": 3, "metrics": {}}))
    return tmp_path / "run"


def client(*folders: Path) -> TestClient:
    return TestClient(make_app(Catalog(folders)), base_url="http://localhost")


def test_images_with_map_truth_and_outlines(run: Path) -> None:
    browser = client(run)
    result = browser.get("/api/list").json()
    assert result["models"] == [{"name": "run", "title": "gap"}]
    items = {item["name"]: item for item in result["items"]}
    assert list(items) == ["two.png", "one.png", "gone.png"]
    (one,), (two,), (gone,) = (items[name]["entries"] for name in ("one.png", "two.png", "gone.png"))
    assert one["map"] == {"width": WIDTH, "height": HEIGHT, "scale": 1.0, "threshold": 0.5}
    assert (one["label"], one["score"], one["truth"], one["regions"]) == ("benign", 0.9, True, True)
    assert (two["map"], two["truth"], two["regions"]) == (None, False, False)
    assert "no such file" in gone["problem"] or "gone.png" in gone["problem"]
    tile = np.asarray(Image.open(io.BytesIO(browser.get(f"/tiles/{one['key']}/map/1/0_0").content)))
    assert tile.shape == (200, 256)
    assert set(np.unique(tile)) == {51, 204}
    (outline,) = browser.get(f"/api/outlines/{one['key']}").json()["features"]
    assert shapely.Polygon(*[outline["geometry"]["coordinates"][0]]).area == pytest.approx(40 * 60, abs=1)
    assert outline["properties"]["measurements"] == {"Area px": 2400, "Probability": 0.8}
    (truth,) = browser.get(f"/api/truth/{one['key']}").json()["features"]
    assert shapely.box(*shapely.Polygon(truth["geometry"]["coordinates"][0]).bounds).bounds == (30, 20, 90, 60)
    assert browser.get(f"/tiles/{gone['key']}/picture/0/0_0").status_code == 404
    assert browser.get(f"/tiles/{two['key']}/map/0/0_0").status_code == 404


def test_several_evaluations_of_one_split_are_told_apart(run: Path) -> None:
    first = run / "evaluation" / "test"
    for name, threshold in (("test-threshold0.4", 0.4), ("test-threshold0.3", 0.3)):
        other = Path(shutil.copytree(first, first.with_name(name)))
        content = json.loads((other / "metrics.json").read_text()) | {"split": "test"}
        content["identity"] = {"table": "t.csv", "content": "c0ffee", "split": "test", "threshold": threshold}
        (other / "metrics.json").write_text(json.dumps(content))
        pd.read_csv(other / "per_image.csv").assign(threshold=threshold).to_csv(other / "per_image.csv", index=False)
    content = json.loads((first / "metrics.json").read_text()) | {"split": "test"}
    content["identity"] = {"table": "t.csv", "content": "c0ffee", "split": "test"}
    (first / "metrics.json").write_text(json.dumps(content))
    items = {item["name"]: item["entries"] for item in client(run).get("/api/list").json()["items"]}
    assert len(items) == 9
    thresholds = {}
    for name in ("one.png", "one.png (test, cut at 0.40)", "one.png (test, cut at 0.30)"):
        (entry,) = items[name]
        thresholds[dict(entry["facts"])["Evaluation"]] = entry["map"]["threshold"]
    assert thresholds == {"test": 0.5, "test, cut at 0.40": 0.4, "test, cut at 0.30": 0.3}
    assert len({entry["key"] for entries in items.values() for entry in entries}) == 9


def test_a_replaced_image_gets_another_key(run: Path) -> None:
    browser = client(run)
    before = {entry["key"] for item in browser.get("/api/list").json()["items"] for entry in item["entries"]}
    assert len(before) == 3
    assert all(len(key) == 16 and set(key) <= set("0123456789abcdef") for key in before)


@pytest.mark.parametrize(
    ("host", "answered"),
    [
        ("localhost", True),
        ("localhost:8000", True),
        ("127.0.0.1:8000", True),
        ("192.168.1.7:8000", True),
        ("[::1]:8000", True),
        ("viewer.hospital.org", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("localhost:80:80", False),
        ("localhost@evil.example", False),
        ("", False),
    ],
)
def test_only_own_host_names_are_answered(run: Path, host: str, answered: bool) -> None:
    browser = TestClient(make_app(Catalog([run]), "viewer.hospital.org"))
    assert (browser.get("/", headers={"host": host}).status_code == 200) == answered


def test_headers_keep_strangers_out(run: Path) -> None:
    for address in ("/", "/static/main.js", "/api/list", "/absent"):
        headers = client(run).get(address).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"].startswith("default-src 'self'")
        assert "unsafe" not in headers["content-security-policy"]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 2000), st.integers(1, 2000))
def test_tiles_cover_each_level_once(width: int, height: int) -> None:
    finest = finest_level(width, height)
    for level in range(finest + 1):
        factor = 2 ** (finest - level)
        across, down = -(-width // factor), -(-height // factor)
        covered = np.zeros((down, across), int)
        for row in range(-1, down // 256 + 2):
            for column in range(-1, across // 256 + 2):
                if (box := tile_box(width, height, level, column, row)) is not None:
                    x, y, w, h, result = box
                    assert result == factor
                    covered[y : y + h, x : x + w] += 1
        assert (covered == 1).all()
    assert tile_box(width, height, 0, 0, 0) is not None
    assert tile_box(width, height, 0, 1, 0) is None


@settings(max_examples=80, deadline=None)
@given(hnp.arrays(bool, (14, 17)))
def test_outlines_hold_their_pixels(mask: Any) -> None:
    features = mask_outlines(mask, "x")
    parts, count = ndimage.label(mask)
    large = np.isin(parts, [i for i in range(1, count + 1) if (parts == i).sum() >= 4])
    drawn = np.zeros_like(mask)
    for feature in features:
        assert isinstance(feature.geometry, shapely.Polygon)
        for ring in (feature.geometry.exterior, *feature.geometry.interiors):
            drawn ^= polygon2mask(mask.shape, np.asarray(ring.coords)[:, ::-1] - 0.5)  # rows, columns of pixel centres
    np.testing.assert_array_equal(drawn, large)
    assert sum(feature.measurements["Area px"] for feature in features) == large.sum()
