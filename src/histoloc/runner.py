"""Items -> result files, in processes here or on a Dask cluster: resumable, and no item stops the others."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import signal
import sys
import threading
import traceback
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent import futures
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import psutil
from pydantic import Field

from histoloc.bounds import Checked, Count, Number, Whole
from histoloc.errors import InputError
from histoloc.progress import Bar
from histoloc.work_folder import atomic_path, claim, write_json

Task = Callable[[Any, Mapping[str, Any]], Any]

LOOK_SECONDS = 0.2
PATIENCE_SECONDS = 10.0
_LONGEST_NAME = 150  # of a part, well below what file systems allow
_NO_ANSWER_S = 20
_LASTING = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENAMETOOLONG)
_UNSEEN = "its result is not to be seen at {}; let all workers have the same folders"


@dataclass(frozen=True)
class JobOptions(Checked):
    """Where items are done.

    Attributes:
        workers: processes; by default as many as this machine has cores. 1 works in the calling process, where nothing
            guards against running out of memory. Ignored with a scheduler.
        scheduler: address of a running Dask scheduler (tcp://host:8786), which must see the same folders, and whose
            workers have limits of their own.
        retries: how often an item is tried again, from 0, where the system or a process failed and not the item.
        memory_gb: a worker process that grows beyond 95 % of it is ended, and its item tried again.
        progress: show a bar.
    """

    workers: Count | None = None
    scheduler: str | None = None
    retries: Whole = 2
    memory_gb: Annotated[Number, Field(ge=0.1)] = 1.0
    progress: bool = True


@dataclass(frozen=True)
class JobsResult:
    """What came out of `run_jobs`, both in the order of the items.

    Attributes:
        results: the task's result by key.
        failed: the reason by key, one line each.
    """

    results: dict[str, Any]
    failed: dict[str, str]


@dataclass(frozen=True)
class Call:
    """What a worker does for an item: it leaves a result in files. With a log it has a process of its own."""

    key: str
    do: Callable[[], object]
    log: Path | None = None


class _Lasting(str):
    """A reason that another try would not change."""


class _DiskFull(InputError):
    """There is no room for what a task made. It is no fault of the item's, and the next one would find none either."""


def _read_part(path: Path, mark: Mapping[str, Any]) -> dict[str, Any] | None:
    """The part that an earlier call wrote, or None where there is none or it is of another item."""
    try:
        part = json.loads(path.read_text(encoding="utf-8"))
        return part if part == {**mark, "result": part["result"]} else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _do_item(task: Task, settings: Mapping[str, Any], path: Path, mark: Mapping[str, Any]) -> None:
    result = task(mark["item"], settings)
    write_json(path, {**mark, "result": result})  # last, because it is what says that the item is done


def run_jobs(
    task: Task,
    items: Mapping[str, Any],
    out: Path,
    *,
    settings: Mapping[str, Any],
    options: JobOptions | None = None,
    **changes: Any,
) -> JobsResult:
    """Do a task once for every item; a second call does only what is missing.

    The result of an item becomes `out/parts/KEY.json`, written atomically when all else of the task is done, together
    with the item and a fingerprint of the settings. An item that has changed since is done again, other settings are
    refused. A task that fails is tried again, unless nothing can change; then the item is listed with its reason in
    `out/failed.csv` (which is absent where all went well) and the others go on. A worker process that dies loses only
    its item, which is tried again with nothing beside it. Only a full disk ends the call: what is done is kept.

    Args:
        task: `task(item, settings)` gives a result fit for JSON. It may be called twice for the same item, in any
            process, and must be importable there. Files of its own it writes atomically.
        items: by key, fit for JSON: all that the task has to know of one slide. The keys are any distinct texts.
        out: the folder; workers of a scheduler must see it, and the slides, under the same path.
        settings: what is the same for all items, fit for JSON.
        options: where they are done.
        changes: single options instead, by name.

    Returns:
        Results and failures; they do not depend on the number of workers.

    Raises:
        InputError: `out` cannot be written or has other settings, no scheduler answers, disk full, a wrong number.
    """
    out = Path(out).absolute()
    options = replace(options or JobOptions(), **changes)
    settings = _plain(settings)
    claim(out / "settings.json", settings)
    fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    marks = {key: {"fingerprint": fingerprint, "item": _plain(item)} for key, item in items.items()}
    paths = {key: out / "parts" / _file_name(key) for key in items}
    missing = [
        Call(key, partial(_do_item, task, settings, paths[key], mark))
        for key, mark in marks.items()
        if _read_part(paths[key], mark) is None
    ]
    reasons = _do_with_bar(missing, len(items), options)
    parts = {key: _read_part(paths[key], mark) for key, mark in marks.items()}
    failed = {key: reasons.get(key) or _UNSEEN.format(paths[key]) for key, part in parts.items() if part is None}
    write_failed(out / "failed.csv", failed)
    return JobsResult({key: part["result"] for key, part in parts.items() if part is not None}, failed)


def _do_with_bar(calls: Sequence[Call], total: int, options: JobOptions) -> dict[str, str | None]:
    """Do what is missing of so many; why a call failed, None where it did not."""
    reasons: dict[str, str | None] = {}
    bar = Bar(total=total, initial=total - len(calls), unit="item", disable=not options.progress)
    with bar, _slots(options, len(calls)) as slots, closing(do_calls(calls, slots, options.retries)) as states:
        for _, ended in states:
            reasons |= ended
            bar.set_postfix_str(f"{sum(reason is not None for reason in reasons.values())} failed", refresh=False)
            bar.update(len(ended))
    return reasons


def _plain(value: Any) -> Any:
    """As it comes back from a file: tuples are lists."""
    return json.loads(json.dumps(value, allow_nan=False, sort_keys=True))


def _file_name(key: str) -> str:
    """A name for any key; different keys have different ones."""
    name = quote(key, safe=" ()+,=@")
    if len(name) > _LONGEST_NAME:
        name = f"{name[:_LONGEST_NAME]}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    return f"{name}.json"


def write_failed(path: Path, failed: Mapping[str, str]) -> None:
    """Write the reason of each slide that failed, as a CSV with the columns slide and reason; without any, no file."""
    if not failed:
        return path.unlink(missing_ok=True)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("slide", "reason"), *failed.items()])


# --- calls ---


def do_calls(
    calls: Sequence[Call], slots: Sequence[Slot], retries: int = 0
) -> Generator[tuple[list[str], dict[str, str | None]]]:
    """Do calls in their order; no process is left behind, however this ends.

    SIGTERM, as batch systems send it, ends it as Ctrl-C does.

    Yields:
        Several times a second the keys of the calls that run, and of those that have ended since, each with the reason
        why it failed; None where it did not.

    Raises:
        InputError: the disk is full.
    """
    waiting, alone = deque(calls), deque[Call]()
    tries: Counter[str] = Counter()
    running: dict[futures.Future[str | None], tuple[Call, Slot]] = {}
    main = threading.current_thread() is threading.main_thread()  # no other one may set a handler
    handler = signal.signal(signal.SIGTERM, signal.default_int_handler) if main else None
    try:
        while waiting or alone or running:
            for slot in slots:
                while (waiting or (alone and not running)) and slot.busy < slot.size():
                    call = (waiting or alone).popleft()
                    running[slot.submit(call)] = call, slot
                    slot.busy += 1
            ended: dict[str, str | None] = {}
            for future in futures.wait(running, LOOK_SECONDS, futures.FIRST_COMPLETED).done:
                call, slot = running.pop(future)
                slot.busy -= 1
                tries[call.key] += 1
                reason, died = _outcome(future, slot, tries[call.key])
                if call.log is not None:
                    slot.release()
                if reason is None or isinstance(reason, _Lasting) or tries[call.key] > retries:
                    ended[call.key] = reason
                else:
                    (alone if died else waiting).appendleft(call)
            for slot in slots:
                slot.check_memory()
            yield [call.key for call, _ in running.values()], ended
    finally:
        for slot in slots:
            slot.close()
        if main:
            signal.signal(signal.SIGTERM, handler)


def _outcome(future: futures.Future[str | None], slot: Slot, tries: int) -> tuple[str | None, bool]:
    """Why a call failed, and whether its process died of it."""
    try:
        return future.result(), False
    except InputError:
        raise
    except futures.CancelledError:
        return "the scheduler was lost before it was done; call again", False
    except Exception as error:
        if isinstance(error, futures.BrokenExecutor) or type(error).__name__ == "KilledWorker":  # Dask's
            again = " again and again" if tries > 1 else ""
            remedy = "give workers more memory, or leave it out"
            return f"its worker process died{again}, by a crash or for want of memory{slot.death()}; {remedy}", True
        return f"{type(error).__name__}: {error}", False


def _attempt(call: Call) -> str | None:
    """Do a call, in whatever process, and give the reason where it failed."""
    try:
        call.do()
    except Exception as error:  # whatever it is, it becomes this item's reason and the others go on
        first = error.__cause__ if isinstance(error, InputError) else error  # atomic_path tells what it caught
        if isinstance(first, OSError) and first.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _DiskFull(f"{error}; what was done before is kept, and a second call goes on from there") from error
        if call.log is not None:
            traceback.print_exc()
        reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        return (str if _may_pass(error) else _Lasting)(" ".join(reason.split()))
    return None


def _may_pass(error: BaseException) -> bool:
    """Whether another try may end otherwise: the system failed, or ran out of something."""
    cause = error.__cause__ if isinstance(error, InputError) else error
    if isinstance(cause, OSError):  # those of decoders, of a damaged file, have no number
        return cause.errno not in _LASTING and (cause.errno is not None or cause is error)
    return cause is error and isinstance(error, MemoryError | RuntimeError)


@dataclass(eq=False)
class Slot:
    """Where calls are done: by a process that begins with the first one, unless an executor is given.

    Attributes:
        environment: variables of the process, such as CUDA_VISIBLE_DEVICES and OMP_NUM_THREADS.
        memory_gb: beyond 95 % of it the process is ended; None for no limit.
        executor: does the calls.
        size: how many at a time; what waits in a queue would be blamed for a death as well.
        process: that was begun last.
        busy: calls that it does.
    """

    environment: Mapping[str, str] = field(default_factory=dict)
    memory_gb: float | None = None
    executor: futures.Executor | None = None
    size: Callable[[], int] = lambda: 1
    process: Any = None
    busy: int = 0

    def submit(self, call: Call) -> futures.Future[str | None]:
        """Begin a call; the future gives the reason where it failed."""
        if self.executor is not None:
            return self.executor.submit(_attempt, call)
        self.executor = futures.ProcessPoolExecutor(1, get_context("spawn"), _begin, (call.log,))
        before, others = dict(os.environ), set(active_children())
        # Here, because libraries read them when the process begins. SAFEPATH: no file of this folder becomes a module.
        os.environ.update({"PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1", **self.environment})
        try:
            return self.executor.submit(_attempt, call)
        finally:
            os.environ.clear()
            os.environ.update(before)
            self.process = next(iter(set(active_children()) - others), None)

    def death(self) -> str:
        """How the process died, for the message."""
        self.release()
        if self.process is None:
            return ""
        code, limit = self.process.exitcode, f", limit {self.memory_gb:g} GB" if self.memory_gb else ""
        return f" ({signal.Signals(-code).name if code < 0 else f'exit code {code}'}{limit})"

    def check_memory(self) -> None:
        """End the process where it has grown too large."""
        if self.process is not None and self.memory_gb is not None:
            with suppress(psutil.Error):
                if psutil.Process(self.process.pid).memory_info().rss > 0.95e9 * self.memory_gb:
                    self.process.kill()

    def release(self) -> None:
        """Let the process end."""
        if isinstance(self.executor, futures.ProcessPoolExecutor):
            self.executor.shutdown()
            self.executor = None

    def close(self) -> None:
        """End the process; it is killed when it does not obey."""
        if self.process is not None:
            self.process.terminate()
            self.process.join(PATIENCE_SECONDS)
            self.process.kill()
        self.release()


class _ThisProcess(futures.Executor):
    """This process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> futures.Future[Any]:
        future: futures.Future[Any] = futures.Future()
        future.set_result(fn(*args, **kwargs))
        return future


@contextmanager
def _slots(options: JobOptions, calls: int) -> Iterator[Sequence[Slot]]:
    if options.scheduler is None:
        threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        count = min(options.workers or os.cpu_count() or 1, calls)
        alone = options.workers == 1
        yield [Slot(executor=_ThisProcess())] if alone else [Slot(threads, options.memory_gb) for _ in range(count)]
        return
    try:
        from distributed import Client

        client: Any = Client(options.scheduler, timeout=_NO_ANSWER_S, set_as_default=False)
    except ImportError as error:
        raise InputError("--scheduler needs Dask: pip install 'histoloc[dask]', or leave the option out") from error
    except (OSError, ValueError) as error:
        raise InputError(f"--scheduler {options.scheduler}: no Dask scheduler answers there ({error})") from error
    with client:
        if not client.nthreads():
            print(f"{options.scheduler}: has no workers yet; waiting for them", file=sys.stderr)
        yield [Slot(executor=client.get_executor(pure=False), size=lambda: max(1, sum(client.nthreads().values())))]


# --- in a worker process ---


def _begin(log: Path | None) -> None:
    # Ctrl-C reaches all processes of a terminal; the parent ends its workers in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
