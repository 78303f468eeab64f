"""A run is resumed, replayed and reported from any folder, and after it was moved, alone or with its data."""

import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

from histoloc.cli.main import main
from histoloc.config import read_run
from histoloc.results import read_evaluation


@pytest.fixture
def project(tmp_path, tiny_table, tiny_flags, monkeypatch):
    """A folder with a table, its images and a run, all named relative to it; it is the working folder."""
    place = tmp_path / "project"
    place.mkdir()
    for part in ("images", "masks"):
        shutil.copytree(tiny_table.parent / part, place / "data" / part)
    shutil.copy(tiny_table, place / "data" / "t.csv")
    monkeypatch.chdir(place)
    main(["train", "allones", *tiny_flags(data="data/t.csv", out="runs/a")])
    return place


def report(run: Path, page: Path) -> str:
    main(["report", str(run), "--out", str(page)])
    return page.read_text(encoding="utf-8")


def check(run: Path, tiny_flags, tmp_path: Path) -> None:
    """Everything that goes on from a run."""
    assert read_run(run / "run.yaml").data.is_file()
    main(["train", "allones", "--recipe", str(run / "run.yaml"), "--out", str(tmp_path / "replayed")])
    data = read_run(run / "run.yaml").data
    main(["train", "allones", *tiny_flags(data=data, out=run), "--resume"])
    evaluation = read_evaluation(run / "evaluation" / "valid")
    images = [evaluation.file(cell) for column in ("image", "mask") for cell in evaluation.images[column]]
    assert len(images) == 8
    assert all(file is not None and file.is_file() for file in images)
    assert "cannot be read" not in report(run, tmp_path / "page.html")


def test_from_another_folder_and_after_a_move(project, tiny_flags, tmp_path, monkeypatch):
    written = yaml.safe_load((project / "runs/a/run.yaml").read_text())
    assert written["data"] == "../../data/t.csv"
    cells = pd.read_csv(project / "runs/a/evaluation/valid/per_image.csv")
    assert cells["image"].str.startswith("../../../../data/images/").all()
    monkeypatch.chdir(tmp_path)
    check(project / "runs" / "a", tiny_flags, tmp_path)
    shutil.rmtree(tmp_path / "replayed")
    # The run alone, the data where they were.
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    moved = Path(shutil.move(project / "runs" / "a", tmp_path / "elsewhere" / "deep" / "b"))
    assert read_run(moved / "run.yaml").data == project / "data" / "t.csv"
    check(moved, tiny_flags, tmp_path)


def test_a_project_is_moved_as_a_whole(project, tiny_flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.rename(project, tmp_path / "renamed")  # noqa: PTH104
    run = tmp_path / "renamed" / "runs" / "a"
    assert read_run(run / "run.yaml").data == tmp_path / "renamed" / "data" / "t.csv"
    check(run, tiny_flags, tmp_path)


def test_a_run_without_its_data_is_reported_too(project, tmp_path):
    shutil.copytree(project / "runs" / "a", tmp_path / "copy")
    shutil.rmtree(project / "data")
    metrics = json.loads((tmp_path / "copy" / "metrics.json").read_text())["metrics"]
    assert f"{metrics['f1_plus']['value']:.2f}" in report(tmp_path / "copy", tmp_path / "page.html")
