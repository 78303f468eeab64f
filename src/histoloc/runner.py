"""The same task for many slides, on several processes or machines: resumable, and no slide stops the others."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote
from uuid import uuid4

import pandas as pd
from tqdm import tqdm

from histoloc.errors import InputError
from histoloc.work_folder import atomic_path, check_claim, read_json, write_json

if TYPE_CHECKING:
    from distributed import Client

Task = Callable[[Any, Mapping[str, Any]], Any]

_LONGEST_NAME = 150  # of a part, well below what file systems allow
_NO_ANSWER_S = 20


@dataclass(frozen=True)
class JobsResult:
    """What came out of `run_jobs`, both in the order of the items.

    Attributes:
        done: the task's result by key.
        failed: the reason by key, one line each.
    """

    done: dict[str, Any]
    failed: dict[str, str]


class _DiskFull(InputError):
    """There is no room for what a task made. It is no fault of the item's, and the next one would find none either."""


@dataclass(frozen=True)
class _Job:
    """One item on its way; it is sent to the workers as it is."""

    task: Task
    key: str
    item: Any
    settings: Mapping[str, Any]
    fingerprint: str
    path: Path

    def read(self) -> dict[str, Any] | None:
        """The part that an earlier call wrote, or None where there is none or it is of another item."""
        try:
            part = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if not isinstance(part, dict) or not {"fingerprint", "item", "result"} <= set(part):
            return None
        return part if part["fingerprint"] == self.fingerprint and part["item"] == self.item else None


def run_jobs(
    task: Task,
    items: Mapping[str, Any],
    out: Path,
    *,
    settings: Mapping[str, Any],
    workers: int | None = None,
    scheduler: str | None = None,
    retries: int = 2,
    memory_gb: float = 1.0,
    progress: bool = True,
) -> JobsResult:
    """Do a task once for every item; a second call does only what is missing.

    The result of an item becomes `out/parts/KEY.json`, written atomically when all else of the task is done, together
    with the item and a fingerprint of the settings. An item that has changed since is done again, other settings are
    refused. A task that fails is tried again; then the item is listed with its reason in `out/failed.csv` (which is
    absent where all went well) and the others go on. Only a full disk ends the call: what is done is kept.

    A worker process that dies loses only what it was doing, which the others do again. Who was on a dying worker
    again and again is tried once more with nothing beside it, so that none pays for its neighbour, and then counts
    as failed. A worker process that grows beyond 95 % of `memory_gb` is ended and replaced, as if it had died.

    Args:
        task: `task(item, settings)` gives a result fit for JSON. It may be called twice for the same item, in any
            process, and must be importable there. Files of its own it writes atomically.
        items: by key, fit for JSON: all that the task has to know of one slide. The keys are any distinct texts.
        out: the folder; workers of a `scheduler` must see it, and the slides, under the same path.
        settings: what is the same for all items, fit for JSON.
        workers: processes, one thread each; None for as many as this machine has cores. 1 works in this process,
            where nothing guards against running out of memory. Ignored with a `scheduler`.
        scheduler: address of a running Dask scheduler, as `tcp://host:8786`; its workers have limits of their own.
        retries: how often a task that failed is tried again, from 0.
        memory_gb: limit of each worker process in GB.
        progress: show a bar.

    Returns:
        Results and failures; they do not depend on the number of workers.

    Raises:
        InputError: `out` cannot be written or was begun with other settings, no scheduler answers, the disk is
            full, or a number is out of its range.
    """
    out = Path(out).absolute()
    _check_numbers(workers, retries, memory_gb)
    settings = _plain(settings)
    fingerprint = _claim(out, settings)
    jobs = [
        _Job(task, key, _plain(item), settings, fingerprint, out / "parts" / _file_name(key))
        for key, item in items.items()
    ]
    parts = {job.key: job.read() for job in jobs}
    missing = [job for job in jobs if parts[job.key] is None]
    failed: dict[str, str] = {}
    with tqdm(total=len(jobs), initial=len(jobs) - len(missing), unit="slide", disable=not progress) as bar:
        for job, error in _run(missing, workers, scheduler, retries, memory_gb):
            if error is None:
                parts[job.key] = job.read()
            else:
                failed[job.key] = _reason(error)
            bar.set_postfix_str(f"{job.key}{' failed' if error else ''}, {len(failed)} failed", refresh=False)
            bar.update()
    for job in jobs:
        if parts[job.key] is None and job.key not in failed:
            failed[job.key] = f"its result is not to be seen at {job.path}; let all workers have the same folders"
    failed = {job.key: failed[job.key] for job in jobs if job.key in failed}
    write_failed(out / "failed.csv", failed)
    done = {key: part["result"] for key, part in parts.items() if part is not None}
    return JobsResult(done, failed)


def _check_numbers(workers: int | None, retries: int, memory_gb: float) -> None:
    if workers is not None and workers < 1:
        raise InputError(f"workers {workers}: give a whole number from 1 up")
    if retries < 0:
        raise InputError(f"retries {retries}: give a whole number from 0 up")
    if not 0.1 <= memory_gb < float("inf"):
        raise InputError(f"memory-gb {memory_gb:g}: give the GB that a worker may use, 0.1 or more")


def _plain(value: Any) -> Any:
    """As it comes back from a file: tuples are lists."""
    return json.loads(json.dumps(value, allow_nan=False, sort_keys=True))


def _file_name(key: str) -> str:
    """A name for any key; different keys have different ones."""
    name = quote(key, safe=" ()+,=@")
    if len(name) > _LONGEST_NAME:
        name = f"{name[:_LONGEST_NAME]}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    return f"{name}.json"


def _claim(out: Path, settings: Mapping[str, Any]) -> str:
    """Note the settings in the folder, or refuse to mix them with those of an earlier call."""
    path = out / "settings.json"
    before = read_json(path)
    check_claim(out, before, settings)
    if before is None:
        write_json(path, settings)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def write_failed(path: Path, failed: Mapping[str, str]) -> None:
    """Write the reason of each slide that failed, as a CSV with the columns slide and reason; without any, no file."""
    if failed:
        with atomic_path(path) as temporary:
            rows = pd.DataFrame({"slide": list(failed), "reason": list(failed.values())})
            rows.to_csv(temporary, index=False, lineterminator="\n")
    else:
        path.unlink(missing_ok=True)


def _perform(job: _Job) -> None:
    """Do one item, in whatever process."""
    try:
        result = job.task(job.item, job.settings)
        # Last, because it is what says that the item is done.
        write_json(job.path, {"fingerprint": job.fingerprint, "item": job.item, "result": result})
    except (InputError, OSError) as error:
        first = error.__cause__ if isinstance(error, InputError) else error  # atomic_path tells what it caught
        if isinstance(first, OSError) and first.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _DiskFull(f"{error}; what was done before is kept, and a second call goes on from there") from error
        raise


def _reason(error: BaseException) -> str:
    said = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    return " ".join(said.split())


def _run(
    jobs: Sequence[_Job], workers: int | None, scheduler: str | None, retries: int, memory_gb: float
) -> Iterator[tuple[_Job, BaseException | None]]:
    """Give each job with what went wrong, as they end."""
    if not jobs:
        return
    if workers == 1 and scheduler is None:
        for job in jobs:
            yield job, _try(job, retries)
        return
    from distributed import KilledWorker

    killed: list[_Job] = []
    with _client(scheduler, workers, len(jobs), retries, memory_gb) as client:
        for job, error in _spread(client, jobs, retries):
            if isinstance(error, KilledWorker):
                killed.append(job)
            else:
                yield job, error
        limit = "" if scheduler else f" (limit {memory_gb:g} GB)"
        for job, error in chain.from_iterable(_spread(client, [alone], retries) for alone in killed):
            if isinstance(error, KilledWorker):
                error = InputError(
                    f"its worker process died again and again, by a crash or for want of memory{limit}; "
                    f"give workers more memory, or leave the slide out"
                )
            yield job, error


def _try(job: _Job, retries: int) -> Exception | None:
    error = None
    for _ in range(retries + 1):
        try:
            _perform(job)
        except _DiskFull:
            raise
        except Exception as caught:  # whatever it is, it is told as this item's reason and the others go on
            error = caught
        else:
            return None
    return error


@contextmanager
def _client(scheduler: str | None, workers: int | None, jobs: int, retries: int, memory_gb: float) -> Iterator[Client]:
    """Connect to a scheduler, or start processes that end with the block."""
    import dask.config
    from dask.system import CPU_COUNT
    from distributed import Client, LocalCluster

    if scheduler is not None:
        try:
            client = Client(scheduler, timeout=_NO_ANSWER_S, set_as_default=False)
        except (OSError, ValueError) as error:
            raise InputError(f"--scheduler {scheduler}: no Dask scheduler answers there ({error})") from error
        with client:
            if not client.nthreads():
                print(f"{scheduler}: has no workers yet; waiting for them", file=sys.stderr)
            yield client
        return
    options = {
        "distributed.scheduler.allowed-failures": retries,
        # What a finished slide leaves behind may be above these for good, and a paused worker would wait for ever.
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
        "distributed.worker.memory.terminate": 0.95,
    }
    with (
        dask.config.set(options),
        LocalCluster(
            n_workers=min(workers or CPU_COUNT, jobs),
            threads_per_worker=1,
            memory_limit=int(memory_gb * 1e9),
            dashboard_address="127.0.0.1:0",  # the default warns where another call has its port
            silence_logs=logging.CRITICAL,  # reasons are told in failed.csv, not as tracebacks of other processes
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def _spread(client: Client, jobs: Sequence[_Job], retries: int) -> Iterator[tuple[_Job, BaseException | None]]:
    """Keep each worker busy with one job: what waits on a worker would be blamed for its death as well."""
    from distributed import as_completed

    waiting = deque(jobs)
    call = uuid4().hex
    running: dict[str, _Job] = {}
    completed = as_completed(loop=client.loop)

    def submit() -> None:
        while waiting and len(running) < max(1, sum(cast(dict[str, int], client.nthreads()).values())):
            job = waiting.popleft()
            key = f"slide-{call}-{len(waiting)}"
            running[key] = job
            completed.add(client.submit(_perform, job, key=key, retries=retries, pure=False))

    submit()
    for future in completed:
        job = running.pop(future.key)
        if future.status == "cancelled":
            error = InputError("the scheduler was lost before it was done; call again")
        else:
            error = future.exception()
            if isinstance(error, _DiskFull):
                raise error
        submit()
        yield job, error
