"""Two calls in one folder, one that is continued with other settings, and files that are whole or not there at all."""

import dataclasses
import errno
import json
import multiprocessing
import os
import platform
import re
import subprocess
import sys
import threading
from contextlib import redirect_stderr
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest

from histoloc.cli.main import main
from histoloc.config import read_run
from histoloc.datasets.synthetic.dataset import synthetic_table
from histoloc.errors import InputError
from histoloc.model_folder import read_model_config
from histoloc.quickstart import quickstart
from histoloc.training import train
from histoloc.work_folder import (
    LOCK,
    OWNER,
    atomic_path,
    check_claim,
    first_alone,
    locked,
    read_json,
    write_json,
    write_text,
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


def command(arguments: list[str], together: Any, refused: Any, errors: Path) -> None:
    """Begin together, and do not end before the other one is refused."""
    from histoloc import report

    write = report.write_report

    def write_later(*arguments: Any) -> Path:
        refused.wait(600)
        return write(*arguments)

    report.write_report = write_later
    together.wait()
    with errors.open("w") as file, redirect_stderr(file):
        main(arguments)


def test_of_two_trainings_into_one_folder_at_once_one_is_refused(tiny, tiny_flags, tmp_path):
    out, together, refused = tmp_path / "run", PROCESSES.Barrier(2), PROCESSES.Event()
    calls = []
    for seed in (1, 2):
        arguments = ["train", "gap", *tiny_flags(out=out, seed=seed, epochs=3)]
        calls.append(PROCESSES.Process(target=command, args=(arguments, together, refused, tmp_path / f"{seed}.txt")))
        calls[-1].start()
    wait([call.sentinel for call in calls])
    refused.set()
    for call in calls:
        call.join()
    codes = [call.exitcode for call in calls]
    assert sorted(codes) == [0, 2]
    winner, loser = codes.index(0) + 1, codes.index(2) + 1
    text = (tmp_path / f"{loser}.txt").read_text()
    assert re.fullmatch(
        rf"histoloc: .*run: another call is writing here( \(process {calls[winner - 1].pid} on .*\))?; wait .*\n", text
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


# --- files ---


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


def test_the_file_appears_under_its_name_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "folder" / "a.csv"
    with atomic_path(path) as temporary:
        temporary.write_text("x")
        assert not path.exists()
        assert temporary.parent == path.parent, "a rename is atomic within one file system only"
        assert temporary.suffix == ".csv", "writers choose the format by the suffix"
        assert temporary.name.startswith("."), "a glob for *.csv must not find it"
    assert path.read_text() == "x"
    assert names(tmp_path) == ["a.csv"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_an_error_leaves_the_earlier_file_and_nothing_else(tmp_path, error):
    write_text(tmp_path / "a.txt", "before")

    def fail_half_way() -> None:
        with atomic_path(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)):
        fail_half_way()
    assert (tmp_path / "a.txt").read_text() == "before"
    assert names(tmp_path) == ["a.txt"]


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    def full(self, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(InputError, match=r"a\.txt: cannot be written \(No space left on device\)"):
        write_text(tmp_path / "a.txt", "x")
    assert names(tmp_path) == []


def test_a_file_where_a_folder_is_needed_is_said(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"file/deep/a\.txt: cannot be written"):
        write_text(tmp_path / "file" / "deep" / "a.txt", "x")
    with pytest.raises(InputError, match="cannot be written"):
        write_text(tmp_path, "a folder is there")


def test_text_is_utf_8_and_json_readable_by_everybody(tmp_path):
    write_json(tmp_path / "a.json", {"µm": [1, None], "a": "F1⁺"})
    raw = (tmp_path / "a.json").read_bytes()
    assert "µm".encode() in raw
    assert raw.endswith(b"}\n")
    assert json.loads(raw) == {"µm": [1, None], "a": "F1⁺"}


def test_json_has_no_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", float("nan"))
    assert names(tmp_path) == []
