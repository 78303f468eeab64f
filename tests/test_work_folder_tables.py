"""A folder that is continued with another content of its table, or computed by other means."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from histoloc.cli.main import main
from histoloc.data.table import read_table
from histoloc.datasets.synthetic.dataset import synthetic_table
from histoloc.errors import InputError
from histoloc.quickstart import quickstart
from histoloc.training import train
from histoloc.work_folder import (
    check_inputs,
    inputs_of,
    write_json,
)

WEIGHTS = "model/model.safetensors"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def table(tiny_table, tmp_path) -> Path:
    """A copy of the tiny table that a test may change; its paths are absolute."""
    rows = pd.read_csv(tiny_table, dtype=str, keep_default_na=False)
    for column in ("image", "mask"):
        rows[column] = [str(tiny_table.parent / cell) for cell in rows[column]]
    rows.to_csv(tmp_path / "table.csv", index=False)
    return tmp_path / "table.csv"


def exchange_labels(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(label=rows["label"].map({"benign": "malignant", "malignant": "benign"}))


def other_images(rows: pd.DataFrame) -> pd.DataFrame:
    """The same numbers, but an image of the test split and one of the training split have changed places."""
    a, b = (rows.index[(rows["split"] == split) & (rows["label"] == "benign")][0] for split in ("train", "test"))
    changed = rows.copy()
    changed.loc[[a, b], ["image", "mask"]] = rows.loc[[b, a], ["image", "mask"]].to_numpy()
    return changed


def change(table: Path, how) -> None:
    how(pd.read_csv(table, dtype=str, keep_default_na=False)).to_csv(table, index=False)


CHANGES = [
    (exchange_labels, "the counts are the same"),
    (other_images, "the counts are the same"),
    (lambda rows: rows.iloc[1:], "rows was 20 and is 19, counts.train.benign was 6 and is 5"),
    (
        lambda rows: rows.replace("malignant", "tumor"),
        "classes was ['benign', 'malignant'] and is ['benign', 'tumor'], counts.train.malignant was 6 and is None, "
        "counts.valid.malignant was 2 and is None, counts.test.malignant was 2 and is None, "
        "counts.train.tumor was None and is 6, counts.valid.tumor was None and is 2, "
        "counts.test.tumor was None and is 2",
    ),
]


@pytest.mark.parametrize(("how", "differing"), CHANGES)
def test_a_run_is_not_continued_with_another_content_of_its_table(tiny_flags, table, tmp_path, capsys, how, differing):
    out = tmp_path / "run"
    main(["train", "gap", *tiny_flags(data=table, out=out, epochs=1)])
    record = json.loads((out / "inputs.json").read_text())
    assert {name: record[name] for name in ("table", "rows", "classes", "counts")} == {
        "table": "table.csv",
        "rows": 20,
        "classes": ["benign", "malignant"],
        "counts": {
            "train": {"benign": 6, "malignant": 6},
            "valid": {"benign": 2, "malignant": 2},
            "test": {"benign": 2, "malignant": 2},
        },
    }
    before = contents(out)
    change(table, how)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["train", "gap", *tiny_flags(data=table, out=out, epochs=2), "--resume"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        f"histoloc: {out}: was begun with another content of table.csv ({differing}); restore the table, or choose "
        "another --out\n"
    )
    assert contents(out) == before


def test_a_run_replays_from_its_recipe_and_resumes_with_the_same_table(tiny_flags, table, tmp_path, capsys):
    out, again = tmp_path / "run", tmp_path / "again"
    main(["train", "gap", *tiny_flags(data=table, out=out, epochs=1)])
    change(table, lambda rows: rows.assign(remark="a column that is not read"))
    main(["train", "gap", *tiny_flags(data=table, out=out, epochs=2), "--resume"])
    main(["train", "gap", "--recipe", str(out / "run.yaml"), "--out", str(again)])
    assert (out / WEIGHTS).read_bytes() == (again / WEIGHTS).read_bytes()
    assert "note: " not in capsys.readouterr().err


def test_a_run_of_an_earlier_version_is_continued_with_a_note(tiny, table, tmp_path, capsys):
    out = train(tiny("gap", table, epochs=1), tmp_path / "run", progress=False)
    rest = (out / "inputs.json").read_bytes()
    (out / "inputs.json").unlink()
    train(tiny("gap", table, epochs=2), out, resume=True, progress=False)
    note = f"note: {out}: was begun by histoloc 0.1, which kept nothing of its table; table.csv may differ\n"
    assert note in capsys.readouterr().err
    assert (out / "inputs.json").read_bytes() == rest
    train(tiny("gap", table, epochs=2), out, resume=True, progress=False)
    assert "note: " not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("accelerator", "cuda", "accelerator was cuda and is cpu"),
        ("precision", "bf16-mixed", "precision was bf16-mixed and is 32-true"),
        ("processes", 8, "processes was 8 and is 1"),
    ],
)
def test_what_auto_stood_for_does_not_change_in_silence(tiny, table, tmp_path, key, value, message):
    """`auto` is the same setting on every machine, and hid that a run went on in another arithmetic."""
    automatic = {"precision": "auto", "accelerator": "auto"}
    if torch.cuda.is_available():
        pytest.skip("the messages are those of a machine without a GPU")
    out = train(tiny("gap", table, epochs=1, **automatic), tmp_path / "run", progress=False)
    here = json.loads((out / "inputs.json").read_text())
    here["computed_on"][key] = value
    write_json(out / "inputs.json", here)
    before = contents(out)
    with pytest.raises(InputError, match=rf"run: was begun with other settings \({message}\); restore them"):
        train(tiny("gap", table, epochs=2, **automatic), out, resume=True, progress=False)
    assert contents(out) == before


def test_a_device_may_be_named_that_auto_had_taken(tiny, table, tmp_path, capsys):
    """Where `auto` takes another one now, it can be restored only by its name."""
    out = train(tiny("gap", table, epochs=1, devices="auto"), tmp_path / "run", progress=False)
    train(tiny("gap", table, epochs=2, devices="1"), out, resume=True, progress=False)
    assert "note: " not in capsys.readouterr().err
    with pytest.raises(InputError, match=r"\(precision was 32-true and is bf16-mixed\)"):
        train(tiny("gap", table, epochs=2, precision="bf16-mixed"), out, resume=True, progress=False)


def test_a_run_that_does_not_say_its_device_is_continued_with_a_note(tiny, table, tmp_path, capsys):
    out = train(tiny("gap", table, epochs=1), tmp_path / "run", progress=False)
    write_json(out / "inputs.json", inputs_of(read_table(table)))
    with pytest.raises(InputError, match=r"training\.precision was 32-true and is bf16-mixed"):
        train(tiny("gap", table, epochs=2, precision="bf16-mixed"), out, resume=True, progress=False)
    train(tiny("gap", table, epochs=2), out, resume=True, progress=False)
    assert capsys.readouterr().err.count(f"note: {out}: says nothing of the device and precision") == 1


def test_what_never_was_trained_may_begin_with_another_table(tiny, table, tmp_path):
    with pytest.raises(InputError, match="no longer finite"):
        train(tiny("gap", table, lr=1e30), tmp_path / "run", progress=False)
    change(table, exchange_labels)
    train(tiny("gap", table, epochs=1), tmp_path / "run", resume=True, progress=False)
    record = json.loads((tmp_path / "run/inputs.json").read_text())
    assert record.pop("computed_on") == {"accelerator": "cpu", "precision": "32-true", "processes": 1}
    assert record.pop("home") == str(tmp_path / "run")
    assert record == inputs_of(read_table(table))


def test_the_quick_start_does_not_mix_runs_of_different_images(tmp_path):
    """The images were removed and drawn anew; a finished run is of the old ones."""
    run = tmp_path / "runs" / "maxmin"
    old = inputs_of(read_table(synthetic_table(out=tmp_path / "images", count=12, height=64, width=64).table))
    write_json(run / "inputs.json", old)
    write_json(run / "metrics.json", {})
    synthetic_table(out=tmp_path / "images", count=10, height=64, width=64)
    with pytest.raises(InputError, match=r"maxmin: was begun with another content of .* \(rows was 12 and is 10,"):
        quickstart(tmp_path)


def test_the_same_counts_with_another_fingerprint_are_another_table(capsys):
    before = {"table": "t.csv", "fingerprint": "1", "rows": 1, "classes": ["a"], "counts": {"train": {"a": 1}}}
    check_inputs(Path("out"), before, {**before, "table": "moved.csv"})
    with pytest.raises(
        InputError, match=r"^out: was begun with another content of t\.csv \(the counts are the same\);"
    ):
        check_inputs(Path("out"), before, {**before, "fingerprint": "2"})
    assert capsys.readouterr().err == ""
