"""What a benchmark's folder says of itself, and what another call may not change."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from histoloc.benchmark.cells import REQUEST_FILE, PlannedCell, image_sides
from histoloc.benchmark.presets import Choices
from histoloc.benchmark.results import FORMAT, SETTINGS_FILE
from histoloc.benchmark.rows import rows_of
from histoloc.data.table import read_table
from histoloc.doctor import machine
from histoloc.errors import InputError
from histoloc.work_folder import check_claim, check_inputs, read_json, read_yaml, write_json

# A folder holds one benchmark: these may not differ between calls. Rows, folds and seeds may be added.
FIXED = ("kind", "preset", "split", "maps", "overrides", "range", "empty_class")
ADDED = ("folds", "seeds", "rows")


def claim(kind: str, choices: Choices, cells: Sequence[PlannedCell]) -> None:
    """Write `benchmark.json`, merged with that of earlier calls.

    Raises:
        InputError: the folder holds a benchmark of other settings or of another table, or something else.
    """
    path = choices.out / SETTINGS_FILE
    now: dict[str, Any] = {
        "kind": kind,
        "data": choices.data.as_posix(),
        "columns": choices.columns or None,
        "preset": choices.preset,
        "folds": [cell.fold for cell in cells],
        "seeds": [cell.seed for cell in cells],
        "rows": [cell.row.name for cell in cells],
        "split": cells[0].split,
        "maps": choices.maps,
        "range": choices.range,
        "empty_class": choices.empty_class,
        "published": choices.published,
        **choices.of_prior,
        "inputs": cells[0].inputs,
        "overrides": choices.overrides,
        "image_sides": list(image_sides(read_table(choices.data, columns=choices.columns, check_files=False))),
        "machine": machine(),
        "format": FORMAT,
        "command": "",
    }
    earlier = read_json(path)
    if earlier is not None:
        if not all(isinstance(earlier.get(name), list) for name in ADDED):
            raise InputError(f"{path}: does not list the folds, seeds and rows of a benchmark; choose another --out")
        check_claim(choices.out, {name: earlier.get(name) for name in FIXED}, {name: now[name] for name in FIXED})
        if any(choices.out.glob("cells/*/*/model")):  # where nothing was made, the table may have been mended
            check_inputs(choices.out, earlier.get("inputs"), now["inputs"])
        _check_priors(cells)
        now["published"] = choices.published or earlier.get("published")  # only what the tables show
        now |= {name: [*earlier[name], *now[name]] for name in ADDED}
    for name in ("folds", "seeds"):
        now[name] = sorted(set(now[name]), key=lambda number: -1 if number is None else number)
    now["rows"] = [row.name for row in rows_of(kind) if row.name in now["rows"]]
    write_json(path, now | {"command": command(now, choices.out)})


def _check_priors(cells: Sequence[PlannedCell]) -> None:
    """Make sure that no training goes on with another prior than it was begun with."""
    for cell in cells:
        path = cell.folder / REQUEST_FILE
        before = read_yaml(path).get("prior") if cell.prior is not None and path.is_file() else None
        if before not in (None, cell.prior):
            raise InputError(
                f"{cell.folder}: was begun with another prior than {cell.config.prior or 'that of the seed'} is now; "
                "restore that prior, or choose another --out"
            )


def command(settings: dict[str, Any], out: Path) -> str:
    """The command line that makes all that a benchmark's folder holds, or will hold: figures stand beside it."""
    folds = ",".join("none" if fold is None else str(fold) for fold in settings["folds"])
    flags = {"data": settings["data"], "folds": folds, "seeds": ",".join(map(str, settings["seeds"]))}
    if settings["rows"] != [row.name for row in rows_of(settings["kind"])]:
        flags["rows"] = ",".join(settings["rows"])
    named = ("columns", "preset", "split", "maps", "range", "empty_class", "published")
    named += ("prior", "priors", "looked_at")
    flags |= {name.replace("_", "-"): settings[name] for name in named if settings.get(name) is not None}
    flags |= settings["overrides"] | {"out": out.as_posix()}
    return shlex.join(["histoloc", "benchmark", settings["kind"], *(f"--{k}={v}" for k, v in flags.items())])
