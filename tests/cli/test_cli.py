"""The real command line: what it lists, what it prints, and flag > recipe > default."""

import re
from dataclasses import replace

import pandas as pd
import pytest
import yaml

from histoloc.cli.main import app, main
from histoloc.config import recipe_names
from histoloc.data.transforms import InputConfig
from histoloc.methods import METHODS
from histoloc.model_folder import ModelConfig, build_method, save_model
from histoloc.nn.backbone import BackboneConfig
from histoloc.types import tier

WEIGHTS = "model/model.safetensors"


def run_yaml(folder) -> dict:
    return yaml.safe_load((folder / "run.yaml").read_text())


@pytest.fixture
def command(capsys):
    """Run a command; what it printed."""

    def run(*arguments) -> str:
        capsys.readouterr()
        main([str(a) for a in arguments])
        return capsys.readouterr().out

    return run


# --- lists ---


def test_methods_and_recipes_are_listed(command):
    listed = command("methods")
    assert [line.split()[0] for line in listed.splitlines()] == list(METHODS)
    assert "TMI 2022" in listed
    assert all(tier(m.supervision) in line for m, line in zip(METHODS.values(), listed.splitlines(), strict=True))
    lines = command("recipes").splitlines()
    assert [line.split()[0] for line in lines] == recipe_names()
    assert all(len(line.split()) > 3 for line in lines), "every recipe says what it is"


def test_doctor_names_what_there_is(command):
    result = command("doctor")
    for name in (
        "histoloc",
        "torch",
        "timm",
        "processor",
        "cores",
        "memory",
        "GPU",
        "bf16",
        "torch.compile",
        "weights",
        "OpenSlide",
    ):
        assert re.search(rf"^{name}\s+\S", result, re.MULTILINE), name


def test_an_interrupted_command_says_so(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("histoloc.config.recipe_names", interrupted)
    with pytest.raises(SystemExit, match="130"):
        main(["recipes"])
    assert "histoloc: interrupted; what is complete is kept; the same command does the rest" in capsys.readouterr().err


def test_fewer_than_no_maps_are_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", "run", "--data", "table.csv", "--maps", "-1"])
    assert "--maps -1 is wrong (must be at least 0); correct it" in capsys.readouterr().err


def options_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text))


@pytest.mark.parametrize("method", list(METHODS))
def test_train_help_lists_the_options_of_this_method_only(command, method):
    values = options_in(command("train", method, "--help"))
    own = {f"--{name.replace('_', '-')}" for name in METHODS[method].Options.__dataclass_fields__}
    others = {
        f"--{name.replace('_', '-')}" for other in METHODS.values() for name in other.Options.__dataclass_fields__
    }
    assert own <= values
    assert not (others - own) & values
    assert {"--data", "--out", "--fold", "--recipe", "--resume"} <= values
    assert {"--backbone", "--stride", "--weights", "--small-side", "--crop", "--epochs", "--lr"} <= values


COMMANDS = ["evaluate", "predict", "report", "quickstart", "data", "train", "slides", "view"]


@pytest.mark.parametrize("command_name", COMMANDS)
def test_every_command_explains_itself(command, command_name):
    assert "Usage" in command(command_name, "--help")
    assert re.search(rf"│ {command_name} ", command("--help"))


def test_data_lists_its_sources(command):
    values = command("data", "--help")
    assert "Turn a data set into a table (CSV)" in values
    for source in ("glas", "folder", "slides", "camelyon16", "synthetic"):
        assert re.search(rf"│ {source} ", values), source
    assert "the exit code is 1" in " ".join(command("data", "slides", "--help").split())


# --- train, evaluate, predict, report ---


def test_train_then_evaluate_then_predict_then_report(command, tiny_flags, tiny_table, tmp_path):
    run = tmp_path / "run"
    printed = command("train", "gap", *tiny_flags(out=run))
    assert printed.startswith("validation: 4 images: Cl. error ")
    assert (run / "report.html").is_file()
    assert (run / "evaluation" / "valid" / "metrics.json").is_file()
    printed = command("evaluate", run, "--data", tiny_table, "--device", "cpu")
    first, second, *rest = printed.splitlines()
    assert re.fullmatch(r"4 images: Cl\. error .*, F1\+ .*, F1- .*, PxAP .*", first)
    assert second.startswith("beside it, learning nothing: All-ones ")
    assert rest[-1] == f"written: {run / 'evaluation' / 'test'}"
    images = tiny_table.parent / "images"
    printed = command("predict", run, images, "--out", tmp_path / "out", "--mpp", "0.5", "--device", "cpu")
    assert printed.splitlines()[-1] == str(tmp_path / "out" / "predictions.csv")
    assert len(pd.read_csv(tmp_path / "out" / "predictions.csv")) == 20
    printed = command("report", run, "--out", tmp_path / "report.html")
    assert printed.strip() == str(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text().startswith("<!")


def test_data_commands_write_tables(command, tmp_path):
    printed = command("data", "synthetic", "--out", tmp_path / "s", "--count", 10, "--height", 64, "--width", 64)
    assert printed.splitlines()[-1] == str(tmp_path / "s" / "table.csv")
    assert re.search(r"train +3 +3\n", printed)
    for name in ("benign", "malignant"):
        (tmp_path / "f" / name).mkdir(parents=True)
    for image in (tmp_path / "s" / "images").iterdir():
        (tmp_path / "f" / image.name.split("_")[0] / image.name).write_bytes(image.read_bytes())
    printed = command("data", "folder", tmp_path / "f", "--out", tmp_path / "f.csv")
    assert printed.splitlines()[-1] == str(tmp_path / "f.csv")
    assert "malignant" in printed


# --- flag > recipe > default ---


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "mine.yaml"
    values = {
        "about": "A recipe of my own.",
        "method": "maxmin",
        "options": {"background": "eem", "kmax": 0.5},
        "input": {"hue": 0.01, "mean": [0.4, 0.5, 0.6]},
        "training": {"epochs": 1, "lr": 0.003, "selection": "last"},
        "published": {"source": "a table", "f1_plus": 70.0},
    }
    path.write_text(yaml.safe_dump(values))
    return path


def test_flags_win_over_the_recipe_and_the_recipe_over_defaults(command, tiny_flags, recipe, tmp_path):
    run = tmp_path / "run"
    flags = tiny_flags(out=run, recipe=recipe, epochs=None, lr=0.007, kmax=0.25)
    command("train", "maxmin", *flags)
    written = run_yaml(run)
    assert (written["training"]["lr"], written["options"]["kmax"]) == (0.007, 0.25), "flags"
    assert (written["training"]["epochs"], written["training"]["selection"]) == (1, "last"), "recipe"
    assert (written["options"]["background"], written["input"]["mean"]) == ("eem", [0.4, 0.5, 0.6]), "recipe"
    assert (written["training"]["momentum"], written["options"]["modalities"]) == (0.9, 5), "defaults"
    assert written["published"] == {"source": "a table", "cl_error": None, "f1_plus": 70.0, "f1_minus": None}
    assert written["recipe"] == str(recipe)


def test_a_shipped_recipe_is_found_by_name(command, tiny_flags, tmp_path):
    run = tmp_path / "run"
    command("train", "gap", *tiny_flags(out=run, recipe="glas-gap", epochs=1))
    written = run_yaml(run)
    assert (written["recipe"], written["training"]["selection"]) == ("glas-gap", "error-latest")
    assert written["published"]["f1_plus"] == 66.90


@pytest.mark.parametrize(("method", "needs"), [("maxmin", {"localizer": "decoder"}), ("unet", {"decoder": "sum"})])
def test_a_prior_sets_its_network_its_scale_and_what_the_method_needs_where_no_flag_does(method, needs, tmp_path):
    seen = InputConfig(small_side=216, crop=208, zoom=(1.0, 1.5), hue=0.0)
    network = BackboneConfig("test_efficientnet", 16, weights="none")
    own = METHODS["prior"].Options(flips=4, scales=(0.7, 1.0), average=0.5)
    config = ModelConfig("prior", (), own, network, seen, mpp=1.0)
    save_model(tmp_path, build_method(config, load_backbone=True).state_dict(), config)
    flags = ["--data", "x.csv", "--out", "run", "--prior", str(tmp_path), "--crop", "48", "--saturation", "0.1"]
    _, bound, _ = app.parse_args(["train", method, *flags], exit_on_error=False)
    given = bound.arguments
    assert given["backbone"] == BackboneConfig("test_efficientnet", 16), "weights stay the backbone's own"
    assert given["input"] == replace(seen, small_side=0, mpp=1.0, crop=48, saturation=0.1)
    shared = {"flips": 4, "scales": (0.7, 1.0)} if method == "maxmin" else {}
    assert given["options"] == METHODS[method].Options(**shared, **METHODS[method].with_prior)
    assert needs.items() <= vars(given["options"]).items()
    absent = ["train", method, *flags[:4], "--prior", str(tmp_path / "absent")]
    assert not {"input", "backbone"} & set(app.parse_args(absent, exit_on_error=False)[1].arguments), "training says it"


def test_run_yaml_replays_a_run_to_the_same_bytes(command, tiny_flags, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    flags = tiny_flags(out=first, seed=5, dropout=0.2, epochs=1)
    command("train", "maxmin", *flags, "--quarter-turns", "--mean", "0.4", "0.5", "0.6")
    command("train", "maxmin", "--recipe", first / "run.yaml", "--out", second)
    assert (first / WEIGHTS).read_bytes() == (second / WEIGHTS).read_bytes()
    assert run_yaml(first) == run_yaml(second)
    assert run_yaml(first)["input"]["quarter_turns"] is True


def test_resume_goes_on_from_the_command_line(command, tiny_flags, tmp_path):
    part, whole = tmp_path / "part", tmp_path / "whole"
    command("train", "gap", *tiny_flags(out=part, epochs=1))
    command("train", "gap", *tiny_flags(out=part, epochs=2), "--resume")
    command("train", "gap", *tiny_flags(out=whole, epochs=2))
    assert (part / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()


@pytest.mark.slow
def test_the_quick_start_ends_in_a_report_and_goes_on_where_it_was(command, tmp_path):
    printed = command("quickstart", tmp_path / "q", "--count", 10, "--epochs", 1)
    assert printed.splitlines()[-1] == f"report: {tmp_path / 'q' / 'report.html'}"
    weights = {p: p.stat().st_mtime_ns for p in (tmp_path / "q" / "runs").glob(f"*/{WEIGHTS}")}
    assert len(weights) == 3
    command("quickstart", tmp_path / "q", "--count", 10, "--epochs", 1)
    assert {p: p.stat().st_mtime_ns for p in weights} == weights
