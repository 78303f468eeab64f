"""Priors from nothing to a shipped folder: drawn, trained, adapted without labels and masks, resumed, listed."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from scipy.special import expit, logit
from torch import Tensor

from histoloc import model_folder
from histoloc.cli.main import main
from histoloc.config import read_run
from histoloc.data.fingerprint import image_marks
from histoloc.data.images import read_image, write_picture
from histoloc.data.pixels import read_pixels, sample_size
from histoloc.data.table import read_table, write_table
from histoloc.datasets.synthetic.dataset import render
from histoloc.datasets.synthetic.drawn import drawn_table
from histoloc.errors import InputError
from histoloc.model_folder import images_seen, load_model, read_model_config
from histoloc.prediction import load
from histoloc.prior import AdaptOptions, MakeOptions, adapt, make, scales_and_crop
from histoloc.prior_card import list_priors

RECIPE = """about: Tiny.
method: prior
backbone: {backbone: test_efficientnet, stride: 0, weights: none}
input: {mpp: 1, small_side: 0, crop: 64, zoom: [0.97, 1.57], brightness: 0, contrast: 0, saturation: 0, hue: 0}
training: {epochs: 1, batch: 4, lr: 0.02, schedule: one-cycle, selection: last, precision: 32-true, workers: 0}
"""
COUNT = 8


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(RECIPE)
    return str(path)


@pytest.fixture(scope="module")
def tiny_make(recipe) -> MakeOptions:
    common = {"recipe": recipe, "drawers": 1, "accelerator": "cpu"}
    return MakeOptions(scene="disc", count=COUNT, height=96, width=112, **common)


@pytest.fixture(scope="module")
def made(tiny_make, tmp_path_factory) -> Path:
    """A prior's model folder; do not write into it."""
    return make(tmp_path_factory.mktemp("priors") / "made", tiny_make, progress=False)


@pytest.fixture(scope="module")
def tiny_adapt(recipe, tmp_path_factory) -> AdaptOptions:
    path = tmp_path_factory.mktemp("recipe") / "adapt.yaml"
    path.write_text(RECIPE + "options: {average: 0.9}\n")
    return AdaptOptions(recipe=str(path), count=COUNT, epochs=1, drawers=1, accelerator="cpu")


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    """Six images of 240 x 200 px at 0.5 µm/px, five of them of split train, whose masks do not exist."""
    folder, rng = tmp_path_factory.mktemp("real"), np.random.default_rng(0)
    rows = []
    for index in range(6):
        write_picture(folder / f"{index}.png", rng.integers(0, 255, (200, 240, 3), dtype=np.uint8))
        split = "train" if index < 5 else "test"
        row = {"image": folder / f"{index}.png", "label": f"secret{index % 2}", "mask": folder / f"absent{index}.png"}
        rows.append(row | {"split": split, "mpp": 0.5})
    write_table(folder / "table.csv", pd.DataFrame(rows))
    return folder / "table.csv"


@pytest.fixture(scope="module")
def adapted(made, real, tiny_adapt, tmp_path_factory) -> Path:
    """An adapted prior's model folder; do not write into it."""
    return adapt(made, real, tmp_path_factory.mktemp("priors") / "adapted", tiny_adapt, progress=False)


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


# --- drawing ---


def test_images_are_drawn_once_and_are_those_of_the_scene(tmp_path):
    table = drawn_table(tmp_path, scene="disc", seed=3, count=3, size=(64, 80), workers=1, progress=False)
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "images").iterdir()}
    more = drawn_table(tmp_path, scene="disc", seed=3, count=5, size=(64, 80), workers=1, progress=False)
    assert table == more
    assert all(path.stat().st_mtime_ns == time for path, time in first.items())
    samples = read_table(table).samples
    assert [(s.split, s.mpp) for s in samples] == [("train", 1.0)] * 5
    for index, sample in enumerate(samples):
        label = ("benign", "malignant")[index % 2]
        expected = render(label, seed=3, index=index, height=64, width=80, scene="disc")
        np.testing.assert_array_equal(read_image(sample.image), expected.image)
        assert sample.mask is not None
    with pytest.raises(InputError, match=r"was begun with other settings \(seed was 3 and is 4\)"):
        drawn_table(tmp_path, scene="disc", seed=4, count=5, size=(64, 80), workers=1, progress=False)


# --- making ---


def test_a_made_prior_is_a_model_folder_that_says_what_it_is(made, tiny_make):
    config = read_model_config(made)
    assert (config.method, config.classes, config.supervision, config.mpp) == ("prior", (), ("synthetic",), 1.0)
    facts = {"scene": "disc", "structure": "disc", "seed": 0, "count": COUNT, "size": [96, 112]}
    assert config.provenance.items() >= facts.items()
    assert "table" not in config.provenance
    command = config.provenance["command"]
    assert command.startswith("histoloc prior make --recipe ")
    assert "--scene disc --count 8 --height 96 --width 112" in command
    text = (made / "card.md").read_text()
    assert config.weights_sha256 in text
    assert f"`{command}`" in text
    assert "8 drawn images of the scene disc (seed 0); no real image" in text
    assert {file.name for file in made.iterdir()} == {"config.json", "model.safetensors", "card.md", "images.txt"}
    result = load(made, "cpu").predict(made.parent / "drawn" / "images" / "benign_00000.png", mpp=1.0)
    assert result.roi.shape == (96, 112)


def test_its_weights_are_those_of_the_run_in_half_precision(made):
    half, whole = weights(made), weights(made.parent / "run" / "model")
    assert half.keys() == whole.keys()
    method, _ = load_model(made)
    parameters = dict(method.named_parameters())
    for name, value in half.items():
        assert value.dtype == (torch.float16 if name in parameters else whole[name].dtype), name
        assert torch.equal(value, whole[name].to(value.dtype)), name
    assert all(parameter.dtype == torch.float32 for parameter in parameters.values())


def test_the_same_command_makes_the_same_prior_and_resumes(made, tiny_make, tmp_path):
    again = make(tmp_path / "again", tiny_make, progress=False)
    assert weights(again).keys() == weights(made).keys()
    assert all(torch.equal(value, weights(made)[name]) for name, value in weights(again).items())
    before = (again / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="folder already contains a run; pass --resume"):
        make(tmp_path / "again", tiny_make, progress=False)
    make(tmp_path / "again", replace(tiny_make, resume=True), progress=False)
    assert (again / "model.safetensors").read_bytes() == before


# --- adapting ---


def test_adapting_reads_neither_labels_nor_masks(adapted, real):
    table = read_table(adapted.parent / "images.csv")
    assert [(s.label, s.mask, s.split, s.mpp) for s in table.samples] == [("none", None, "train", 0.5)] * 5
    assert [s.image.name for s in table.samples] == [f"{i}.png" for i in range(5)], "of split train alone"
    config = read_run(adapted.parent / "run" / "run.yaml")
    assert (config.input.mpp, config.input.crop, config.input.zoom) == (1.0, 64, (0.97, 1.57))
    assert "secret" not in (adapted.parent / "images.csv").read_text()


def test_a_prior_lists_the_images_it_saw_so_that_it_may_begin_other_trainings(adapted, made):
    drawn = image_marks(read_table(made.parent / "drawn" / "table.csv").samples)
    assert images_seen(made) == set(drawn)
    tables = ("images.csv", "drawn/table.csv")
    seen = [image_marks(read_table(adapted.parent / name).samples) for name in tables]
    assert images_seen(adapted) == set(drawn).union(*seen)


def test_an_adapted_prior_is_a_plain_prior_of_averaged_weights(adapted, made):
    config, given = read_model_config(adapted), read_model_config(made)
    assert (config.options, config.backbone) == (given.options, given.backbone)
    facts = {"images": 5, "adapted_from": given.weights_sha256, "scene": "disc", "seed": 0}
    assert config.provenance.items() >= facts.items()
    assert config.provenance["saw"].endswith("no real image; then 5 real images without labels and masks")
    run = weights(adapted.parent / "run" / "model")
    own = weights(adapted)
    assert own.keys() == weights(made).keys()
    shift = config.provenance["shift"]
    for name, value in own.items():
        if name.startswith(("backbone.", "decoder.")):
            expected = run[f"average.module.{name}"] + (shift if name == "decoder.head.bias" else 0)
            assert torch.equal(value, expected.to(value.dtype)), name
    image = read_image(made.parent / "drawn" / "images" / "benign_00000.png")
    expected, got = (load(folder, "cpu").predict(image, mpp=1.0).roi for folder in (adapted.parent / "run", adapted))
    np.testing.assert_allclose(got, expit(logit(expected) + shift), atol=0.01)
    assert np.abs(got - load(made, "cpu").predict(image, mpp=1.0).roi).max() > 0.01


def test_an_adapted_prior_finds_as_much_as_before(adapted, made):
    images = read_table(adapted.parent / "images.csv").samples
    before, after = (
        np.mean([float((model.output_of(read_pixels(s), s.mpp).evidence >= 0).float().mean()) for s in images])
        for model in (load(made, "cpu"), load(adapted, "cpu"))
    )
    assert after == pytest.approx(before, abs=0.02)


def test_an_adapted_prior_can_be_adapted_again_to_a_folder_of_images(adapted, real, tiny_adapt, tmp_path):
    options = replace(tiny_adapt, mpp=0.5, drawn=adapted.parent / "drawn" / "table.csv")
    again = adapt(adapted, real.parent, tmp_path / "again", options, progress=False)
    assert len(read_table(tmp_path / "again" / "images.csv").samples) == 6
    assert read_model_config(again).provenance["saw"].count("real images without labels and masks") == 2
    assert not (tmp_path / "again" / "drawn").exists()


def test_the_number_of_epochs_makes_for_enough_steps(made, real, tiny_adapt, tmp_path, monkeypatch):
    monkeypatch.setattr("histoloc.prior.STEPS", 6)
    out = adapt(made, real, tmp_path, replace(tiny_adapt, epochs=None), progress=False).parent / "run"
    assert len(pd.read_csv(out / "log.csv")) == 3, "of two steps each"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mpp": None}, r"6 of 6 images do not say their scale, and the prior looks at 1 µm/px; give --mpp"),
        ({"mpp": 0.25}, r"0\.png: its shorter side has 50 px at the 1 µm/px of the prior, where 96 are needed"),
    ],
)
def test_images_whose_scale_does_not_do(made, real, tiny_adapt, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        adapt(made, real.parent, tmp_path / "out", replace(tiny_adapt, **change), progress=False)


def test_a_prior_that_does_not_say_its_scene_or_scale(tiny, tiny_adapt, real, tmp_path):
    from histoloc.training import train

    run = train(tiny("prior", epochs=1, backbone="test_efficientnet"), tmp_path / "run", progress=False)
    with pytest.raises(InputError, match="does not say which scene it was trained on; give --drawn"):
        adapt(run, real, tmp_path / "out", tiny_adapt, progress=False)
    gap = replace(tiny_adapt, recipe="quickstart-gap")
    with pytest.raises(InputError, match="--recipe quickstart-gap: is for gap; give one for prior"):
        adapt(run, real, tmp_path / "out", replace(gap, drawn=real), progress=False)


# --- the command line ---


def test_priors_that_are_shipped_are_listed(made, tmp_path, monkeypatch, capsys):
    assert all(re.match(r"prior:\w+ .* µm/px", line) for line in list_priors())
    monkeypatch.setattr(model_folder, "PRIORS", tmp_path)
    main(["prior", "list"])
    assert capsys.readouterr().out == "no prior is shipped; `histoloc prior make` makes one\n"
    (tmp_path / "small").symlink_to(made)
    main(["prior", "list"])
    checksum = read_model_config(made).weights_sha256[:12]
    expected = rf"prior:small  scene disc  1 µm/px  \d\.\d MB  {checksum}  saw 8 drawn images of the scene disc .*"
    assert re.match(expected, capsys.readouterr().out)


def test_commands(recipe, real, tmp_path, capsys):
    flags = ["--scene", "disc", "--count", "4", "--height", "96", "--width", "112", "--drawers", "1"]
    main(["prior", "make", "--out", str(tmp_path / "a"), "--recipe", recipe, "--accelerator", "cpu", *flags])
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "a" / "model")
    with pytest.raises(SystemExit):
        main(["prior", "adapt", str(tmp_path / "a"), "--data", str(real), "--out", str(tmp_path / "b"), "--count", "0"])
    assert "--count 0 is wrong (must be at least 1)" in capsys.readouterr().err


@pytest.mark.parametrize("mpp", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_no_image_has_is_refused(mpp):
    with pytest.raises(InputError, match=r"--mpp .* is wrong .must be (above 0|a finite number)"):
        AdaptOptions(mpp=mpp)


def test_no_epochs_are_not_the_usual_number_of_epochs(made, real, tiny_adapt, tmp_path):
    with pytest.raises(InputError, match=r"--epochs .* is wrong .must be at least 1"):
        adapt(made, real, tmp_path / "out", replace(tiny_adapt, epochs=0), progress=False)


def test_training_crops_are_whole_positions(made, real):
    samples, given = read_table(real, check_files=False).samples, read_model_config(made)
    scales, crop = scales_and_crop(samples, replace(given, input=replace(given.input, crop=800)), "real.csv")
    shorter = min(round(min(sample_size(s)) * scale) for s, scale in zip(samples, scales, strict=True))
    assert (crop % 16, 0 <= shorter - crop < 16) == (0, True)
