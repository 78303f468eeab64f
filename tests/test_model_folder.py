import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from histoloc import model_folder
from histoloc.config import method_class
from histoloc.data.transforms import InputConfig
from histoloc.errors import InputError
from histoloc.methods import METHODS
from histoloc.model_folder import (
    ModelConfig,
    Selection,
    Threshold,
    build_method,
    find_model,
    load_model,
    read_model_config,
    save_model,
)
from histoloc.nn import backbone
from histoloc.nn.backbone import BackboneConfig

SMALL = BackboneConfig("test_efficientnet", weights="none")


def full_config(name: str) -> ModelConfig:
    return ModelConfig(
        name,
        ("benign", "malignant", "gräulich"),
        method_class(name).Options(),
        SMALL,
        InputConfig(small_side=0, crop=64, mean=(0.7, 0.6, 0.5), std=(0.1, 0.2, 0.3)),
        mpp=0.62,
        threshold=Threshold("valid", 0.37, masks_used=17),
        selection=Selection("pxap-masks", 12, masks_used=17, uses_masks=True),
        provenance={"table": "glas.csv", "fold": 0, "versions": {"torch": "2"}},
    )


@pytest.fixture
def folder(tmp_path) -> Path:
    """A small GAP model."""
    torch.manual_seed(0)
    config = full_config("gap")
    save_model(tmp_path / "run" / "model", build_method(config, load_backbone=True).state_dict(), config)
    return tmp_path / "run" / "model"


def change(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


@pytest.mark.parametrize("name", METHODS)
def test_round_trip(name, tmp_path):
    torch.manual_seed(0)
    config = full_config(name)
    method = build_method(config, load_backbone=True)
    save_model(tmp_path, method.state_dict(), config)
    torch.manual_seed(1)
    loaded, read = load_model(tmp_path)
    assert not loaded.training
    assert read.weights_sha256
    assert read == ModelConfig(**{**vars(config), "weights_sha256": read.weights_sha256})
    assert read.threshold.uses_masks
    before, after = method.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) and value.dtype == after[key].dtype for key, value in before.items())


def test_saving_twice_gives_the_same_bytes(folder, tmp_path):
    method, config = load_model(folder)
    save_model(tmp_path / "again", method.state_dict(), config)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_folder_holds_two_files_and_no_pickle(folder):
    assert sorted(f.name for f in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["classes"][2] == "gräulich"


def test_weights_may_be_read_by_whom_the_configuration_may(folder):
    assert (folder / "model.safetensors").stat().st_mode == (folder / "config.json").stat().st_mode


def test_run_is_opened_by_its_model(folder):
    assert find_model(folder.parent) == find_model(folder) == folder
    assert read_model_config(folder.parent).classes == ("benign", "malignant", "gräulich")


def test_no_model(tmp_path):
    with pytest.raises(InputError, match=r"no model folder \(no config\.json here or in model/\)"):
        load_model(tmp_path)
    with pytest.raises(InputError, match="no model folder"):
        load_model(tmp_path / "absent")


@pytest.mark.parametrize(
    "content",
    ['{"architectures": ["BertModel"]}', "{}", '{"method": "gap"}'],
)
def test_foreign_config(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json: not a histoloc model; give a folder that `histoloc train`"):
        load_model(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xff", b"[1, 2]", b'"gap"', b"null"])
def test_unreadable_config(folder, content):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.json: cannot be read .*; give a folder that histoloc wrote"):
        load_model(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": 3}, "has format 3, this histoloc reads 2"),
        ({"format": None}, "has format None"),
        ({"method": "gapp"}, r"method 'gapp' is unknown \(did you mean gap\?\)"),
        ({"method": ["gap"]}, "method = "),
        ({"options": {"slope": 3}}, r"config\.json, options: unknown key slope"),
        ({"colour": 1}, r"config\.json: unknown key colour"),
        ({"threshold": {"rule": "best"}}, r"threshold\.rule = 'best'"),
        ({"classes": 3}, "classes = 3"),
        ({"mpp": True}, "mpp = True is wrong .must be a number"),
        ({"mpp": float("nan")}, "mpp = nan is wrong .must be a finite number"),
        ({"mpp": -0.5}, r"mpp = -0\.5 is wrong .must be above 0"),
        ({"extent": [0, 64]}, r"extent\.0 = 0 is wrong .must be at least 1"),
        ({"threshold": {"value": 2}}, r"threshold\.value = 2 is wrong .must be at most 1"),
        ({"input": {"crop": 8}}, r"input\.crop = 8 is wrong .must be at least 32"),
    ],
)
def test_wrong_config(folder, values, message):
    change(folder, **values)
    with pytest.raises(InputError, match=message):
        load_model(folder)


def test_unknown_option_names_the_nearest(tmp_path):
    config = full_config("maxmin")
    save_model(tmp_path, build_method(config, load_backbone=True).state_dict(), config)
    change(tmp_path, options={"slop": 3.0})
    with pytest.raises(InputError, match=r"config\.json, options: unknown key slop \(did you mean slope\?\)"):
        load_model(tmp_path)


def test_missing_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors: is missing; copy the whole model folder"):
        load_model(folder)


@pytest.mark.parametrize("where", [0, 100, -1])
def test_one_wrong_byte_in_the_weights(folder, where):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[where] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.safetensors: is not the file .*checksum differs"):
        load_model(folder)


def test_truncated_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="checksum differs"):
        load_model(folder)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all"])
def test_weights_of_another_format_with_a_fitting_checksum(folder, content):
    path = folder / "model.safetensors"
    path.write_bytes(content)
    change(folder, weights_sha256=model_folder._sha256(path))
    with pytest.raises(InputError, match="these weights do not fit gap"):
        load_model(folder)


@pytest.mark.parametrize("damage", ["missing", "surplus", "shape"])
def test_weights_that_do_not_fit(folder, damage):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    if damage == "missing":
        del tensors["head.weight"]
    elif damage == "surplus":
        tensors["head.other"] = torch.zeros(1)
    else:
        tensors["head.weight"] = torch.zeros(3, 9, 1, 1)
    save_file(tensors, path)
    change(folder, weights_sha256=model_folder._sha256(path))
    with pytest.raises(InputError, match=r"these weights do not fit gap \(.*head\.(weight|other)"):
        load_model(folder)


@pytest.mark.parametrize("source", ["hub", "embedded", "/gone/weights.pth"])
def test_opening_asks_neither_a_hub_nor_a_file(tmp_path, monkeypatch, source):
    name = "tf_efficientnet_lite0" if source == "embedded" else "test_efficientnet"
    config = ModelConfig("gap", ("a", "b"), backbone=BackboneConfig(name, weights="none"))
    save_model(tmp_path, build_method(config, load_backbone=True).state_dict(), config)
    change(tmp_path, backbone={"backbone": name, "weights": source})
    create = timm.create_model

    def without_weights(*args, pretrained, **kwargs):
        assert not pretrained
        return create(*args, pretrained=False, **kwargs)

    def refuse(*args):
        raise AssertionError("weights were read")

    monkeypatch.setattr(timm, "create_model", without_weights)
    monkeypatch.setattr(backbone, "embedded_weights", refuse)
    monkeypatch.setattr(backbone, "_read_weights", refuse)
    _, read = load_model(tmp_path)
    assert read.backbone.weights == source  # where they came from is still told


def test_failed_writing_leaves_the_old_model(folder, monkeypatch):
    before = load_file(folder / "model.safetensors")
    method, config = load_model(folder)

    def full(path, content):
        with path.open("wb") as file:
            file.write(content[:100])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(Path, "write_bytes", full)
        with pytest.raises(InputError, match=r"model\.safetensors: cannot be written \(No space left on device\)"):
            save_model(folder, method.state_dict(), config)
    assert sorted(f.name for f in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert all(torch.equal(value, before[key]) for key, value in load_model(folder)[0].state_dict().items())
