"""What a user can get wrong in models, heatmaps and predictions."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from histoloc.cli.main import main
from scene import Cases, Scene, assert_refused, empty_folder

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
    Image.fromarray(np.zeros((64, 96), dtype=np.uint8)).save(first.with_suffix(".png"))
    return scene.evaluate(folder)


def predictions(scene: Scene, content: str) -> list[str]:
    folder = scene.heatmaps()
    (folder / "predictions.csv").write_text(content)
    return scene.evaluate(folder)


CASES: Cases = {
    "changed weights": (lambda s: s.evaluate(changed_weights(s)), "model.safetensors: .*checksum"),
    "missing weights": (lambda s: s.evaluate(without_weights(s)), "model.safetensors: is missing"),
    "foreign model": (lambda s: s.evaluate(foreign_model(s)), "config.json: not a histoloc model"),
    "foreign model to predict": (lambda s: s.predict(s.table, model=foreign_model(s)), "not a histoloc model"),
    "broken config": (lambda s: s.evaluate(broken_json(s)), "config.json: cannot be read"),
    "model of a later format": (lambda s: s.evaluate(changed_config(s, format=99)), "format 99"),
    "model with unknown key": (lambda s: s.evaluate(changed_config(s, clases=["a"])), "config.json.*clases.*classes"),
    "model of unknown method": (lambda s: s.evaluate(changed_config(s, method="gab")), "'gab'.*gap"),
    "weights of another network": (lambda s: s.evaluate(weights_of_another_network(s)), "do not fit gap"),
    "no model": (lambda s: s.predict(s.table, model=empty_folder(s)), "no model folder"),
    "absent model": (lambda s: s.evaluate(s.folder / "no"), "no: no such folder"),
    "no heatmap at all": (lambda s: s.evaluate(empty_folder(s)), "has no heatmap for any of 4 images"),
    "predictions without class": (lambda s: predictions(s, "image,label\na,b\n"), "predictions.csv.*class"),
    "empty predictions": (lambda s: predictions(s, ""), "predictions.csv"),
    "threshold out of range for heatmaps": (
        lambda s: s.evaluate(s.heatmaps(), None, "--threshold", "2"), "--threshold 2"),
    "threshold out of range for a model": (
        lambda s: s.evaluate(s.gap_run, None, "--threshold", "-1"), "--threshold -1"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_sentence_and_leaves_nothing(name, scene, capsys):
    assert_refused(name, CASES, scene, capsys)


# Of many heatmaps one bad one is listed, and the rest are measured.
LISTED: Cases = {
    "NaN in a heatmap": (nan_in_a_heatmap, r"\.npy: .*NaN"),
    "heatmap beyond one": (lambda s: one_heatmap(s, np.full((64, 96), 1.5)), r"\.npy: .*1\.5"),
    "heatmap of another size": (lambda s: one_heatmap(s, np.zeros((64, 95))), r"\.npy: .*95x64.*96x64"),
    "heatmap missing": (heatmap_missing, "no heatmap"),
    "two heatmaps of one image": (two_heatmaps, "same image"),
    "heatmap of three dimensions": (
        lambda s: one_heatmap(s, np.zeros((64, 96, 2))), r"\.npy: has the shape \(64, 96, 2\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", LISTED)
def test_a_bad_heatmap_is_listed(name, scene, capsys):
    make, text = LISTED[name]
    with pytest.raises(SystemExit) as exit:
        main(make(scene))
    output = capsys.readouterr()
    assert exit.value.code == 1
    assert re.search(text, output.err)
    assert "3 images" in output.out


def test_predictions_with_an_unknown_class(scene, capsys):
    with pytest.raises(SystemExit) as exit:
        main(predictions(scene, "image,class\nbenign_00008.png,begnin\n"))
    assert exit.value.code == 2
    assert re.search("predictions.csv.*begnin", capsys.readouterr().err)
