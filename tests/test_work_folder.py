"""Two calls in one folder, and a folder that is continued with other settings or with another table."""

import dataclasses
import json
import multiprocessing
import platform
import re
import subprocess
import sys
import threading
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from histoloc.cli.main import main
from histoloc.config import read_run
from histoloc.data.table import read_table
from histoloc.datasets.synthetic.dataset import synthetic_table
from histoloc.errors import InputError
from histoloc.model_folder import read_model_config
from histoloc.quickstart import quickstart
from histoloc.training import train
from histoloc.work_folder import (
    LOCK,
    OWNER,
    check_claim,
    check_inputs,
    first_alone,
    inputs_of,
    locked,
    read_json,
    write_json,
)

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["histoloc.cli.train", "histoloc.training", "histoloc.report"])
WEIGHTS = "model/model.safetensors"
HOLDER = """
import sys
from pathlib import Path
from histoloc.work_folder import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def elsewhere(folder: Path) -> str:
    """What another thread, which is no part of the call that holds the folder, gets to read; empty if it may lock."""
    messages: list[str] = []

    def attempt() -> None:
        try:
            with locked(folder):
                messages.append("")
        except InputError as error:
            messages.append(str(error))

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    return messages[0]


# --- the lock ---


def test_another_process_is_refused_at_once_and_a_killed_one_frees_the_folder(tmp_path):
    folder = tmp_path / "deep" / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    with pytest.raises(InputError) as refused, locked(folder):
        pass
    assert re.fullmatch(
        rf"{re.escape(str(folder))}: another call is writing here \(process {holder.pid} on "
        rf"{re.escape(platform.node())}, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d\); wait until it ends, or "
        r"choose another --out",
        str(refused.value),
    )
    holder.kill()
    holder.communicate()
    assert set(contents(folder)) == {LOCK, OWNER}, "nobody was there to remove them"
    with locked(folder):
        assert f"process {holder.pid} " not in elsewhere(folder)
    assert contents(folder) == {}


def test_a_call_within_a_call_goes_with_its_lock(tmp_path):
    with locked(tmp_path):
        with locked(tmp_path / "sub" / ".."), locked(tmp_path / "sub"):
            assert "another call is writing here" in elsewhere(tmp_path / "sub")
        assert elsewhere(tmp_path / "sub") == ""
        assert "another call is writing here" in elsewhere(tmp_path), "the call within has not given it back"
    assert elsewhere(tmp_path) == ""
    assert contents(tmp_path) == {}


def test_an_error_frees_the_folder(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        _ = 1 / 0
    assert contents(tmp_path) == {}
    assert elsewhere(tmp_path) == ""


def test_who_holds_a_folder_need_not_be_known(tmp_path):
    with locked(tmp_path):
        (tmp_path / OWNER).unlink()
        assert elsewhere(tmp_path) == (
            f"{tmp_path}: another call is writing here; wait until it ends, or choose another --out"
        )


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    for place in ("file", "file/sub"):
        with pytest.raises(InputError, match=rf"{place}: cannot be written \(.*\); choose another folder by --out"):
            locked(tmp_path / place).__enter__()


@dataclasses.dataclass
class Processes:
    """As Fabric has them: a first process, or another one that hears what the first one says."""

    is_global_zero: bool
    heard: bool = False

    def broadcast(self, obj: bool) -> bool:
        return obj if self.is_global_zero else self.heard


def test_of_several_processes_the_first_alone_works_and_the_others_stop_with_it():
    def refuse() -> str:
        raise InputError("taken")

    assert first_alone(Processes(True), lambda: "done") == "done"
    assert first_alone(Processes(False), refuse) is None
    with pytest.raises(InputError, match="taken"):
        first_alone(Processes(True), refuse)
    with pytest.raises(SystemExit) as stopped:
        first_alone(Processes(False, heard=True), refuse)
    assert stopped.value.code == 2


# --- commands ---


def command(arguments: list[str], together: Any, errors: Path) -> None:
    together.wait()
    with errors.open("w") as file, redirect_stderr(file):
        main(arguments)


def test_of_two_trainings_into_one_folder_at_once_one_is_refused(tiny, tiny_flags, tmp_path):
    out, together = tmp_path / "run", PROCESSES.Barrier(2)
    calls = []
    for seed in (1, 2):
        arguments = ["train", "gap", *tiny_flags(out=out, seed=seed, epochs=3)]
        calls.append(PROCESSES.Process(target=command, args=(arguments, together, tmp_path / f"{seed}.txt")))
        calls[-1].start()
    for call in calls:
        call.join()
    codes = [call.exitcode for call in calls]
    assert sorted(codes) == [0, 2]
    winner, loser = codes.index(0) + 1, codes.index(2) + 1
    said = (tmp_path / f"{loser}.txt").read_text()
    assert re.fullmatch(
        rf"histoloc: .*run: another call is writing here \(process {calls[winner - 1].pid} on .*\n", said
    )
    assert read_run(out / "run.yaml").training.seed == winner
    assert read_model_config(out).provenance["seed"] == winner
    alone = train(tiny("gap", seed=winner, epochs=3), tmp_path / "alone", progress=False)
    assert (out / WEIGHTS).read_bytes() == (alone / WEIGHTS).read_bytes()
    assert (out / "report.html").is_file()
    assert not {LOCK, OWNER} & set(contents(out))


def test_training_holds_its_folder_until_the_last_file_is_written(tiny, tmp_path):
    seen: list[str] = []
    out = tmp_path / "run"
    train(tiny("allones"), out, progress=False, then=lambda: seen.append(elsewhere(out)))
    assert len(seen) == 1
    assert "another call is writing here" in seen[0]
    assert elsewhere(out) == ""


@pytest.mark.parametrize("writes", [synthetic_table, quickstart])
def test_a_folder_that_another_call_writes_is_left_alone(tmp_path, another_call, writes):
    with another_call(tmp_path / "out"):
        before = contents(tmp_path)
        with pytest.raises(InputError, match="out: another call is writing here"):
            writes(tmp_path / "out", count=10)
        assert contents(tmp_path) == before


# --- settings ---


def test_a_run_is_not_overwritten(tiny, gap_run):
    before = contents(gap_run)
    with pytest.raises(InputError) as refused:
        train(tiny("gap"), gap_run, progress=False)
    assert str(refused.value) == (
        f"{gap_run}: folder already contains a run; pass --resume to continue it, or choose another --out"
    )
    assert contents(gap_run) == before


def test_what_is_left_of_a_run_is_not_taken_for_none(tiny, gap_run, tmp_path):
    """Without its run.yaml the checkpoint was continued, unasked and under any settings."""
    out = tmp_path / "run"
    out.mkdir()
    (out / "last.ckpt").write_bytes((gap_run / "last.ckpt").read_bytes())
    with pytest.raises(InputError, match="already contains a run"):
        train(tiny("gap", lr=0.5), out, progress=False)
    with pytest.raises(InputError, match=r"run\.yaml: cannot be read"):
        train(tiny("gap", lr=0.5), out, resume=True, progress=False)
    assert set(contents(out)) == {"last.ckpt"}


def test_other_settings_do_not_continue_a_run_and_are_named(tiny, gap_run):
    before = contents(gap_run)
    with pytest.raises(InputError) as refused:
        train(tiny("gap", lr=0.5, seed=3, workers=1), gap_run, resume=True, progress=False)
    assert str(refused.value) == (
        f"{gap_run}: was begun with other settings (training.lr was 0.01 and is 0.5, training.seed was 0 and is 3); "
        "restore them, or choose another --out"
    )
    assert contents(gap_run) == before


@pytest.mark.parametrize(
    ("before", "now", "differing"),
    [
        ({"a": {"b": 1, "c": {}}}, {"a": {"b": 2, "c": {"d": 3}}}, "a.b was 1 and is 2, a.c.d was None and is 3"),
        ({"a": 1}, {}, "a was 1 and is None"),
        ({"a": None}, {}, None),
        (None, {"a": 1}, None),
        ({"a": [1, 2]}, {"a": [1, 2]}, None),
    ],
)
def test_settings_are_compared_one_by_one(before, now, differing):
    if differing is None:
        check_claim(Path("out"), before, now)
        return
    with pytest.raises(InputError, match=rf"^out: was begun with other settings \({differing}\); restore them"):
        check_claim(Path("out"), before, now)


@pytest.mark.parametrize("text", ["", "[]", "{", "\udcff"])
def test_a_damaged_file_is_named(tmp_path, text):
    path = tmp_path / "settings.json"
    assert read_json(path) is None
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(InputError, match=r"settings\.json: cannot be read \(.+\); restore it, or name another folder"):
        read_json(path)


# --- tables ---


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
    kept = json.loads((out / "inputs.json").read_text())
    assert {name: kept[name] for name in ("table", "rows", "classes", "counts")} == {
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
    kept = (out / "inputs.json").read_bytes()
    (out / "inputs.json").unlink()
    train(tiny("gap", table, epochs=2), out, resume=True, progress=False)
    note = f"note: {out}: was begun by histoloc 0.1, which kept nothing of its table; table.csv may differ\n"
    assert note in capsys.readouterr().err
    assert (out / "inputs.json").read_bytes() == kept
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
    kept = json.loads((tmp_path / "run/inputs.json").read_text())
    assert kept.pop("computed_on") == {"accelerator": "cpu", "precision": "32-true", "processes": 1}
    assert kept == inputs_of(read_table(table))


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
