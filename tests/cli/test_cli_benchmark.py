"""The commands: what they hand over, how they end."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

import histoloc.benchmark.run as run_module
from histoloc.benchmark.presets import Choices, MapChoices
from histoloc.cli.main import main


@pytest.fixture
def asked(monkeypatch) -> list:
    """What `benchmark` is called with; it does nothing."""
    calls: list = []

    def pretend(kind, choices):
        calls.append((kind, choices))
        return SimpleNamespace(failed=[choices] if choices.seeds == "13" else [])

    monkeypatch.setattr(run_module, "benchmark", pretend)
    return calls


def test_flags_reach_the_engine(asked):
    flags = "--data a/glas.csv --folds 0-4 --seeds 0-2 --out bench --rows gap,maxmin-sem --preset fast --workers 2"
    more = "--devices 0,1 --split valid --epochs 3 --backbone resnet18 --stride 16 --weights none --maps 5"
    special = "--empty-class normal --published camelyon16"
    main(["benchmark", "table1", *flags.split(), *more.split(), *special.split()])
    main(["benchmark", "ablation", "--data", "t.csv", "--out", "b"])
    value = (
        "0-4",
        "0-2",
        "gap,maxmin-sem",
        "fast",
        2,
        "0,1",
        "valid",
        3,
        "resnet18",
        16,
        "none",
        5,
        "normal",
        "camelyon16",
    )
    assert asked == [
        ("table1", Choices(Path("a/glas.csv"), Path("bench"), *value)),
        ("ablation", Choices(Path("t.csv"), Path("b"))),
    ]


def test_a_failed_cell_is_exit_code_1(asked):
    with pytest.raises(SystemExit) as ended:
        main(["benchmark", "table1", "--data", "t.csv", "--out", "b", "--seeds", "13"])
    assert ended.value.code == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--folds 0..4", r"--folds 0\.\.4: cannot be understood"),
        ("--folds 0-4", r"--folds 0-4: .*table\.csv has no folds"),
        ("--rows gpa", r"table1 has no row 'gpa' \(did you mean gap\?\)"),
        ("--devices 99", r"--devices 99: .* give auto, cpu, or numbers of GPUs"),
        ("--workers 0", r"--workers 0 is wrong .must be at least 1"),
        ("--preset slow", r"slow"),
        ("--data nowhere.csv", r"nowhere\.csv: there is no such table"),
        ("--sees 3", r"--sees"),
    ],
)
def test_a_wrong_call_is_one_sentence_and_exit_code_2(tiny_table, tmp_path, capsys, arguments, sentence):
    flags = {"--out": str(tmp_path / "b"), "--data": str(tiny_table), "--rows": "gap"}
    flags |= dict([arguments.split()])
    with pytest.raises(SystemExit) as ended:
        main(["benchmark", "table1", *(word for flag in flags.items() for word in flag)])
    output = capsys.readouterr().err
    assert ended.value.code == 2
    assert re.fullmatch(r"histoloc: .+\n", output)
    assert re.search(sentence, output)
    assert not (tmp_path / "b").exists()


def test_help_explains_every_flag(capsys):
    main(["benchmark", "table1", "--help"])
    values = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", capsys.readouterr().out))
    assert {f"--{name.replace('_', '-')}" for name in Choices.__dataclass_fields__} <= values


def test_maps_have_a_preset_and_options_of_their_own(asked):
    main(["benchmark", "maps", "--data", "glas.csv", "--seeds", "0-2", "--priors", "p", "--results", "r.jsonl"])
    assert asked == [("maps", MapChoices(Path("glas.csv"), seeds="0-2", priors=Path("p"), results=Path("r.jsonl")))]
    chosen = asked[0][1]
    assert (chosen.preset, chosen.out, chosen.prior) == ("fast", Path("bench"), "prior:glands")
