"""A folder to make a mess in, and what every wrong input must end in."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histoloc.cli.main import main


@dataclass
class Scene:
    """A folder to make a mess in, with a table whose rows can be changed and finished runs to copy."""

    folder: Path
    table: Path
    gap_run: Path
    flags: Callable[..., list[str]]

    def rows(self) -> pd.DataFrame:
        rows = pd.read_csv(self.table, dtype=str, keep_default_na=False)
        for column in ("image", "mask"):
            rows[column] = [str(self.table.parent / cell) for cell in rows[column]]
        return rows

    def write(self, rows: pd.DataFrame) -> Path:
        rows.to_csv(self.folder / "table.csv", index=False)
        return self.folder / "table.csv"

    def with_cell(self, column: str, value: object, split: str = "train") -> Path:
        """The table with another value in the first row of a split."""
        rows = self.rows()
        rows.loc[rows.index[rows["split"] == split][0], column] = str(value)
        return self.write(rows)

    def image(self, name: str, picture: Image.Image) -> Path:
        picture.save(self.folder / name)
        return self.folder / name

    def model(self) -> Path:
        """A copy of a model folder."""
        copy = self.folder / "model"
        copy.mkdir()
        for file in (self.gap_run / "model").iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        return copy

    def heatmaps(self) -> Path:
        """A folder with a good heatmap of every test image."""
        folder = self.folder / "maps"
        folder.mkdir()
        for row in self.rows().query("split == 'test'").itertuples():
            np.save(folder / f"{Path(str(row.image)).stem}.npy", np.full((64, 96), 0.5, dtype=np.float32))
        return folder

    def train(self, method: str = "gap", **options: object) -> list[str]:
        return ["train", method, *self.flags(**{"out": self.folder / "out", **options})]

    def evaluate(self, source: Path, data: Path | None = None, *more: str) -> list[str]:
        out = ["--out", str(self.folder / "out"), "--device", "cpu"]
        return ["evaluate", str(source), "--data", str(data or self.table), *out, *more]

    def predict(self, *images: Path, model: Path | None = None, more: tuple[str, ...] = ()) -> list[str]:
        source = [str(model or self.gap_run), *map(str, images)]
        return ["predict", *source, "--out", str(self.folder / "out"), "--device", "cpu", *more]


Cases = Mapping[str, tuple[Callable[[Scene], list[str]], str]]  # name: command, what the sentence must say


def a_file(scene: Scene) -> Path:
    (scene.folder / "file").write_text("a file, not a folder")
    return scene.folder / "file"


def empty_folder(scene: Scene) -> Path:
    (folder := scene.folder / "nothing").mkdir()
    return folder


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def fails_with_one_sentence(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    output = capsys.readouterr()
    # Progress bars rewrite their own line; the sentence is the last one.
    lines = [line.rsplit("\r", 1)[-1] for line in output.err.rstrip("\n").split("\n")]
    assert ended.value.code == 2
    assert lines[-1].startswith("histoloc: ")
    assert sum("histoloc: " in line for line in lines) == 1
    assert re.search(says, lines[-1]), lines[-1]
    assert "Traceback" not in output.err + output.out


def assert_refused(name: str, cases: Cases, scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    """Bad input is one sentence and leaves nothing."""
    make, text = cases[name]
    arguments = make(scene)
    before = [files(scene.folder), files(scene.gap_run)]
    fails_with_one_sentence(arguments, text, capsys)
    after = [files(scene.folder), files(scene.gap_run)]
    # What was finished before the error may stay; a run that trained may keep its settings to be resumed.
    assert after[1] == before[1]
    new = {path.name for path in after[0].keys() - before[0].keys()}
    allowed = {"run.yaml", "inputs.json"} if name == "train on truncated validation image" else set()
    assert new <= allowed, new
