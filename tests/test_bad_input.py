"""What a user can get wrong in images, tables, recipes, options and folders, and disks that are full."""

import errno
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from histoloc.cli.main import main
from scene import Cases, Scene, a_file, assert_refused, empty_folder, fails_with_one_sentence, files

RGB = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)


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


IMAGES = {
    truncated: "truncated.png", cmyk: "cmyk.tif.*CMYK", palette: "palette.png.*palette", grey_16_bit: "grey16.png.*16",
    rgb_16_bit: "rgb16.png.*16-bit", one_pixel: "pixel.png.*1x1", text: "text.png", absent: "absent.png",
}  # fmt: skip


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


def same_stem(scene: Scene) -> list[str]:
    scene.image("a.png", Image.fromarray(RGB))
    scene.image("a.tif", Image.fromarray(RGB))
    return scene.predict(scene.folder / "a.png", scene.folder / "a.tif")


CASES: Cases = {
    **{
        f"train on {make.__name__}": (lambda s, make=make: s.train(data=s.with_cell("image", make(s))), says)
        for make, says in IMAGES.items()
    },
    **{
        f"predict {make.__name__}": (lambda s, make=make: s.predict(make(s)), says) for make, says in IMAGES.items()
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
    "unusable device": (lambda s: s.train(accelerator="tpux"), "tpux.* for --accelerator"),
    "numbers of GPUs on a CPU": (lambda s: s.train(devices="0,1"), "--accelerator cpu --devices 0,1: not usable here"),
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
    "predict an empty folder": (lambda s: s.predict(empty_folder(s)), "nothing: holds no image"),
    "predict two images of one name": (same_stem, "same name"),
    "predict with zero mpp": (
        lambda s: s.predict(Path(s.rows()["image"][0]), more=("--mpp", "0")), "--mpp 0 is wrong .must be above 0"),
    "predict on unknown device": (
        lambda s: [*s.predict(Path(s.rows()["image"][0]))[:-1], "gpu"], "--device gpu"),
    "report of nothing": (lambda s: ["report", str(empty_folder(s)), "--out", str(s.folder / "out.html")], "no run"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_sentence_and_leaves_nothing(name, scene, capsys):
    assert_refused(name, CASES, scene, capsys)


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
