"""What a user can get wrong: one clear sentence on stderr, exit code 2, and nothing half-written left."""

import errno
import json
import os
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from histoloc.cli.main import main

RGB = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)


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


@pytest.fixture
def scene(tmp_path, tiny_table, gap_run, tiny_flags) -> Scene:
    return Scene(tmp_path, tiny_table, gap_run, tiny_flags)


# --- images ---


def truncated(scene: Scene) -> Path:
    whole = Path(scene.rows()["image"][0]).read_bytes()
    (scene.folder / "truncated.png").write_bytes(whole[: len(whole) // 2])
    return scene.folder / "truncated.png"


def cmyk(scene: Scene) -> Path:
    return scene.image("cmyk.tif", Image.fromarray(RGB).convert("CMYK"))


def palette(scene: Scene) -> Path:
    return scene.image("palette.png", Image.fromarray(RGB).quantize(16))


def grey_16_bit(scene: Scene) -> Path:
    return scene.image("grey16.png", Image.fromarray(RGB[..., 0].astype(np.uint16) * 257))


def rgb_16_bit(scene: Scene) -> Path:
    """Written by hand, since Pillow does not write 16 bits of colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in RGB)
    header = struct.pack(">IIBBBBB", 96, 64, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (scene.folder / "rgb16.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return scene.folder / "rgb16.png"


def one_pixel(scene: Scene) -> Path:
    return scene.image("pixel.png", Image.fromarray(RGB[:1, :1]))


def text(scene: Scene) -> Path:
    (scene.folder / "text.png").write_text("not an image")
    return scene.folder / "text.png"


def absent(scene: Scene) -> Path:
    return scene.folder / "absent.png"


IMAGES = [truncated, cmyk, palette, grey_16_bit, rgb_16_bit, one_pixel, text, absent]


# --- tables ---


def empty_table(scene: Scene) -> Path:
    return scene.write(scene.rows().iloc[:0])


def class_without_samples(scene: Scene) -> list[str]:
    rows = scene.rows()
    return scene.train(data=scene.write(rows[(rows["split"] != "train") | (rows["label"] == "benign")]))


def one_class(scene: Scene) -> Path:
    return scene.write(scene.rows().assign(label="benign"))


def mask_of_another_size(scene: Scene) -> Path:
    mask = scene.image("mask.png", Image.fromarray(np.zeros((64, 95), dtype=np.uint8)))
    return scene.with_cell("mask", mask)


def split_without_rows(scene: Scene) -> Path:
    rows = scene.rows()
    return scene.write(rows[rows["split"] != "valid"])


def without_header(scene: Scene) -> Path:
    (scene.folder / "table.csv").write_text("a.png,benign\n")
    return scene.folder / "table.csv"


# --- recipes ---


def recipe(scene: Scene, **values: object) -> list[str]:
    path = scene.folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"method": "gap", **values}))
    return scene.train(recipe=path)


def broken_yaml(scene: Scene) -> list[str]:
    (scene.folder / "recipe.yaml").write_text("training: {lr: [\n")
    return scene.train(recipe=scene.folder / "recipe.yaml")


# --- folders ---


def a_file(scene: Scene) -> Path:
    (scene.folder / "file").write_text("a file, not a folder")
    return scene.folder / "file"


# --- models ---


def changed_config(scene: Scene, **values: object) -> Path:
    model = scene.model()
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | values))
    return model


def changed_weights(scene: Scene) -> Path:
    model = scene.model()
    raw = bytearray((model / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (model / "model.safetensors").write_bytes(raw)
    return model


def without_weights(scene: Scene) -> Path:
    (model := scene.model()).joinpath("model.safetensors").unlink()
    return model


def foreign_model(scene: Scene) -> Path:
    (folder := scene.folder / "model").mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["Other"], "hidden_size": 768}))
    (folder / "model.safetensors").write_bytes(b"weights of something else")
    return folder


def broken_json(scene: Scene) -> Path:
    model = scene.model()
    (model / "config.json").write_text("{")
    return model


def weights_of_another_network(scene: Scene) -> Path:
    """A matching checksum does not make them fit."""
    import hashlib

    import torch
    from safetensors.torch import save

    model, raw = scene.model(), save({"other": torch.zeros(1)})
    (model / "model.safetensors").write_bytes(raw)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"weights_sha256": hashlib.sha256(raw).hexdigest()}))
    return model


# --- heatmaps ---


def one_heatmap(scene: Scene, values: np.ndarray) -> list[str]:
    folder = scene.heatmaps()
    np.save(sorted(folder.iterdir())[0], values)
    return scene.evaluate(folder)


def nan_in_a_heatmap(scene: Scene) -> list[str]:
    values = np.full((64, 96), 0.5, dtype=np.float32)
    values[3, 4] = np.nan
    return one_heatmap(scene, values)


def heatmap_missing(scene: Scene) -> list[str]:
    folder = scene.heatmaps()
    sorted(folder.iterdir())[0].unlink()
    return scene.evaluate(folder)


def two_heatmaps(scene: Scene) -> list[str]:
    folder = scene.heatmaps()
    first = sorted(folder.iterdir())[0]
    Image.fromarray(RGB[..., 0]).save(first.with_suffix(".png"))
    return scene.evaluate(folder)


def predictions(scene: Scene, content: str) -> list[str]:
    folder = scene.heatmaps()
    (folder / "predictions.csv").write_text(content)
    return scene.evaluate(folder)


def empty_folder(scene: Scene) -> Path:
    (folder := scene.folder / "nothing").mkdir()
    return folder


def same_stem(scene: Scene) -> list[str]:
    scene.image("a.png", Image.fromarray(RGB))
    scene.image("a.tif", Image.fromarray(RGB))
    return scene.predict(scene.folder / "a.png", scene.folder / "a.tif")


CASES: dict[str, tuple[Callable[[Scene], list[str]], str]] = {
    # name: (command, what the sentence must say)
    **{
        f"train on {make.__name__}": (lambda s, make=make: s.train(data=s.with_cell("image", make(s))), says)
        for make, says in zip(
            IMAGES,
            ("truncated.png", "cmyk.tif.*CMYK", "palette.png.*palette", "grey16.png.*16", "rgb16.png.*16-bit",
             "pixel.png.*1x1", "text.png", "absent.png"),
            strict=True,
        )
    },
    **{
        f"predict {make.__name__}": (lambda s, make=make: s.predict(make(s)), says)
        for make, says in zip(
            IMAGES,
            ("truncated.png", "cmyk.tif.*CMYK", "palette.png.*palette", "grey16.png.*16", "rgb16.png.*16-bit",
             "pixel.png.*1x1", "text.png", "absent.png"),
            strict=True,
        )
    },
    "train on truncated validation image": (
        lambda s: s.train(data=s.with_cell("image", truncated(s), "valid")), "truncated.png"),
    "evaluate on truncated image": (
        lambda s: s.evaluate(s.gap_run, s.with_cell("image", truncated(s), "test")), "truncated.png"),
    "train with mask of another size": (lambda s: s.train(data=mask_of_another_size(s)), "mask.png.*95x64.*96x64"),
    "evaluate with mask of another size": (lambda s: s.evaluate(s.gap_run, mask_of_another_size(s)), "mask.png"),
    "train on empty table": (lambda s: s.train(data=empty_table(s)), "table.csv: the table is empty"),
    "evaluate on empty table": (lambda s: s.evaluate(s.gap_run, empty_table(s)), "table.csv: the table is empty"),
    "train on absent table": (lambda s: s.train(data=s.folder / "no.csv"), "no.csv: there is no such table"),
    "train on table without header": (lambda s: s.train(data=without_header(s)), "missing columns"),
    "unknown class at evaluation": (
        lambda s: s.evaluate(s.gap_run, s.with_cell("label", "malignat", "test")), "malignat.*malignant"),
    "class without samples": (class_without_samples, "malignant.*no samples"),
    "train on one class": (lambda s: s.train(data=one_class(s)), "has one class only .benign in 12 row.s."),
    "train nothing on one class": (lambda s: s.train("stain", data=one_class(s)), "has one class only"),
    "benchmark on one class": (
        lambda s: ["benchmark", "table1", "--data", str(one_class(s)), "--out", str(s.folder / "out")],
        "has one class only"),
    "two spellings of a class": (
        lambda s: s.train(data=s.with_cell("label", "Benign")), "labels 'Benign' .1 row.s.. and 'benign' "),
    "split without rows": (lambda s: s.train(data=split_without_rows(s)), "no row is of split 'valid'"),
    "all-ones without validation": (lambda s: s.train("allones", data=split_without_rows(s)), "split 'valid'"),
    "evaluate split without rows": (
        lambda s: s.evaluate(s.gap_run, split_without_rows(s), "--split", "valid"), "no row is of split 'valid'"),
    "missing fold": (lambda s: s.train(fold=3), "fold 3"),
    "threshold on masks that are not there": (
        lambda s: s.train(data=s.write(s.rows().assign(mask="")), threshold="valid"), "--threshold valid.*masks"),
    "unknown option": (lambda s: s.train(epoch=3), "--epoch"),
    "option of another method": (lambda s: s.train(kmax=0.5), "--kmax"),
    "value of wrong type": (lambda s: s.train(epochs="many"), "--epochs"),
    "value out of range": (lambda s: s.train(epochs=0), "--epochs"),
    "value not among the choices": (lambda s: s.train(selection="best"), "--selection"),
    "unknown method": (lambda s: s.train("maxmim"), "maxmim"),
    "unknown command": (lambda s: ["evaluat", "x"], "evaluat"),
    "option without value": (lambda s: [*s.train(), "--seed"], "--seed"),
    "required option missing": (lambda s: ["train", "gap", "--data", str(s.table)], "--out"),
    "unknown backbone": (lambda s: s.train(backbone="resnot18"), "backbone 'resnot18'"),
    "no embedded weights": (lambda s: s.train(weights="embedded"), "--weights embedded"),
    "absent weights": (lambda s: s.train(weights=s.folder / "w.pth"), "w.pth"),
    "foreign weights": (lambda s: s.train(weights=s.gap_run / "model" / "model.safetensors"), "do not fit"),
    "stride that is not there": (lambda s: s.train(stride=7), "stride 7"),
    "crop larger than the small side": (lambda s: s.train(crop=96), "--crop 96"),
    "crop larger than the image": (lambda s: s.train(small_side=0, crop=70), "crop of 70"),
    "unknown empty class": (
        lambda s: s.train("maxmin", empty_class="normal", normalisation="none"), "--empty-class 'normal'"),
    "unusable device": (lambda s: s.train(accelerator="tpux"), "--accelerator tpux"),
    "unknown recipe": (lambda s: s.train(recipe="glas-gp"), "glas-gp.*glas-gap"),
    "recipe of another method": (lambda s: s.train(recipe="glas-sem"), "histoloc train maxmin"),
    "absent recipe": (lambda s: s.train(recipe=s.folder / "no.yaml"), "no.yaml"),
    "unknown key in a recipe": (lambda s: recipe(s, trainin={"lr": 1}), "recipe.yaml.*trainin.*training"),
    "unknown deep key in a recipe": (lambda s: recipe(s, training={"epoch": 1}), "recipe.yaml.*epoch.*epochs"),
    "wrong value in a recipe": (lambda s: recipe(s, training={"lr": "fast"}), "recipe.yaml.*lr.*fast"),
    "broken recipe": (broken_yaml, "recipe.yaml: not valid YAML"),
    "train into a file": (lambda s: s.train(out=a_file(s)), "file: .*folder"),
    "train below a file": (lambda s: s.train(out=a_file(s) / "run"), "file/run: .*folder"),
    "evaluate into a file": (lambda s: [*s.evaluate(s.gap_run)[:4], "--out", str(a_file(s))], "file"),
    "predict into a file": (
        lambda s: ["predict", str(s.gap_run), s.rows()["image"][0], "--out", str(a_file(s))], "file"),
    "report into a folder that is a file": (
        lambda s: ["report", str(s.gap_run), "--out", str(a_file(s) / "report.html")], "report.html"),
    "table into a folder that is a file": (
        lambda s: ["data", "synthetic", "--out", str(a_file(s)), "--count", "10"], "file"),
    "synthetic data of too few images": (
        lambda s: ["data", "synthetic", "--out", str(s.folder / "out"), "--count", "3"], "count 3"),
    "glas folder that is none": (
        lambda s: ["data", "glas", str(empty_folder(s)), "--out", str(s.folder / "out.csv")], "nothing"),
    "class folders that are none": (
        lambda s: ["data", "folder", str(empty_folder(s)), "--out", str(s.folder / "out.csv")], "nothing"),
    "changed weights": (lambda s: s.evaluate(changed_weights(s)), "model.safetensors: .*checksum"),
    "missing weights": (lambda s: s.evaluate(without_weights(s)), "model.safetensors: is missing"),
    "foreign model": (lambda s: s.evaluate(foreign_model(s)), "config.json: not a histoloc model"),
    "foreign model to predict": (lambda s: s.predict(s.table, model=foreign_model(s)), "not a histoloc model"),
    "broken config": (lambda s: s.evaluate(broken_json(s)), "config.json: cannot be read as JSON"),
    "model of a later format": (lambda s: s.evaluate(changed_config(s, format=99)), "format 99"),
    "model with unknown key": (lambda s: s.evaluate(changed_config(s, clases=["a"])), "config.json.*clases.*classes"),
    "model of unknown method": (lambda s: s.evaluate(changed_config(s, method="gab")), "'gab'.*gap"),
    "weights of another network": (lambda s: s.evaluate(weights_of_another_network(s)), "do not fit gap"),
    "no model": (lambda s: s.predict(s.table, model=empty_folder(s)), "no model folder"),
    "absent model": (lambda s: s.evaluate(s.folder / "no"), "no: no such folder"),
    "NaN in a heatmap": (nan_in_a_heatmap, r"\.npy: .*NaN"),
    "heatmap beyond one": (lambda s: one_heatmap(s, np.full((64, 96), 1.5)), r"\.npy: .*1\.5"),
    "heatmap of another size": (lambda s: one_heatmap(s, np.zeros((64, 95))), r"\.npy: .*95x64.*96x64"),
    "heatmap of three dimensions": (lambda s: one_heatmap(s, np.zeros((64, 96, 1))), r"\.npy: .*dimensions"),
    "heatmap missing": (heatmap_missing, "no heatmap for 1 of 4 images"),
    "two heatmaps of one image": (two_heatmaps, "same image"),
    "no heatmap at all": (lambda s: s.evaluate(empty_folder(s)), "no heatmap for 4 of 4 images"),
    "predictions without class": (lambda s: predictions(s, "image,label\na,b\n"), "predictions.csv.*class"),
    "predictions with unknown class": (
        lambda s: predictions(s, "image,class\nbenign_00008.png,begnin\n"), "predictions.csv.*begnin"),
    "empty predictions": (lambda s: predictions(s, ""), "predictions.csv"),
    "threshold out of range for heatmaps": (
        lambda s: s.evaluate(s.heatmaps(), None, "--threshold", "2"), "--threshold 2"),
    "threshold out of range for a model": (
        lambda s: s.evaluate(s.gap_run, None, "--threshold", "-1"), "--threshold -1"),
    "predict an empty folder": (lambda s: s.predict(empty_folder(s)), "nothing: holds no image"),
    "predict two images of one name": (same_stem, "same name"),
    "predict with zero mpp": (
        lambda s: s.predict(Path(s.rows()["image"][0]), more=("--mpp", "0")), "--mpp 0.0 must be above 0"),
    "predict on unknown device": (
        lambda s: [*s.predict(Path(s.rows()["image"][0]))[:-1], "gpu"], "--device gpu"),
    "report of nothing": (lambda s: ["report", str(empty_folder(s)), "--out", str(s.folder / "out.html")], "no run"),
}  # fmt: skip


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def fails_with_one_sentence(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    shown = capsys.readouterr()
    # Progress bars rewrite their own line; the sentence is the last one.
    lines = [line.rsplit("\r", 1)[-1] for line in shown.err.rstrip("\n").split("\n")]
    assert ended.value.code == 2
    assert lines[-1].startswith("histoloc: ")
    assert sum("histoloc: " in line for line in lines) == 1
    assert re.search(says, lines[-1]), lines[-1]
    assert "Traceback" not in shown.err + shown.out


@pytest.mark.parametrize("name", list(CASES))
def test_bad_input_is_one_sentence_and_leaves_nothing(name, scene, capsys):
    make, says = CASES[name]
    arguments = make(scene)
    before = [files(scene.folder), files(scene.gap_run)]
    fails_with_one_sentence(arguments, says, capsys)
    after = [files(scene.folder), files(scene.gap_run)]
    # What was finished before the error may stay; a run that trained may keep its settings to be resumed.
    assert after[1] == before[1]
    new = {path.name for path in after[0].keys() - before[0].keys()}
    allowed = {"run.yaml", "inputs.json"} if name == "train on truncated validation image" else set()
    assert new <= allowed, new


@pytest.fixture
def full_disk(monkeypatch):
    """From now on nothing can be renamed to its final name."""

    def full(self, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize("what", ["train", "evaluate", "predict", "report"])
def test_a_full_disk_is_one_sentence(what, scene, capsys):
    commands = {
        "train": scene.train,
        "evaluate": lambda: scene.evaluate(scene.gap_run),
        "predict": lambda: scene.predict(Path(scene.rows()["image"][0])),
        "report": lambda: ["report", str(scene.gap_run), "--out", str(scene.folder / "report.html")],
    }
    fails_with_one_sentence(commands[what](), "No space left on device", capsys)
    assert not files(scene.folder)


def test_a_disk_that_fills_up_in_training_is_one_sentence(scene, capsys, monkeypatch):
    replace = Path.replace

    def full_for_checkpoints(self, target):
        if Path(target).suffix == ".ckpt":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full_for_checkpoints)
    fails_with_one_sentence(scene.train(), r"last\.ckpt: .*No space left on device.*--resume", capsys)
    monkeypatch.undo()
    main([*scene.train(), "--resume"])
    assert (scene.folder / "out" / "model" / "model.safetensors").read_bytes() == (
        scene.gap_run / "model" / "model.safetensors"
    ).read_bytes()
