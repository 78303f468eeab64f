import dataclasses
import importlib
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from histoloc.cli.main import main
from histoloc.config import (
    Published,
    RunConfig,
    TrainingConfig,
    method_class,
    plain,
    read_recipe,
    read_run,
    read_yaml,
    recipe_about,
    recipe_names,
    run_config,
    strict,
    write_run,
)
from histoloc.data.transforms import HALF, InputConfig
from histoloc.errors import InputError
from histoloc.methods import METHODS
from histoloc.methods.maxmin import MaxMinOptions
from histoloc.nn.backbone import BackboneConfig

MINIMAL = {"method": "maxmin", "data": "glas.csv"}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    kind: Literal["round", "square"] = "round"


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner = field(default_factory=Inner)
    perhaps: Inner | None = None
    pair: tuple[float, float] = (0.0, 1.0)


def test_strict_makes_nested_dataclasses():
    made = strict(Outer, {"name": "a", "inner": {"rate": 2}, "perhaps": {"kind": "square"}, "pair": [1, 2]}, "f.yaml")
    assert made == Outer("a", Inner(2.0), Inner(kind="square"), (1.0, 2.0))
    assert strict(Outer, {"name": "a", "perhaps": None}, "f.yaml") == Outer("a")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "a", "iner": {}}, r"f\.yaml: unknown key iner \(did you mean inner\?\); correct or remove it"),
        ({"name": "a", "zzz": 1}, r"f\.yaml: unknown key zzz; correct or remove it"),
        ({"name": "a", 3: 1}, r"unknown key 3"),
        ({"name": "a", "inner": {"rat": 1}}, r"unknown key inner\.rat \(did you mean rate\?\)"),
        ({"name": "a", "perhaps": {"rat": 1}}, r"unknown key perhaps\.rat \(did you mean rate\?\)"),
        ({}, r"f\.yaml: name is missing; add it"),
        ({"name": "a", "inner": None}, r"inner must hold `key: value` pairs"),
        ({"name": "a", "inner": [1]}, r"inner must hold `key: value` pairs"),
        ({"name": "a", "inner": {"rate": "fast"}}, r"inner\.rate = 'fast' is wrong \(must be a valid number"),
        ({"name": "a", "inner": {"kind": "oval"}}, r"inner\.kind = 'oval' .*'round' or 'square'"),
        ({"name": ["a"]}, r"name = \['a'\] is wrong"),
        ({"name": "a", "pair": [1, 2, 3]}, r"pair = \[1, 2, 3\] is wrong"),
    ],
)
def test_strict_names_what_is_wrong(values, message):
    with pytest.raises(InputError, match=message):
        strict(Outer, values, "f.yaml")


def test_a_dataclass_speaks_for_itself():
    with pytest.raises(InputError) as caught:
        run_config(MINIMAL | {"training": {"epochs": 0}}, "run.yaml")
    assert str(caught.value) == "run.yaml: training.epochs = 0 is wrong (must be at least 1); correct it"
    with pytest.raises(InputError, match=r"run\.yaml: --crop 500 must be at most --small-side 432"):
        run_config(MINIMAL | {"input": {"crop": 500}}, "run.yaml")


def test_minimal_run_has_every_default():
    config = run_config(MINIMAL, "run.yaml")
    half = InputConfig(mean=HALF, std=HALF)
    assert config == RunConfig("maxmin", Path("glas.csv"), options=MaxMinOptions(), input=half)
    assert config.training == TrainingConfig()
    assert config.backbone == BackboneConfig()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": "glas.csv"}, "method is missing"),
        ({"method": "maxmin"}, "data is missing"),
        ({"method": "maxmn", "data": "x"}, r"method 'maxmn' is unknown \(did you mean maxmin\?\)"),
        (MINIMAL | {"options": {"slop": 3}}, r"options of maxmin: unknown key slop \(did you mean slope\?\)"),
        (MINIMAL | {"options": {"background": "SEM"}}, r"background = 'SEM' .*'none', 'eem' or 'sem'"),
        (MINIMAL | {"options": {"slope": None}}, "slope = None is wrong"),
        (MINIMAL | {"options": [1]}, "options of maxmin: this must hold `key: value` pairs"),
        (MINIMAL | {"method": "gap", "options": {"slope": 3}}, "options of gap: unknown key slope"),
        (MINIMAL | {"training": {"epoch": 3}}, r"unknown key training\.epoch \(did you mean epochs\?\)"),
        (MINIMAL | {"training": {"epochs": 2.5}}, r"training\.epochs = 2\.5 is wrong"),
        (MINIMAL | {"training": {"lr": math.nan}}, r"training\.lr = nan is wrong .must be a finite number"),
        (MINIMAL | {"fold": "first"}, "fold = 'first' is wrong"),
        (MINIMAL | {"published": {"source": "x", "f1": 3}}, r"unknown key published\.f1 \(did you mean f1_plus\?\)"),
        (MINIMAL | {"input": {"std": [0.5, 0, 0.5]}}, r"input\.std\.1 = 0 is wrong .must be above 0"),
    ],
)
def test_wrong_runs(values, message):
    with pytest.raises(InputError, match=message):
        run_config(values, "run.yaml")


@pytest.mark.parametrize("lr", ["1e-3", "0.001", "1.0e-3", "'1e-3'"])
def test_numbers_as_people_write_them(tmp_path, lr):
    path = tmp_path / "run.yaml"
    path.write_text(f"method: gap\ndata: x.csv\ntraining:\n  lr: {lr}\n")  # YAML 1.1 reads 1e-3 as text
    assert read_run(path).training.lr == 0.001


@pytest.mark.parametrize(("written", "read"), [("2", "2"), ("auto", "auto"), ("'2'", "2")])
def test_devices_are_a_number_or_a_word(tmp_path, written, read):
    path = tmp_path / "run.yaml"
    path.write_text(f"method: gap\ndata: x.csv\ntraining:\n  devices: {written}\n")
    assert read_run(path).training.devices == read


@pytest.mark.parametrize("name", METHODS)
def test_run_yaml_replays(name, tmp_path):
    config = RunConfig(
        name,
        Path("data/glänzend.csv"),
        fold=3,
        options=method_class(name).Options(),
        backbone=BackboneConfig("resnet18", 16, weights="none"),
        input=InputConfig(small_side=256, crop=224, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)),
        training=TrainingConfig(epochs=3, lr=1e-7, selection="last", threshold="otsu", compile=True),
        recipe="glas-sem",
        published=Published("paper", 0.0, None, 69.2),
    )
    write_run(tmp_path / "run.yaml", config)
    assert read_run(tmp_path / "run.yaml") == config


def test_every_option_of_maxmin_replays(tmp_path):
    values: dict[str, Any] = {
        f.name: f.default * 0.5 + 0.01 for f in dataclasses.fields(MaxMinOptions) if isinstance(f.default, float)
    }
    values |= {"background": "eem", "background_trains": "localizer", "networks": "two", "normalisation": "none"}
    values |= {"fill": "blur", "joint": False, "size": "none", "modalities": 2}
    values |= {"localizer": "decoder", "randomise": True, "flips": 4, "scales": (0.5, 1.0)}
    assert len(values) == len(dataclasses.fields(MaxMinOptions))
    options = MaxMinOptions(**values)
    config = RunConfig("maxmin", Path("x.csv"), options=options, input=InputConfig(mean=HALF, std=HALF))
    write_run(tmp_path / "run.yaml", config)
    assert read_run(tmp_path / "run.yaml") == config


# --- what the backbone's weights were trained with ---


def normalisation(backbone: str, **values: Any) -> tuple[Any, Any]:
    made = run_config({**MINIMAL, "backbone": {"backbone": backbone, "weights": "none"}, "input": values}, "run.yaml")
    return made.input.mean, made.input.std


@pytest.mark.parametrize(
    ("backbone", "mean", "std"),
    [
        ("tf_efficientnet_lite0", HALF, HALF),
        ("resnet50", *IMAGENET),
        ("resnet50.a1_in1k", *IMAGENET),
        ("test_efficientnet", *IMAGENET),
        ("vit_small_patch16_224", HALF, HALF),
        # The same architecture with weights of several trainings.
        ("vit_base_patch16_224.augreg_in21k", HALF, HALF),
        ("vit_base_patch16_224.dino", *IMAGENET),
        # Refused where they are built.
        ("no_such_model", HALF, HALF),
        ("resnet18.no_such_tag", HALF, HALF),
    ],
)
def test_images_are_normalised_as_the_backbones_weights_were_trained(backbone, mean, std):
    assert normalisation(backbone) == (mean, std)


def test_a_named_normalisation_wins():
    assert normalisation("resnet50", mean=[0.1, 0.2, 0.3]) == ((0.1, 0.2, 0.3), IMAGENET[1])
    assert normalisation("resnet50", std=[0.1, 0.2, 0.3]) == (IMAGENET[0], (0.1, 0.2, 0.3))
    assert normalisation("resnet50", mean=HALF, std=HALF) == (HALF, HALF)


@pytest.mark.parametrize("known", [None, SimpleNamespace(mean=None, std=(1.0, 1.0, 1.0))])
def test_a_backbone_whose_training_timm_does_not_know(monkeypatch, known):
    monkeypatch.setattr("timm.get_pretrained_cfg", lambda *_, **__: known)
    assert normalisation("resnet50") == (HALF, HALF)


def test_a_recipe_replays_the_normalisation_of_its_run(tmp_path):
    """The numbers are in run.yaml, so that another timm does not change them."""
    write_run(tmp_path / "run.yaml", run_config({**MINIMAL, "backbone": {"backbone": "resnet50"}}, "run.yaml"))
    written = read_yaml(tmp_path / "run.yaml")["input"]
    assert (tuple(written["mean"]), tuple(written["std"])) == IMAGENET
    assert read_run(tmp_path / "run.yaml").input.mean == IMAGENET[0]


def test_the_commands_of_the_docs_normalise_as_their_backbone_needs(monkeypatch, tmp_path):
    page = (Path(__file__).parents[1] / "docs" / "own-images.md").read_text(encoding="utf-8")
    flags = re.findall(r"histoloc train maxmin .* (--backbone .*)", page)
    made: dict[str, RunConfig] = {}

    def train(config: RunConfig, *_: Any, **__: Any) -> None:
        made[config.backbone.backbone] = config

    # By import_module, because the package's own name `train` is the function.
    monkeypatch.setattr(importlib.import_module("histoloc.training"), "train", train)
    for some in flags:
        main(["train", "maxmin", "--data", "mine.csv", "--out", str(tmp_path), *some.split()])
    assert (made["resnet50"].backbone.weights, made["resnet50"].backbone.dilate) == ("hub", True)
    assert (made["resnet50"].input.mean, made["resnet50"].input.std) == IMAGENET
    vit = made["vit_small_patch16_224"]
    assert (vit.backbone.stride, vit.input.mean, vit.input.std) == (0, HALF, HALF)


def test_a_tag_that_timm_does_not_know_is_one_sentence(tiny_flags, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", "gap", *tiny_flags(out=tmp_path / "run", backbone="resnet18.no_such_tag")])
    assert stopped.value.code == 2
    assert "Invalid pretrained tag (no_such_tag)" in capsys.readouterr().err.splitlines()[-1]


def test_plain_is_what_yaml_can_hold():
    assert plain(Outer("a", perhaps=Inner())) == {
        "name": "a",
        "inner": {"rate": 0.1, "kind": "round"},
        "perhaps": {"rate": 0.1, "kind": "round"},
        "pair": [0.0, 1.0],
    }
    assert plain({"path": Path("a") / "b"}) == {"path": "a/b"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"a: [1", "not valid YAML"),
        (b"- 1\n- 2\n", "must hold `key: value` lines"),
        (b"", "must hold `key: value` lines"),
        (b"!!python/object/apply:os.getcwd []\n", "not valid YAML"),
    ],
)
def test_unreadable_yaml(tmp_path, content, message):
    path = tmp_path / "run.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=rf"run\.yaml: {message}"):
        read_yaml(path)


def test_there_are_recipes():
    assert {"glas-sem", "glas-eem", "glas-gap"} <= set(recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_a_run_and_says_what_it_is(name):
    values = read_recipe(name)
    config = run_config(values | {"data": "glas.csv"}, name)
    assert "about" not in values
    assert recipe_about(name).endswith(".")
    for key in ("options", "training", "input", "backbone"):
        for option, value in (values.get(key) or {}).items():
            got = getattr(getattr(config, key), option)
            assert plain(got) == value or got == float(value)


def test_recipe_from_a_file_and_wrong_recipes(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("about: Mine.\nmethod: gap\ntraining: {epochs: 2}\n")
    assert read_recipe(str(path)) == {"method": "gap", "training": {"epochs": 2}}
    path.write_text("method: gap\ntraining: {epoch: 2}\n")
    with pytest.raises(InputError, match=r"unknown key training\.epoch"):
        read_recipe(str(path))
    with pytest.raises(InputError, match=r"recipe 'glas-semm' is unknown \(did you mean glas-sem\?\); choose one of"):
        read_recipe("glas-semm")
    with pytest.raises(InputError, match="cannot be read"):
        read_recipe(str(tmp_path / "absent.yaml"))
