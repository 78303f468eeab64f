"""`histoloc predict` on folders as people have them."""

import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histoloc.cli.main import main
from histoloc.errors import InputError
from histoloc.inputs import IMAGE_SUFFIXES, input_files, name_tails
from histoloc.localization_files import predict


def image(path: Path, seed: int = 0, kind: str = "PNG") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path, kind)
    return path


def files(*paths: Path, out: Path | None = None) -> dict[str, Path]:
    return input_files(paths, IMAGE_SUFFIXES, "image", deep=True, out=out)


def test_names_keep_the_folders_below_the_one_that_is_given(tmp_path):
    for name in ("a.png", "x/a.png", "x/y/a.TIF", "b.jpg"):
        image(tmp_path / name)
    assert list(files(tmp_path)) == ["a", "b", "x/a", "x/y/a"]
    assert list(files(tmp_path / "x")) == ["a", "y/a"]
    assert list(files(tmp_path / "a.png", tmp_path / "b.jpg")) == ["a", "b"]
    assert sorted(files(tmp_path / "a.png", tmp_path / "x" / "a.png")) == ["a", "x/a"]  # */*.png of a shell
    assert sorted(files(tmp_path / "x", tmp_path / "b.jpg", tmp_path / "a.png")) == ["a", "b", "x/a", "y/a"]
    assert sorted(files(tmp_path, tmp_path / "a.png")) == ["a", "b", "x/a", "x/y/a"]  # one file, named twice
    image(tmp_path / "x" / "a.bmp")
    with pytest.raises(InputError, match=r"a\.png: has the same name as .*a\.bmp"):
        files(tmp_path)


def test_foreign_files_and_results_are_no_inputs(tmp_path):
    image(tmp_path / "a.png")
    for name in ("._a.png", ".b.png", ".cache/c.png", "__MACOSX/a.png", "@eaDir/a.png", "$RECYCLE.BIN/d.png"):
        image(tmp_path / name)
    for name in ("out/a_map.png", "out/z.png", "old/deep/a_overlay.png", "old/deep/a_mask.png"):
        image(tmp_path / name)
    (tmp_path / "old" / "predictions.csv").touch()
    image(tmp_path / "old" / "b.png")
    image(tmp_path / "b_map.png")  # no result: there is no predictions.csv
    assert list(files(tmp_path, out=tmp_path / "out")) == ["a", "b_map", "old/b"]
    assert list(files(tmp_path, out=tmp_path / "sub" / ".." / "out")) == ["a", "b_map", "old/b"]
    with pytest.raises(InputError, match=r"has a\.png, beside which results would lie; choose another --out"):
        files(tmp_path, out=tmp_path)
    with pytest.raises(InputError, match="beside which results would lie"):
        files(tmp_path / "old", out=tmp_path / "old")


def test_links_are_followed_and_called_as_they_are_written(tmp_path):
    store = image(tmp_path / "store" / "d41d8cd98f00b204")
    (tmp_path / "data" / "more").mkdir(parents=True)
    (tmp_path / "data" / "a.png").symlink_to(store)
    (tmp_path / "data" / "b.png").symlink_to("absent")  # of git-annex, not fetched
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "c.png").symlink_to(store)
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "more" / "circle").symlink_to(tmp_path / "data")
    assert list(files(tmp_path / "data")) == ["a", "b", "linked/c"]


def test_one_damaged_image_costs_one_row(gap_run, tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "in" / "results"
    for number, name in enumerate(("b.png", "x/b.png", "z.png")):
        image(folder / name, number)
    (folder / "a.png").write_bytes(b"")
    whole = image(folder / "c.png").read_bytes()
    (folder / "c.png").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (20, 20)).save(folder / "small.png")
    (folder / "y.png").symlink_to("absent")
    (folder / "._b.png").write_bytes(b"\0")
    for _ in range(2):  # the second call finds the results of the first one inside its folder
        with pytest.raises(SystemExit) as ended:
            main(["predict", str(gap_run), str(folder), "--out", str(out), "--device", "cpu"])
        assert ended.value.code == 1
        output = capsys.readouterr()
        failed = [line for line in output.err.splitlines() if line.startswith("failed: ")]
        assert [Path(line.split(": ")[1]).name for line in failed] == ["a.png", "c.png", "small.png", "y.png"]
        assert output.out.strip() == str(out / "predictions.csv")
        rows = pd.read_csv(out / "predictions.csv", keep_default_na=False, dtype=str).set_index("image")
        names = [str(Path(name).relative_to(folder)) for name in rows.index]
        assert names == ["a.png", "b.png", "c.png", "small.png", "x/b.png", "y.png", "z.png"]
        good = rows["error"] == ""
        assert [name for name, fine in zip(names, good, strict=True) if fine] == ["b.png", "x/b.png", "z.png"]
        assert (rows.loc[good, "class"] != "").all()
        assert (rows.loc[~good, ["class", "roi_fraction", "scale"]] == "").all(axis=None)
        assert "there is no such file" in rows["error"][str(folder / "y.png")]
        assert sorted(str(p.relative_to(out)) for p in out.rglob("*.png")) == [
            f"{name}_{what}.png" for name in ("b", "x/b", "z") for what in ("map", "mask", "overlay")
        ]


def test_the_table_is_written_as_it_goes(gap_run, tmp_path, monkeypatch):
    for number in range(4):
        image(tmp_path / "in" / f"{number}.png", number)
    (tmp_path / "in" / "0.png").write_bytes(b"x")
    seen = []

    def stop(path: Path, mask: np.ndarray) -> None:
        table = tmp_path / "out" / "predictions.csv"
        seen.append(len(pd.read_csv(table)) if table.exists() else None)
        if path.name == "3_mask.png":
            raise KeyboardInterrupt
        path.parent.mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr("histoloc.localization_files.write_mask", stop)
    with pytest.raises(KeyboardInterrupt):
        predict(gap_run, [tmp_path / "in"], tmp_path / "out", device="cpu", progress=False)
    assert seen == [None, 2, 3]
    assert pd.read_csv(tmp_path / "out" / "predictions.csv")["error"].notna().tolist() == [True, False, False]


def test_where_no_image_can_be_used_nothing_is_written(gap_run, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "in" / name).write_bytes(b"x")
    with pytest.raises(InputError) as caught:
        predict(str(gap_run), [str(tmp_path / "in")], str(tmp_path / "out"), device="cpu", progress=False)  # pyright: ignore
    lines = str(caught.value).splitlines()
    assert re.fullmatch(r".*out: 2 problems:", lines[0])
    assert [os.path.basename(line.split(": ")[0]) for line in lines[1:]] == ["a.png", "b.png"]  # noqa: PTH119
    assert list((tmp_path / "out").rglob("*")) == []


def test_what_a_result_may_be_called():
    assert name_tails("../data/x/a.b.png") == ["data/x/a.b", "x/a.b", "a.b"]
    assert name_tails("/data/a.png") == ["data/a", "a"]
    assert name_tails("x\\a.png") == ["x/a", "a"]
