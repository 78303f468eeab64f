"""Anybody's heatmaps are measured as they are meant, and shown where they lie on the image."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from forms import BACK, grey, tissue, truth
from histoloc import evaluate
from histoloc.cli.main import main
from histoloc.report import read_runs
from histoloc.report.gallery import galleries


@pytest.fixture
def folder(tmp_path) -> Path:
    """A table of three images, of which the masks are the right heatmaps, and an empty folder for these."""
    for name in "abc":
        Image.fromarray(tissue()).save(tmp_path / f"{name}.png")
        Image.fromarray(grey(truth())).save(tmp_path / f"{name}_mask.png")
    rows = [f"{name}.png,{label},{name}_mask.png,test," for name, label in zip("abc", "xyx", strict=True)]
    (tmp_path / "table.csv").write_text("\n".join(["image,label,mask,split,group", *rows]))
    (tmp_path / "heat").mkdir()
    return tmp_path


def run(folder: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, dict, str]:
    """Exit code, the metrics that were written, and what was said on stderr."""
    code, out = 0, folder / "out"
    try:
        main(["evaluate", str(folder / "heat"), "--data", str(folder / "table.csv"), "--out", str(out), *flags])
    except SystemExit as stop:
        code = int(str(stop.code))
    metrics = json.loads((out / "metrics.json").read_text()) if (out / "metrics.json").is_file() else {}
    return code, metrics, capsys.readouterr().err


def right(metrics: dict) -> bool:
    return metrics["metrics"]["f1_plus"]["value"] == metrics["metrics"]["f1_minus"]["value"] == 100


DEPTHS = {
    "0 and 1.png": (np.uint8, 1, 255, 1),
    "percent.tif": (np.uint8, 100, 255, 100),
    "8 of 16 bits.png": (np.uint16, 255, 65535, 255),
    "12 of 16 bits.tif": (np.uint16, 4095, 65535, 4095),
    "0 and 1.npy": (np.uint8, 1, 255, 1),
}


@pytest.mark.parametrize("name", DEPTHS)
def test_which_number_means_1_is_asked_where_files_leave_it_open(folder, capsys, name):
    (dtype, one, full, proposal), suffix = DEPTHS[name], name[-3:]
    for stem in "abc":
        values = truth().astype(dtype) * dtype(one)
        file = folder / "heat" / f"{stem}.{suffix}"
        {"png": lambda f, v: Image.fromarray(v).save(f), "tif": tifffile.imwrite, "npy": np.save}[suffix](file, values)
    code, metrics, said = run(folder, capsys)
    assert (code, metrics) == (2, {})
    number = f"the highest number in its {8 * dtype().itemsize}-bit heatmaps is {one}"
    assert f"{number}, which may mean {one / full:.2g} or about 1; give --heatmap-max {full} for the former" in said
    assert f"or the number that means 1, as --heatmap-max {proposal}" in said
    code, metrics, _ = run(folder, capsys, "--heatmap-max", str(one))
    assert code == 0
    assert right(metrics)
    if one == 1:
        assert evaluate(folder / "heat", folder / "table.csv", heatmap_max=full).f1_plus.value == 0


def test_a_dim_heatmap_among_others_is_dim(folder, capsys):
    for name, factor in (("a", 255), ("b", 1), ("c", 0)):
        Image.fromarray(truth() * np.uint8(factor)).save(folder / "heat" / f"{name}.png")
    code, metrics, _ = run(folder, capsys)
    assert code == 0
    assert metrics["metrics"]["f1_plus"]["value"] == pytest.approx(100 / 3)


def test_only_heatmaps_have_a_number_that_means_1(folder, gap_run, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(gap_run), "--data", str(folder / "table.csv"), "--heatmap-max", "1"])
    assert stop.value.code == 2
    assert "--heatmap-max is for a folder of heatmaps" in capsys.readouterr().err
    for number in ("0", "-1", "nan", "inf"):
        with pytest.raises(SystemExit):
            main(["evaluate", "heat", "--data", "table.csv", "--heatmap-max", number])
        assert "--heatmap-max" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_the_report_shows_turned_images_upright(folder, suffix, capsys):
    for name, orientation in zip("abc", (6, 3, 7), strict=True):
        exif = Image.Exif()
        exif[0x0112] = orientation
        options: dict[str, Any] = {"tiffinfo": {274: orientation}} if suffix == "tif" else {"exif": exif, "quality": 95}
        Image.fromarray(tissue()).transpose(BACK[orientation]).save(folder / f"{name}.{suffix}", **options)
        np.save(folder / "heat" / f"{name}.npy", truth().astype(np.float32))
    table = folder / "table.csv"
    table.write_text(table.read_text().replace(".png,x", f".{suffix},x").replace(".png,y", f".{suffix},y"))
    code, metrics, said = run(folder, capsys)
    assert code == 0, said
    assert right(metrics)
    [gallery] = galleries(read_runs([folder / "out"])[0])
    assert len(gallery.rows) == 3
    for row in gallery.rows:
        assert row.image is not None
        assert not row.missing
        picture = Image.open(io.BytesIO(base64.b64decode(row.image.split(",")[1])))
        assert np.abs(np.asarray(picture).astype(int) - tissue()).mean() < 6
