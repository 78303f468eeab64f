"""Tasks that fail, die and come back, in this process, in others and on a cluster."""

import csv
import errno
import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from histoloc.errors import InputError
from histoloc.runner import Call, Slot, do_calls, run_jobs
from histoloc.work_folder import atomic_path

PATIENCE = 600  # seconds, longer than any machine takes for what a test waits for


def work(item, settings):
    """Count the calls in a file, then do as the item says."""
    calls = Path(item["calls"])
    with calls.open("a") as file:
        file.write("x")
    match item["do"]:
        case "fail":
            raise InputError(f"{calls.name}: is\nbroken")
        case "fail once" if calls.stat().st_size == 1:
            raise OSError("once")
        case "full":
            with atomic_path(calls.with_suffix(".png")):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        case "raise":
            raise KeyError("what")
        case "eat":
            eaten = bytearray(10**9)
            time.sleep(PATIENCE)
            del eaten
        case "sleep":
            time.sleep(PATIENCE)
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "die once" if calls.stat().st_size == 1:
            os.kill(os.getpid(), signal.SIGKILL)
    print("said", item["value"], os.environ.get("COLOUR"), "numpy" in sys.modules)
    return {"value": item["value"] * settings["factor"], "process": os.getpid()}


def items(folder, *does):
    (folder / "calls").mkdir(exist_ok=True)
    return {f"{i}/{do}": {"do": do, "value": i, "calls": str(folder / "calls" / f"{i}")} for i, do in enumerate(does)}


def values(result):
    return {key: done["value"] for key, done in result.results.items()}


def calls(folder):
    return {p.name: p.stat().st_size for p in (folder / "calls").iterdir()}


def parts(folder):
    return {p.name: p.stat().st_mtime_ns for p in (folder / "out" / "parts").glob("*.json")}


def run(folder, jobs, *, factor=3, **options):
    options = {"workers": 1, "progress": False} | options
    return run_jobs(work, jobs, folder / "out", settings={"factor": factor, "pair": (1, 2)}, **options)


def test_a_second_call_does_what_is_missing(tmp_path):
    jobs = items(tmp_path, "ok", "fail", "fail once", "raise", "ok")
    first = run(tmp_path, jobs)
    assert values(first) == {"0/ok": 0, "2/fail once": 6, "4/ok": 12}
    assert first.failed == {"1/fail": "1: is broken", "3/raise": "KeyError: 'what'"}
    assert calls(tmp_path) == {"0": 1, "1": 1, "2": 2, "3": 1, "4": 1}, "what cannot change is not tried again"
    with (tmp_path / "out" / "failed.csv").open(encoding="utf-8", newline="") as listed:
        assert list(csv.reader(listed)) == [["slide", "reason"], *map(list, first.failed.items())]
    jobs["1/fail"]["do"] = jobs["3/raise"]["do"] = "ok"
    before = parts(tmp_path)
    second = run(tmp_path, jobs)
    assert values(second) == {key: 3 * job["value"] for key, job in jobs.items()}
    assert list(second.results) == list(jobs)
    assert not second.failed
    assert not (tmp_path / "out" / "failed.csv").exists()
    assert calls(tmp_path) == {"0": 1, "1": 2, "2": 2, "3": 2, "4": 1}
    assert before.items() <= parts(tmp_path).items()
    jobs["0/ok"]["value"] = 10
    assert values(run(tmp_path, jobs))["0/ok"] == 30
    assert calls(tmp_path)["0"] == 2


def test_what_is_half_written_or_foreign_is_done_again(tmp_path):
    jobs = items(tmp_path, "ok", "ok", "ok")
    run(tmp_path, jobs)
    parts = tmp_path / "out" / "parts"
    whole = (parts / "0%2Fok.json").read_text()
    (parts / "0%2Fok.json").write_text(whole[: len(whole) // 2])
    (parts / "1%2Fok.json").write_text("[]")
    (parts / "2%2Fok.json").write_text(json.dumps(json.loads(whole) | {"fingerprint": "other"}))
    assert values(run(tmp_path, jobs)) == {"0/ok": 0, "1/ok": 3, "2/ok": 6}
    assert calls(tmp_path) == {"0": 2, "1": 2, "2": 2}


def test_other_settings_are_refused(tmp_path):
    jobs = items(tmp_path, "ok")
    run(tmp_path, jobs)
    with pytest.raises(InputError, match=r"out: was begun with other settings \(factor was 3 and is 4\); restore"):
        run(tmp_path, jobs, factor=4)
    assert calls(tmp_path) == {"0": 1}


def test_any_keys_have_files_of_their_own(tmp_path):
    keys = ["a/b", "a_b", "a%2Fb", "../a", ".", "ä", "x" * 300, "x" * 301, "a b.svs"]
    [job] = items(tmp_path, "ok").values()
    result = run(tmp_path, {key: job | {"value": i} for i, key in enumerate(keys)})
    assert values(result) == {key: 3 * i for i, key in enumerate(keys)}
    assert len(list((tmp_path / "out" / "parts").iterdir())) == len(keys)


def test_a_result_that_is_no_json_is_a_failure(tmp_path):
    result = run_jobs(lambda item, settings: float("nan"), {"a": 1}, tmp_path, settings={}, workers=1, progress=False)
    assert "ValueError" in result.failed["a"]
    assert not (tmp_path / "parts" / "a.json").exists()


@pytest.mark.parametrize("options", [{"workers": 0}, {"retries": -1}, {"memory_gb": 0.0}, {"memory_gb": float("nan")}])
def test_numbers_out_of_range(tmp_path, options):
    [name] = options
    with pytest.raises(InputError, match=name.replace("_", "-")):
        run(tmp_path, {}, **options)


def test_killed_workers_lose_only_what_they_did(tmp_path):
    jobs = items(tmp_path, "die once", "ok", "die", "ok", "fail", "ok", "ok", "ok")
    result = run(tmp_path, jobs, workers=3, retries=1)
    assert values(result) == {"0/die once": 0, "1/ok": 3, "3/ok": 9, "5/ok": 15, "6/ok": 18, "7/ok": 21}
    assert list(result.failed) == ["2/die", "4/fail"]
    assert "worker process died again and again" in result.failed["2/die"]
    assert "limit 1 GB" in result.failed["2/die"]
    assert result.failed["4/fail"] == "4: is broken"
    assert os.getpid() not in {done["process"] for done in result.results.values()}
    jobs["2/die"]["do"] = jobs["4/fail"]["do"] = "ok"
    assert values(run(tmp_path, jobs)) == {key: 3 * job["value"] for key, job in jobs.items()}


def test_a_worker_beyond_its_memory_is_ended(tmp_path):
    result = run(tmp_path, items(tmp_path, "eat", "ok"), workers=2, retries=0, memory_gb=0.5)
    assert values(result) == {"1/ok": 3}
    assert result.failed["0/eat"] == (
        "its worker process died, by a crash or for want of memory (SIGKILL, limit 0.5 GB); give workers more memory, "
        "or leave it out"
    )


def test_a_call_with_a_log_has_a_process_of_its_own(tmp_path):
    """Its slot says what variables it has, before anything is imported there."""
    jobs = items(tmp_path, "ok", "fail", "ok", "die")
    all_ = [Call(key, partial(work, item, {"factor": 3}), tmp_path / "log") for key, item in jobs.items()]
    ended = {}
    for _, some in do_calls(all_, [Slot({"COLOUR": "red"})]):
        ended |= some
    assert ended["1/fail"] == "1: is broken"
    assert "(SIGKILL)" in ended["3/die"]
    assert (ended["0/ok"], ended["2/ok"]) == (None, None)
    log = (tmp_path / "log").read_text()
    assert log.startswith("said 0 red False\nTraceback (most recent call last):")
    assert log.endswith("said 2 red False\n")
    assert "COLOUR" not in os.environ


CALLER = """
import signal, sys
from pathlib import Path
from test_runner import items, run
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits that it is ignored
    folder = Path(sys.argv[1])
    run(folder, items(folder, "sleep", "sleep", "sleep"), workers=2)
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_its_caller(tmp_path, how):
    script = tmp_path / "caller.py"
    script.write_text(CALLER)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    caller = psutil.Popen([sys.executable, str(script), str(tmp_path)], env=environment)
    try:
        while not (tmp_path / "calls").is_dir() or len(calls(tmp_path)) < 2:
            assert caller.poll() is None
            time.sleep(0.05)
        workers = [process for process in caller.children() if "spawn_main" in " ".join(process.cmdline())]
        assert len(workers) == 2
        caller.send_signal(how)
        assert caller.wait(PATIENCE) != 0
    finally:
        if caller.poll() is None:
            caller.kill()
            caller.wait()
    _, alive = psutil.wait_procs(workers, PATIENCE / 2)  # sooner than they end by themselves
    assert not alive
    assert len(calls(tmp_path)) == 2, "the third item is not begun"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_ends_the_call(tmp_path, workers):
    jobs = items(tmp_path, "ok", "full", *["sleep" if workers > 1 else "ok"] * 3)
    with pytest.raises(InputError, match=r"1\.png: cannot be written \(No space left .* a second call goes on"):
        run(tmp_path, jobs, workers=workers, retries=0)
    assert calls(tmp_path)["1"] == 1
    assert len(calls(tmp_path)) < len(jobs)
    assert not (tmp_path / "out" / "failed.csv").exists()
    before = parts(tmp_path)
    assert workers > 1 or len(before) == 1
    for job in jobs.values():
        job["do"] = "ok"
    assert values(run(tmp_path, jobs)) == {key: 3 * job["value"] for key, job in jobs.items()}
    assert before.items() <= parts(tmp_path).items(), "what was done is kept"


def test_a_scheduler_by_its_address(tmp_path):
    from distributed import LocalCluster  # here, because worker processes import this file

    jobs = items(tmp_path, *["ok"] * 9, "fail")
    threads: dict[str, Any] = {"processes": False, "protocol": "tcp", "dashboard_address": None}
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, **threads)
    with cluster:
        result = run(tmp_path, jobs, workers=None, scheduler=cluster.scheduler_address)
    assert values(result) == {f"{i}/ok": 3 * i for i in range(9)}
    assert result.failed == {"9/fail": "9: is broken"}


def test_no_scheduler_answers(tmp_path, monkeypatch):
    monkeypatch.setattr("histoloc.runner._NO_ANSWER_S", 0.3)
    with pytest.raises(InputError, match=r"--scheduler tcp://127\.0\.0\.1:9: no Dask scheduler answers there"):
        run(tmp_path, items(tmp_path, "ok"), scheduler="tcp://127.0.0.1:9")
