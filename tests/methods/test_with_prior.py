"""Trainings that begin with a prior, with drawn images and teachers beside it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small import resume_and_compare

from histoloc.methods import METHODS
from histoloc.methods.mean_teacher import MeanTeacher
from histoloc.model_folder import ModelConfig, build_method, load_model, read_model_config, save_images, save_model
from histoloc.nn.backbone import BackboneConfig
from histoloc.prediction import load

# All that learn labels and, beside them, what a prior knows.
JOINED = [name for name, m in METHODS.items() if issubclass(m, MeanTeacher) and "image" in m.supervision]


@pytest.fixture(scope="module")
def prior(tiny, tmp_path_factory) -> Path:
    torch.manual_seed(1)
    folder, seen = tmp_path_factory.mktemp("prior"), tiny("gap", backbone="test_efficientnet").input
    config = ModelConfig("prior", (), None, BackboneConfig("test_efficientnet", 16, weights="none"), seen, mpp=1.0)
    save_model(folder, build_method(config, load_backbone=True).state_dict(), config)
    save_images(folder, [])
    return folder


@pytest.mark.parametrize("name", JOINED)
def test_resumed_beside_drawn_images_and_teachers_it_has_equal_bits(name, prior, gap_run, tiny, tmp_path, monkeypatch):
    options = dict(METHODS[name].with_prior)
    scale = {"mpp": 1.0, "small_side": 0, "crop": 48}
    config = tiny(name, options=options, backbone="test_efficientnet", input=scale, lr=1e-3)
    config = replace(config, backbone=BackboneConfig("test_efficientnet", 16, weights="none"), prior=str(prior))
    config = replace(config, drawn=config.data, teachers=(gap_run,) if METHODS[name].taught else ())
    resume_and_compare(config, tmp_path, monkeypatch)
    described = read_model_config(tmp_path / "whole")
    assert described.supervision == ("image", "synthetic")
    method, _ = load_model(tmp_path / "whole")
    assert isinstance(method, MeanTeacher)
    assert method.average is not None
    begun, _ = load_model(prior)
    moved = [
        (value - begun.state_dict()[key]).abs().max().item()
        for key, value in method.average.module.state_dict().items()
        if key.startswith("decoder.") and value.is_floating_point() and "running" not in key
    ]
    assert 0 < max(moved) < 0.05, "it began with the prior"
    result = load(tmp_path / "whole").predict(next(config.data.parent.glob("**/*.png")), mpp=1.0)
    assert result.range == ("learned" if method.unit == "score" else "probability")
    assert result.label in described.classes
