"""The page's own logic in node, and the page itself in a headless browser."""

import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from PIL import Image

from histoloc.data.images import write_map, write_mask
from histoloc.pictures import HEAT
from histoloc.viewer.app import make_app
from histoloc.viewer.catalog import Catalog
from histoloc.viewer.serve import listen
from histoloc.viewer.tiles import finest_level

NAME = "<img src=x onerror=document.title='taken'>.png"


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the page's functions answer; skips where there is no node."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node: the page's functions are not tested")
    copied = tmp_path_factory.mktemp("page")
    (copied / "package.json").write_text('{"type": "module"}')
    with as_file(files("histoloc.viewer") / "static") as folder:
        for file in folder.glob("*.js"):
            shutil.copy(file, copied)
    script = Path(__file__).with_name("page_checks.mjs")
    done = subprocess.run([node, script, copied], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_heat_is_viridis(said: dict[str, Any]) -> None:
    expected = 255 * HEAT(np.arange(256))[:, :3]
    np.testing.assert_allclose(said["viridis"], expected, atol=6.5)


def test_colours_start_at_the_threshold(said: dict[str, Any]) -> None:
    rgba = np.reshape(said["rgba"], (4, 4))  # of 0, 127, 128, 255 cut at 0.5
    assert rgba[:, 3].tolist() == [0, 0, 128, 128]
    assert rgba[3, :3].tolist() == [253, 231, 37]
    assert said["alpha"] == [0, 0.7, 0.4, 0.8]


def test_scale_bars_are_round_and_fit(said: dict[str, Any]) -> None:
    assert [bar["text"] for bar in said["bars"]] == ["20 µm", "100 µm", "500 µm", "1 cm"]
    for bar, per_pixel in zip(said["bars"], [0.25, 1, 3.7, 100], strict=True):
        assert bar["pixels"] * per_pixel == pytest.approx(bar["length"])
        assert 60 <= bar["pixels"] <= 160
    assert said["lengths"] == ["500 nm", "20 µm", "200 µm", "2 mm", "2 cm"]
    assert said["measurements"] == [
        ["Area", "0.123 mm²"],
        ["Area", "120 µm²"],
        ["Probability", "0.99"],
        ["Area", "2,400 pixels"],
    ]


def test_keys_and_sliders(said: dict[str, Any]) -> None:
    assert said["layers"] == {"picture": True, "heat": False, "outlines": True, "uncertainty": False, "truth": False}
    assert said["opacity"] == [0.6, 1, 0]
    assert said["threshold"] == [None, 0.45, 0.3, None]
    assert said["untouched"]
    assert said["keys"] == ["next", "previous", "zoom-in", "zoom-out", "pan-up", "help", None]
    assert said["typing"] == [None, None, "toggle-heat", None]
    assert said["doubled"] == 0


def test_the_list_is_sorted_and_filtered(said: dict[str, Any]) -> None:
    assert said["listed"] == [["b10", "b9", "a"], ["b9", "b10", "a"], ["a", "b9", "b10"], ["b10"]]


def test_the_page_asks_for_the_servers_tiles(said: dict[str, Any]) -> None:
    sizes = [(1, 1), (256, 10), (257, 10), (3000, 2100), (100000, 5)]
    assert said["finest"] == [finest_level(*size) for size in sizes]
    assert said["levels"] == [4, 4, 3, 2, 0]
    assert said["seen"] == [
        {"x0": 0, "y0": 64, "x1": 512, "y1": 2100, "factor": 1},
        {"x0": 128, "y0": 128, "x1": 192, "y1": 192, "factor": 2},
        None,
    ]


def test_outlines_are_found_under_the_pointer(said: dict[str, Any]) -> None:
    assert said["inside"] == [True, False]
    assert said["hits"] == [0, -1, 1, -1]  # a hole is outside; the smaller one wins
    assert said["outline"] == [2, "metastatic", [["Probability", 0.9]], {"x0": 0, "y0": 0, "x1": 100, "y1": 100}]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A running viewer of two models on one image with a hostile name."""
    folder = tmp_path_factory.mktemp("runs")
    pixels = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "image.png")
    roi = np.zeros((200, 300), np.float32)
    roi[50:150, 100:200] = 0.9
    for model in ("sem", "gap"):
        rest = folder / model / "images"
        write_map(rest / "0_map.png", roi)
        write_mask(rest / "0_mask.png", roi >= 0.5)
        row = f'"{NAME}",benign,benign,0.9,0.1,0,{folder / "image.png"},,0.4'
        header = "name,label,predicted,prob_benign,prob_malignant,file,image,mask,threshold"
        (folder / model / "per_image.csv").write_text(f"{header}\n{row}\n")
        (folder / model / "metrics.json").write_text(json.dumps({"method": model, "n_images": 1, "metrics": {}}))
    listening = listen("127.0.0.1", 0)
    config = uvicorn.Config(make_app(Catalog([folder / "sem", folder / "gap"])), log_level="critical", http="h11")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    server.should_exit = True
    thread.join()
    listening.close()


def test_the_page_in_a_browser(address: str, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium: the page is not opened")
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}",
        "--window-size=1500,950",
    ]
    command = [browser, *options, "--virtual-time-budget=5000", "--enable-logging=stderr", "--dump-dom", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    page = done.stdout
    assert len(re.findall(r'<section class="pane"', page)) == 2
    assert len(re.findall(r'<canvas class="overlay" width="\d{3}', page)) == 2
    assert page.count('class="openseadragon-container"') == 2
    assert "1 image" in page
    assert ">0.40</output>" in page  # the models' threshold
    assert "&lt;img src=x onerror=" in page  # the name is text
    assert "<title>taken" not in page
    assert '<img src="x"' not in page
    assert "Content Security Policy" not in done.stderr
    assert "Uncaught" not in done.stderr
