"""Who may write into a benchmark's folder; its `benchmark.json` names the settings and the machine."""

import os
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from histoloc.benchmark.cells import PlannedCell, image_sides
from histoloc.benchmark.presets import Choices
from histoloc.benchmark.results import FORMAT, SETTINGS_FILE
from histoloc.benchmark.rows import rows_of
from histoloc.data.table import read_table
from histoloc.errors import InputError
from histoloc.work_folder import check_claim, check_inputs, read_json, write_json

# A folder holds one benchmark: these may not differ between calls. Rows, folds and seeds may be added.
FIXED = ("kind", "data", "preset", "split", "maps", "overrides", "range", "empty_class")


def claim(kind: str, choices: Choices, cells: Sequence[PlannedCell]) -> None:
    """Write `benchmark.json`, merged with that of earlier calls.

    Raises:
        InputError: the folder holds a benchmark of other settings or of another table, or something else.
    """
    path = choices.out / SETTINGS_FILE
    now: dict[str, Any] = {
        "kind": kind,
        "data": choices.data.as_posix(),
        "preset": choices.preset,
        "folds": _distinct(cell.fold for cell in cells),
        "seeds": _distinct(cell.seed for cell in cells),
        "rows": [row.name for row in rows_of(kind) if any(cell.row == row for cell in cells)],
        "split": cells[0].split,
        "maps": choices.maps,
        "range": choices.range,
        "empty_class": choices.empty_class,
        "published": choices.published,
        "inputs": cells[0].inputs,
        "command": "",
        "overrides": choices.overrides,
        "image_sides": list(image_sides(read_table(choices.data, check_files=False))),
        "machine": machine(),
        "format": FORMAT,
    }
    earlier = _read(path)
    if earlier is not None:
        check_claim(choices.out, {name: earlier.get(name) for name in FIXED}, {name: now[name] for name in FIXED})
        if any(choices.out.glob("cells/*/*/model")):  # where nothing was made, the table may have been mended
            check_inputs(choices.out, earlier.get("inputs"), now["inputs"])
        now["published"] = choices.published or earlier.get("published")  # only what the tables show
        now |= {name: _distinct([*earlier[name], *now[name]]) for name in ("folds", "seeds")}
        names = {*earlier["rows"], *now["rows"]}
        now["rows"] = [row.name for row in rows_of(kind) if row.name in names]
    now["command"] = command(now, choices.out)
    write_json(path, now)


def command(settings: dict[str, Any], out: Path) -> str:
    """The command line that makes all that the folder holds, or will hold."""
    folds = ",".join("none" if fold is None else str(fold) for fold in settings["folds"])
    flags = {"data": settings["data"], "folds": folds, "seeds": ",".join(map(str, settings["seeds"]))}
    if settings["rows"] != [row.name for row in rows_of(settings["kind"])]:
        flags["rows"] = ",".join(settings["rows"])
    flags |= {name: settings[name] for name in ("preset", "split", "maps")}
    named = {name: settings.get(name.replace("-", "_")) for name in ("range", "empty-class", "published")}
    flags |= {flag: value for flag, value in named.items() if value is not None}
    flags |= {**settings["overrides"], "out": out.as_posix()}
    return shlex.join(["histoloc", "benchmark", settings["kind"], *(f"--{k}={v}" for k, v in flags.items())])


def machine() -> dict[str, Any]:
    """What the cells are computed with."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": _cpu(),
        "cores": cores(),
        "gpu": ", ".join(gpus) or None,
        "memory_gb": _memory_gb(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "platform": platform.platform(),
    }


def cores() -> int:
    """How many cores this process may use."""
    # Not on every platform; where it is, it knows of what a batch system grants.
    granted = getattr(os, "sched_getaffinity", None)
    return len(granted(0)) if granted else os.cpu_count() or 1


def _distinct(values: Any) -> list[int | None]:
    """In order, each once; None first."""
    return sorted(set(values), key=lambda value: -1 if value is None else value)


def _read(path: Path) -> dict[str, Any] | None:
    earlier = read_json(path)
    if earlier is not None and not all(isinstance(earlier.get(n), list) for n in ("folds", "seeds", "rows")):
        raise InputError(f"{path}: says nothing of a benchmark's folds, seeds and rows; choose another --out")
    return earlier


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if sys.platform == "linux" and info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_gb() -> float | None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
