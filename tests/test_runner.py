"""The engine on tasks that fail, die and come back; one cluster for all of it, since it is slow to start."""

import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from distributed import LocalCluster

from histoloc.errors import InputError
from histoloc.runner import run_jobs
from histoloc.work_folder import atomic_path


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
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "die once" if calls.stat().st_size == 1:
            os.kill(os.getpid(), signal.SIGKILL)
    return {"value": item["value"] * settings["factor"], "process": os.getpid()}


def items(folder, *does):
    (folder / "calls").mkdir(exist_ok=True)
    return {f"{i}/{do}": {"do": do, "value": i, "calls": str(folder / "calls" / f"{i}")} for i, do in enumerate(does)}


def values(result):
    return {key: done["value"] for key, done in result.done.items()}


def calls(folder):
    return {p.name: p.stat().st_size for p in (folder / "calls").iterdir()}


def run(folder, jobs, *, factor=3, **options):
    options = {"workers": 1, "progress": False} | options
    return run_jobs(work, jobs, folder / "out", settings={"factor": factor, "pair": (1, 2)}, **options)


def test_a_second_call_does_what_is_missing(tmp_path):
    jobs = items(tmp_path, "ok", "fail", "fail once", "raise", "ok")
    first = run(tmp_path, jobs)
    assert values(first) == {"0/ok": 0, "2/fail once": 6, "4/ok": 12}
    assert first.failed == {"1/fail": "1: is broken", "3/raise": "KeyError: 'what'"}
    assert calls(tmp_path) == {"0": 1, "1": 3, "2": 2, "3": 3, "4": 1}
    listed = pd.read_csv(tmp_path / "out" / "failed.csv")
    assert listed.to_dict("list") == {"slide": list(first.failed), "reason": list(first.failed.values())}
    jobs["1/fail"]["do"] = jobs["3/raise"]["do"] = "ok"
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out" / "parts").iterdir()}
    second = run(tmp_path, jobs)
    assert values(second) == {key: 3 * job["value"] for key, job in jobs.items()}
    assert list(second.done) == list(jobs)
    assert not second.failed
    assert not (tmp_path / "out" / "failed.csv").exists()
    assert calls(tmp_path) == {"0": 1, "1": 4, "2": 2, "3": 4, "4": 1}
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out" / "parts").iterdir()}
    assert {name: after[name] for name in before} == before
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
    assert calls(tmp_path)["4"] >= 2  # a neighbour's death may cost it a try
    assert os.getpid() not in {done["process"] for done in result.done.values()}
    jobs["2/die"]["do"] = jobs["4/fail"]["do"] = "ok"
    assert values(run(tmp_path, jobs)) == {key: 3 * job["value"] for key, job in jobs.items()}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_ends_the_call(tmp_path, workers):
    jobs = items(tmp_path, "ok", "full", *["ok"] * 20)
    with pytest.raises(InputError, match=r"1\.png: cannot be written \(No space left .* a second call goes on"):
        run(tmp_path, jobs, workers=workers, retries=0)
    assert calls(tmp_path)["1"] == 1
    assert len(calls(tmp_path)) < len(jobs)
    assert not (tmp_path / "out" / "failed.csv").exists()
    jobs["1/full"]["do"] = "ok"
    assert values(run(tmp_path, jobs)) == {key: 3 * job["value"] for key, job in jobs.items()}
    assert calls(tmp_path)["0"] == 1


def test_a_scheduler_by_its_address(tmp_path):
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
