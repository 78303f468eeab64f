"""The folder that a long command writes: its files, how it is locked and resumed. No other file knows these rules."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil
import yaml
from filelock import FileLock, Timeout

from histoloc.errors import InputError

if TYPE_CHECKING:
    from histoloc.data.table import Table

LOCK, OWNER = ".lock", ".lock.owner"  # in a folder while it is locked; a killed process leaves them, without effect
WORK = "work"  # in a folder: what an unfinished item goes on from
RUN_FILE, INPUTS_FILE = "run.yaml", "inputs.json"
# What may differ when a run is resumed: none of it changes the result.
RESUMABLE = ("epochs", "workers", "cache_gb")
# What `auto` may stand for. Not compared as written where the folder says what became of them.
RESOLVED = ("accelerator", "precision", "devices", "nodes")

LARGEST_JSON, LARGEST_YAML = 64 << 20, 128 << 10  # bytes of a file
YAML_VALUES = 10_000

OLD_SECONDS = 86_400.0  # a part of another machine's process that has not changed for so long is nobody's
_HOST = "".join(c if c.isalnum() else "_" for c in platform.node())

T = TypeVar("T")

# Of this call. A thread or process that was started elsewhere begins without.
_own_locks: ContextVar[frozenset[Path]] = ContextVar("held", default=frozenset())


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; rename it to `path` when the block ends without an exception.

    Args:
        path: the file to write; its folder is made when absent.

    Raises:
        InputError: the folder cannot be made or written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{_HOST}-{os.getpid()}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear(path.parent.resolve())
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}); choose another place or make room"
        ) from error
    finally:
        with suppress(OSError):  # the folder may be what is wrong; the first error is the one to tell
            temporary.unlink(missing_ok=True)


@cache
def _clear(folder: Path) -> None:
    """Once per process and folder, remove what killed processes left of files that they wrote."""
    for part in folder.glob(".*.part*"):
        owner = re.fullmatch(r"\..+?\.(?:([^.]*)-)?(\d+)\.part(?:\.[^.]*)?", part.name)
        with suppress(OSError):
            here = owner is not None and owner[1] == _HOST
            if owner and (not psutil.pid_exists(int(owner[2])) if here else _age(part) > OLD_SECONDS):
                part.unlink()


def _age(file: Path) -> float:
    return time.time() - file.stat().st_mtime


def safe_name(text: str) -> str:
    """A part of a file name for any text: letters, digits and -._+ stay, all else becomes _."""
    return "".join(c if c.isalnum() or c in "-._+" else "_" for c in text)


def write_text(path: Path, text: str) -> None:
    """Write `text` (UTF-8) to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON to `path` atomically; NaN is refused, so use None."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Have a folder for this call alone; another call is refused at once, from this process too.

    A command may call another one on the folder that it holds: inside the block, `locked` on the same folder does
    nothing. Of several processes that write one folder together only the first one locks it (see `train`). A folder
    inside is another folder, with a lock of its own.

    The lock is the operating system's (flock, LockFileEx), which ends with its process, however that ends. Between
    machines it holds where a network file system passes these locks on to its server (NFS and SMB do; Lustre with the
    mount option `flock`). Mounted with local locks (`nolock`, `local_lock`, `localflock`), calls on one machine exclude
    each other, those on two machines do not. Where there are no locks at all, filelock warns and takes the existence of
    a file instead.

    Args:
        folder: made when absent.

    Raises:
        InputError: another call holds the folder, or it cannot be written.
    """
    place = Path(folder).resolve()
    if place in _own_locks.get():
        yield
        return
    lock = FileLock(place / LOCK, timeout=0)
    try:
        place.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise InputError(
            f"{folder}: another call is writing here{_owner(place)}; wait until it ends, or choose another --out"
        ) from error
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror or error}); choose another folder by --out, or make room"
        ) from error
    token = _own_locks.set(_own_locks.get() | {place})
    try:
        # A file of its own: Windows lets nobody read a locked one. Only the message of another call needs it.
        with suppress(OSError):
            now = datetime.now().astimezone().isoformat(" ", "seconds")
            (place / OWNER).write_text(f"process {os.getpid()} on {platform.node()}, since {now}", encoding="utf-8")
        yield
    finally:
        _own_locks.reset(token)
        for name in (OWNER, LOCK):
            with suppress(OSError):  # an open file cannot be removed on Windows, where filelock does it
                (place / name).unlink(missing_ok=True)
        lock.release()


def _owner(place: Path) -> str:
    for _ in range(5):
        with suppress(OSError, UnicodeDecodeError):
            if text := (place / OWNER).read_text(encoding="utf-8"):
                return f" ({text})"
        time.sleep(0.05)  # two calls that began together: the other one has not written it yet
    return ""


def first_alone(processes: Any, work: Callable[[], T]) -> T | None:
    """Let the first of several processes do what may be refused; the others go on, or stop, with it.

    Args:
        processes: as Fabric has them: `is_global_zero`, and `broadcast` of what the first one says.
        work: for the first one.

    Returns:
        What `work` returns; None in the other processes.

    Raises:
        InputError: as `work`, in the first process; the others end with exit code 2 and say nothing.
    """
    result = refusal = None
    if processes.is_global_zero:
        try:
            result = work()
        except InputError as error:
            refusal = error
    if processes.broadcast(refusal is not None):
        raise refusal or SystemExit(2)
    return result


def check_claim(folder: Path, before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> None:
    """Make sure that a call may continue what a folder holds.

    Args:
        folder: of the call, for the message.
        before: settings of the calls before, as plain values; None where there were none.
        now: settings of this call; one that is absent counts as None.

    Raises:
        InputError: the settings differ.
    """
    if before is not None and (differing := _differing(before, now)):
        raise InputError(
            f"{folder}: was begun with other settings ({differing}); restore them, or choose another --out"
        )


def claim(path: Path, now: Mapping[str, Any]) -> None:
    """Write the settings of a folder into a file of it, or make sure that they are those of the calls before.

    Raises:
        InputError: as `check_claim`, or the file cannot be read or written.
    """
    before = read_json(path)
    check_claim(path.parent, before, now)
    if before is None:
        write_json(path, now)


def check_run(
    out: Path,
    now: Mapping[str, Any],
    earlier: Callable[[], Mapping[str, Any]],
    table: Table,
    computed_on: Mapping[str, Any],
    *,
    resume: bool,
) -> dict[str, Any]:
    """Make sure that a training may begin in a folder, or continue the run that is there.

    Args:
        out: the run folder.
        now: the run's settings, as plain values.
        earlier: reads those of the run that is there.
        table: of the run.
        computed_on: kind of device, precision and number of processes of this call: with others, results differ.
        resume: whether the user wants to continue.

    Returns:
        What the run keeps of its table, as `inputs_of`, `computed_on`, and `home`: where it is.

    Raises:
        InputError: there is a run, and `resume` is not set or it has other settings, another table, or another
            `computed_on`.
    """
    trained = (out / "last.ckpt").exists() or (out / "model").exists()
    if not resume and (trained or (out / RUN_FILE).exists()):
        raise InputError(f"{out}: folder already contains a run; pass --resume to continue it, or choose another --out")
    inputs = inputs_of(table)
    if trained:  # otherwise nothing was made with the settings that are there
        before = read_json(out / INPUTS_FILE)
        known = (before or {}).get("computed_on")
        free = RESUMABLE if known is None else RESUMABLE + RESOLVED
        check_claim(out, _without(free, earlier()), _without(free, now))
        check_inputs(out, before, inputs)
        check_claim(out, known, computed_on)
        if known is None:
            text = f"note: {out}: says nothing of the device and precision it was begun with; those of now may differ"
            print(text, file=sys.stderr)
    return inputs | {"computed_on": dict(computed_on), "home": os.path.realpath(out)}


def _without(names: tuple[str, ...], settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in _flat(settings).items() if name.rpartition(".")[2] not in names}


def inputs_of(table: Table) -> dict[str, Any]:
    """What a folder keeps of the table that it was made from, fit for JSON.

    Returns:
        `table` (file name), `fingerprint` of its content, `rows`, `classes`, and `counts` by split and class.
    """
    return {
        "table": table.path.name,
        "fingerprint": table.fingerprint(),
        "rows": len(table.samples),
        "classes": list(table.classes),
        "counts": table.counts().to_dict("index"),
    }


def check_inputs(folder: Path, before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> None:
    """Make sure that a folder is continued with the table that it was begun with.

    Args:
        folder: of the call, for the message.
        before: `inputs_of` the table of the calls before; None where the folder does not say it, as those of histoloc
            0.1; then a note says that the tables could not be compared.
        now: `inputs_of` the table of this call.

    Raises:
        InputError: the table has another content; the message says what differs, as far as that is known.
    """
    if before is None:
        text = f"note: {folder}: was begun by histoloc 0.1, which kept nothing of its table; {now['table']} may differ"
        print(text, file=sys.stderr)
    elif before.get("fingerprint") != now["fingerprint"]:
        keys = ("rows", "classes", "counts")
        differing = _differing({k: before.get(k) for k in keys}, {k: now[k] for k in keys}) or "the counts are the same"
        raise InputError(
            f"{folder}: was begun with another content of {now['table']} ({differing}); restore the table, or choose "
            "another --out"
        )


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping.

    Raises:
        InputError: absent, unreadable or no mapping; a key that is there twice, or more than 10,000 values.
    """
    try:
        text = _text(path, LARGEST_YAML)
        if text.count("[") + text.count("{") > 1000:  # the time for open ones grows with their square
            raise ValueError("more than 1000 brackets")
        loader = _Loader(text)
        node = loader.get_single_node()
        return _mapping(loader.construct_document(node) if node and _values(node, {}) else None)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give an existing YAML file") from error
    except TypeError as error:
        raise InputError(f"{path}: must hold `key: value` lines; correct it") from error
    except Exception as error:  # no parser confines itself to errors of one kind
        raise InputError(f"{path}: not valid YAML ({_short(error)}); correct it") from error


class _Loader(yaml.SafeLoader):
    """Of two equal keys YAML's own would take the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if double := [key for key in keys if keys.count(key) > 1]:
            raise ValueError(f"the key {double[0]} is there twice")
        return super().construct_mapping(node, deep)


def _values(node: Any, known: dict[int, float]) -> float:
    """How many values a node holds where each alias is written out: one that holds itself, without end."""
    if id(node) not in known:
        known[id(node)] = math.inf
        parts = [part for item in node.value for part in (item if isinstance(item, tuple) else (item,))]
        known[id(node)] = 1 + sum(_values(p, known) for p in parts if isinstance(p, yaml.Node))
    if known[id(node)] > YAML_VALUES:
        raise ValueError(f"more than {YAML_VALUES} values, or an alias that holds itself")
    return known[id(node)]


def read_json(path: Path, remedy: str = "restore it, or name another folder") -> dict[str, Any] | None:
    """The values in a JSON file; None where there is no such file.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    try:
        return _mapping(json.loads(_text(path, LARGEST_JSON)))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({_short(error)}); {remedy}") from error


def _text(path: Path, largest: int) -> str:
    if path.is_file() and path.stat().st_size > largest:
        raise ValueError(f"more than {largest >> 10} kB")
    return path.read_text(encoding="utf-8-sig")


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("no mapping of names to values")
    json.dumps(value, default=str, ensure_ascii=False).encode()  # half a character of UTF-16 could not be written
    return value


def _short(error: Exception) -> str:
    text = "nested too deeply" if isinstance(error, RecursionError) else str(error) or type(error).__name__
    return " ".join(text.split())[:300]


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """`lr was 0.1 and is 0.2, ...`; empty where nothing differs."""
    old, new = _flat(before), _flat(now)
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return ", ".join(f"{name} was {old.get(name)} and is {new.get(name)}" for name in names)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
