"""`histoloc data camelyon16` on what goes wrong: said once, nothing half-written left, completed by a second call."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
from distributed import LocalCluster

import camelyon_root
from asap import write_asap
from factory import Region, blob, box, make_slide
from histoloc.cli.main import main
from histoloc.data.pixels import read_pixels
from histoloc.data.table import read_table
from killed import killed_at

SIZE, MPP = (512, 448), 0.25
TISSUE = box("tissue", 30, 30, 440, 400)
FLAGS = ["--size", "64", "--coarse", "3"]
TUMOUR, NORMAL = "training/tumor/tumor_001", "training/normal/normal_002"
XML = "training/lesion_annotations/tumor_001.xml"


def tumour_regions(seed: int) -> list[Region]:
    return [TISSUE, blob("metastasis", 200, 200, 110, seed), box("metastasis", 380.4, 320.6, 45, 40)]


def call(root: Path, out: Path, *flags: str) -> int:
    """The command's exit code."""
    workers = [] if "--workers" in flags else ["--workers", "1"]
    try:
        main(["data", "camelyon16", str(root), "--out", str(out), *FLAGS, *workers, *flags])
    except SystemExit as end:
        return int(str(end.code))
    return 0


def patches(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "patches.csv", keep_default_na=False, dtype=str)


def parts(out: Path) -> dict[str, int]:
    """When each part was written."""
    whole = [p for p in out.glob("work/*/parts/*.json") if not p.name.endswith(".part.json")]
    return {p.relative_to(out).as_posix(): p.stat().st_mtime_ns for p in whole}


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def remove(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("nowhere"))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Do not write into it."""
    folder = tmp_path_factory.mktemp("camelyon16")
    return camelyon_root.make_root(folder, SIZE, MPP, [TISSUE], tumour_regions, training=3, testing=2)


@pytest.fixture(scope="module")
def made(root, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("made")
    assert call(root, out) == 0
    return out


@pytest.fixture
def spoilt(root, tmp_path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(root, tmp_path / "root", copy_function=shutil.copy2))


@pytest.mark.parametrize(
    ("file", "spoil", "slide", "said"),
    [
        (f"{TUMOUR}.tif", halve, TUMOUR, "copy it again"),
        (f"{NORMAL}.tif", halve, NORMAL, "copy it again"),
        (f"{NORMAL}.tif", remove, NORMAL, "there is no such slide"),
        (f"{TUMOUR}.tif", lambda path: path.write_bytes(b""), TUMOUR, "is empty"),
        ("testing/images/test_002.tif", lambda path: path.write_bytes(b"GIF89a" * 99), "testing/images/test_002", ""),
        (XML, halve, TUMOUR, "may be cut off"),
        (XML, remove, TUMOUR, "there is no such annotation file"),
    ],
)
def test_a_file_that_cannot_be_read(
    root, made, spoilt, tmp_path, capsys, file: str, spoil: Callable[[Path], None], slide: str, said: str
):
    spoil(spoilt / file)
    out, name = tmp_path / "out", f"{slide}.tif"
    assert call(spoilt, out) == 1
    [record] = [line for line in capsys.readouterr().err.splitlines() if line.startswith(f"failed: {name}: ")]
    assert str(spoilt / file) in record
    assert said in record
    failed = pd.read_csv(out / "failed.csv")
    assert failed["slide"].tolist() == [name]
    assert record == f"failed: {name}: {failed['reason'][0]}"
    assert name not in set(patches(out)["slide"])
    assert len(patches(out)) > 0
    before = parts(out)
    assert not any(slide.replace("/", "%2F") in part for part in before)
    (spoilt / file).unlink()
    shutil.copy2(root / file, spoilt / file)
    assert call(spoilt, out) == 0
    assert not (out / "failed.csv").exists()
    assert patches(out).equals(patches(made))
    items = [part for part in before if part.startswith("work/tumour")]
    assert {part: parts(out)[part] for part in items} == {part: before[part] for part in items}


def test_slides_without_scale_take_the_given_one(root, made, spoilt, tmp_path, capsys):
    make_slide(spoilt / f"{TUMOUR}.tif", SIZE, None, camelyon_regions(root, TUMOUR), downsamples=(1, 8))
    out, name = tmp_path / "out", f"{TUMOUR}.tif"
    assert call(spoilt, out) == 1
    output = capsys.readouterr().err
    assert f"{name}: {spoilt / name}: does not say how large its pixels are; give --slide-mpp, " in output
    before = {part: when for part, when in parts(out).items() if part.startswith("work/tumour")}
    assert call(spoilt, out, "--slide-mpp", "0.25") == 0
    assert {part: parts(out)[part] for part in before} == before
    assert patches(out).equals(patches(made))
    there = {True: 0, False: 0}
    samples = read_table(out / "table.csv").samples
    for sample, wanted in zip(samples, read_table(made / "table.csv").samples, strict=True):
        mine = sample.image.name == "tumor_001.tif"
        assert sample.slide_mpp == (0.25 if mine else None)
        assert np.array_equal(read_pixels(sample), read_pixels(wanted))
        there[mine] += 1
    assert min(there.values()) > 0
    assert call(spoilt, out, "--slide-mpp", "0") == 2
    assert "--slide-mpp 0 is wrong (must be above 0)" in capsys.readouterr().err


def camelyon_regions(root: Path, slide: str) -> list[Region]:
    """What `make_root` drew: the slide's number is its place among all."""
    names = [f"training/{c}/{c}_{i:03}" for c in ("normal", "tumor") for i in (1, 2, 3)]
    assert (root / f"{slide}.tif").is_file()
    return tumour_regions(names.index(slide))


def test_polygons_that_cross_themselves_or_leave_the_slide(spoilt, tmp_path, capsys):
    bow = Region("metastasis", ((100, 100), (300, 260), (300, 100), (100, 260)))
    out, xml = tmp_path / "out", spoilt / XML
    write_asap(xml, [bow, box("metastasis", -500, 350, 700, 400), box("metastasis", 2000, 2000, 50, 50)])
    assert call(spoilt, out) == 0
    output = capsys.readouterr().err
    assert f"warning: {xml}, annotation 0: is no valid polygon (Self-intersection" in output
    assert f"warning: {xml}, annotation 1: leaves the slide of 512x448 px; clipped" in output
    assert f"warning: {xml}, annotation 2: has no area on the slide; left out" in output
    mine = patches(out).query("slide == @TUMOUR + '.tif'")
    assert set(mine["region"]) == {"0", "1"}
    assert mine["x"].astype(int).between(0, SIZE[0] - 64).all()
    assert mine["y"].astype(int).between(0, SIZE[1] - 64).all()


def test_a_slide_with_nothing_but_lost_polygons_fails(spoilt, tmp_path, capsys):
    write_asap(spoilt / XML, [box("metastasis", 2000, 2000, 50, 50)])
    assert call(spoilt, tmp_path / "out") == 1
    assert (
        "name classes that are ROI by --roi-class, or give no annotation for a slide without ROI"
        in capsys.readouterr().err
    )


def test_a_folder_that_another_call_writes_is_left_alone(root, tmp_path, another_call, capsys):
    with another_call(tmp_path / "out"):
        before = sorted((tmp_path / "out").iterdir())
        assert call(root, tmp_path / "out") == 2
        assert "out: another call is writing here" in capsys.readouterr().err
        assert sorted((tmp_path / "out").iterdir()) == before


@pytest.mark.parametrize("place", [0, 1, 2, 7, 13, 30, -3, -2, -1])
def test_a_full_disk_anywhere(root, made, tmp_path, monkeypatch, capsys, place):
    """The disk is full at one of the files that are written, counted from the first or the last."""
    replace, left = Path.replace, [10**9]

    def full(path: Path, target: Path) -> Path:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", full)
    assert call(root, tmp_path / "whole", "--write", "png") == 0
    total = 10**9 - left[0]
    assert total > 60
    left[0] = place % total
    out = tmp_path / "out"
    capsys.readouterr()
    assert call(root, out, "--write", "png") == 2
    [record] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("histoloc: ")]
    assert f"{out}/" in record
    assert "cannot be written (No space left on device)" in record
    assert not (out / "table.csv").exists()
    assert not list(out.rglob("*.part*"))
    before = parts(out)
    left[0] = 10**9
    assert call(root, out, "--write", "png") == 0
    assert before.items() <= parts(out).items()
    assert patches(out).equals(patches(made))
    for sample in read_table(out / "table.csv").samples:
        assert read_pixels(sample).shape == (64, 64, 3)


def test_the_table_of_an_earlier_call_does_not_outlive_its_patches(root, tmp_path, monkeypatch):
    assert call(root, tmp_path) == 0
    replace = Path.replace

    def full(path: Path, target: Path) -> Path:
        if target.name == "provenance.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", full)
    assert call(root, tmp_path, "--seed", "1") == 2
    assert not (tmp_path / "table.csv").exists()


@pytest.fixture(scope="module")
def own(root, tmp_path_factory) -> Path:
    """Made undisturbed by one worker; this protocol draws no masks, which saves a step."""
    out = tmp_path_factory.mktemp("own")
    assert call(root, out, "--protocol", "own") == 0
    return out


def command(root: Path, out: Path, workers: int) -> list[str]:
    arguments = ["data", "camelyon16", str(root), "--out", str(out), *FLAGS, "--protocol", "own"]
    return [sys.executable, "-m", "histoloc.cli.main", *arguments, "--workers", str(workers)]


def begin(root: Path, out: Path, workers: int) -> subprocess.Popen[bytes]:
    """The command in a process of its own, which has done its first slide but not all of them."""
    process = subprocess.Popen(command(root, out, workers), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not parts(out) and process.poll() is None:
        time.sleep(0.002)
    assert process.poll() is None
    assert parts(out)
    return process


def test_four_workers_make_the_same_as_one(root, made, tmp_path):
    threads: dict[str, Any] = {"processes": False, "protocol": "tcp", "dashboard_address": None}
    cluster = LocalCluster(n_workers=4, threads_per_worker=1, **threads)
    with cluster:
        assert call(root, tmp_path, "--scheduler", cluster.scheduler_address) == 0
    assert patches(tmp_path).equals(patches(made))
    items = [json.loads((out / "provenance.json").read_text()) for out in (tmp_path, made)]
    assert items[0]["counts"] == items[1]["counts"]


@pytest.mark.slow
def test_four_workers_with_one_killed_make_the_same_as_one(root, own, tmp_path):
    process = begin(root, tmp_path, 4)
    children = psutil.Process(process.pid).children(recursive=True)
    workers = [child for child in children if any("spawn_main" in word for word in child.cmdline())]
    assert len(workers) == 4
    workers[0].send_signal(signal.SIGKILL)
    _, message = process.communicate(timeout=600)
    assert process.returncode == 0, message.decode()
    assert b"failed" not in message.replace(b"0 failed", b"")
    assert patches(tmp_path).equals(patches(own))
    items = [json.loads((out / "provenance.json").read_text()) for out in (tmp_path, own)]
    assert items[0]["counts"] == items[1]["counts"]
    assert items[0]["slides"] == items[1]["slides"]


def test_a_killed_call_goes_on_where_it_was(root, own, tmp_path):
    out = tmp_path / "out"
    environment = {**os.environ, **killed_at(tmp_path / "hook", "/parts/", 3)}
    assert subprocess.run(command(root, out, 1), env=environment, capture_output=True).returncode == -signal.SIGKILL
    before = parts(out)
    assert len(before) >= 2
    assert not (out / "table.csv").exists()
    assert call(root, out, "--protocol", "own") == 0
    assert before.items() <= parts(out).items()
    assert patches(out).equals(patches(own))


MEASURED = """
import re, sys
from pathlib import Path
from histoloc.datasets.tiles import tiles_of_slide
from histoloc.datasets.camelyon16.protocol import draw_slide, scan_slide, write_slide
slide, xml, task = sys.argv[1:]
item = {"slide": slide, "annotations": xml, "name": "a", "seed": 0, "wanted": 15}
if task == "scan":
    print(len(scan_slide(item, {})["patches"]))
elif task == "draw":
    print(len(draw_slide(item, {})["patches"]))
elif task == "tile":
    print(len(tiles_of_slide(item, {"mpp": 0.5, "size": 256, "stride": 256, "tissue": 0.5})["tiles"]))
else:
    files = [[f"{xml}.{i}.png", f"{xml}.{i}.mask.png", 2000 * i, 1200, 512, 512] for i in range(10)]
    write_slide(item | {"patches": files}, {})
    print(2 * len(files))
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text()).group(1))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_on_a_slide_of_40000_pixels(tmp_path):
    """Tumour over the whole width, so that strips are as wide as they can be; each task in a fresh process."""
    side = 40_000
    regions = [box("tissue", 0, 600, side, 5000), box("metastasis", 100, 1000, side - 200, 600)]
    make_slide(tmp_path / "a.tif", (side, side), MPP, regions, downsamples=(1, 8, 64))
    xml = write_asap(tmp_path / "a.xml", regions)
    for task, wanted in (("scan", 78 * 2), ("draw", 15), ("write", 20), ("tile", 78 * 10)):
        command = [sys.executable, "-c", MEASURED, str(tmp_path / "a.tif"), str(xml), task]
        number, peak = subprocess.run(command, capture_output=True, check=True, text=True).stdout.split()
        assert int(number) == wanted, task
        assert int(peak) < 350_000, task  # kB; the limit of a worker is 1 GB
