"""`histoloc slides predict` on slides of 10,000 and 40,000 pixels a side, and killed for real."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from factory import Region, box, make_slide

MPP = 0.25


def islands(side: int) -> list[Region]:
    """Tissue along the diagonal, with a metastasis in each piece: 8 pieces of 1,200 px in a slide of 10,000."""
    piece = side // 8
    regions = []
    for i in range(8):
        at, wide = i * piece + 20, piece * 0.96
        regions.append(box("tissue", at, at, wide, wide))
        regions.append(box("metastasis", at + wide / 4, at + wide / 4, wide / 3, wide / 3))
    return regions


def command(model: Path, slide: Path, out: Path) -> list[str]:
    code = "import sys; from histoloc.cli.main import main; main(sys.argv[1:])"
    return [sys.executable, "-c", code, "slides", "predict", str(model), str(slide), "--out", str(out),
            "--device", "cpu"]  # fmt: skip


@pytest.fixture(scope="module")
def stain(tiny, tmp_path_factory) -> Path:
    """A model whose evidence is as fine as the image, so that maps are as large as they get."""
    from dataclasses import replace

    from histoloc.model_folder import LearnedRange, load_model, save_model
    from histoloc.training import train

    folder = train(tiny("stain"), tmp_path_factory.mktemp("runs") / "stain", progress=False)
    method, config = load_model(folder)
    # Blue minus red is -.10 on the drawn tissue and .08 on metastases.
    learned = LearnedRange((0.0,), (30.0,), (0.1,), 1)
    config = replace(config, mpp=MPP, extent=None, learned=learned, input=replace(config.input, small_side=0))
    save_model(folder / "model", method.state_dict(), config)
    return folder


@pytest.mark.slow
def test_memory_does_not_grow_with_the_slide(stain, tmp_path):
    peaks = {}
    for side in (10_000, 40_000):
        make_slide(tmp_path / f"s{side}.tif", (side, side), MPP, islands(side))
        subprocess.run(command(stain, tmp_path / f"s{side}.tif", tmp_path / "out"), check=True)
        record = json.loads((tmp_path / f"out/s{side}/slide.json").read_text())
        assert record["map"]["width"] == side // 4
        assert 0.05 < record["roi"]["share"] < 0.5
        peaks[side] = record["cost"]["peak_memory_mb"]
        print(side, record["cost"])
    assert peaks[40_000] < 2000
    assert peaks[40_000] < 1.2 * peaks[10_000]


@pytest.mark.slow
def test_a_killed_process_goes_on_where_it_was(stain, tmp_path):
    make_slide(tmp_path / "s.tif", (8000, 8000), MPP, islands(8000))
    subprocess.run(command(stain, tmp_path / "s.tif", tmp_path / "whole"), check=True)
    process = subprocess.Popen(command(stain, tmp_path / "s.tif", tmp_path / "killed"))

    def begun() -> bool:
        return any(file.stat().st_size > 2_000_000 for file in (tmp_path / "killed/s/work").glob("evidence-*.bin"))

    for _ in range(600):
        if begun():
            break
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert begun()
    assert not (tmp_path / "killed/s/slide.json").exists()
    subprocess.run(command(stain, tmp_path / "s.tif", tmp_path / "killed"), check=True)
    assert json.loads((tmp_path / "killed/s/slide.json").read_text())["roi"]["regions"] >= 8
    for name in ("map.ome.tif", "regions.geojson", "tiles.csv", "overview.png"):
        assert (tmp_path / "killed/s" / name).read_bytes() == (tmp_path / "whole/s" / name).read_bytes(), name
