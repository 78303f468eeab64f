"""Mutated files of every format that is read: a result that others read too, or one sentence; never anything else.

Run long by hand: `python tests/fuzz.py --files 10000 --seed 0` counts what became of them. Each file ends in a result
or an InputError within 10 seconds and 1 GB. A result is compared with what Pillow, tifffile, pydicom, shapely, csv or
json read by themselves. Files that fail stay in the folder that `--keep` names.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import mutations as m
from fuzz_files import Kind, kinds

SECONDS, GIGABYTES = 10.0, 1.0


# --- the run ---


def mutated(kind: Kind, rng: Random) -> bytes:
    """One to three mutations, most of which know the format."""
    data = rng.choice(kind.bases)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        mutate = kind.mutate if rng.random() < 0.8 else m.bytes_of
        with suppress(Exception):  # what was mutated before may be none of the format any more
            data = mutate(rng, data) or data
    return data


def peak_growth() -> Callable[[], float]:
    """Gigabytes by which this process's memory has grown at most since the call."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")

    def peak() -> float:
        with suppress(OSError):
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20
        return 0.0

    before = peak()
    return lambda: peak() - before


def judge(kind: Kind, path: Path) -> str:
    """`read`, `refused`, or what went wrong."""
    grown, started = peak_growth(), time.perf_counter()
    try:
        with warnings.catch_warnings(action="ignore"):
            outcome = "read" if kind.read(path) else "refused"
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"[:300]
    seconds, gigabytes = time.perf_counter() - started, grown()
    if seconds > SECONDS:
        return f"slow: {seconds:.1f} s"
    return outcome if gigabytes < GIGABYTES else f"large: {gigabytes:.1f} GB"


def work(names: list[str], seed: int, folder: str, tasks: Any, results: Any) -> None:
    """In a process of its own: number after number; a number stands for the same file always."""
    made = kinds(Path(folder))
    results.send("ready")
    while (number := tasks.recv()) is not None:
        name = names[number % len(names)]
        kind = made[name]
        path = Path(folder) / f"mutated-{number}{kind.suffix}"
        path.write_bytes(mutated(kind, Random(f"{seed} {number}")))
        results.send((name, judge(kind, path)))
        with suppress(OSError):
            path.unlink()


def run(files: int, seed: int, names: list[str], keep: Path | None, first: int = 0) -> Counter[tuple[str, str]]:
    """Judge so many files; a process that hangs or dies is begun anew."""
    counts: Counter[tuple[str, str]] = Counter()
    context = multiprocessing.get_context("spawn")
    process: Any = None
    tasks: Any = None
    results: Any = None
    with tempfile.TemporaryDirectory() as folder:
        for number in range(first, first + files):
            if process is None or not process.is_alive():
                (tasks_in, tasks), (results, results_out) = (context.Pipe(duplex=False) for _ in range(2))
                process = context.Process(target=work, args=(names, seed, folder, tasks_in, results_out), daemon=True)
                process.start()
                results.recv()
            name, outcome = names[number % len(names)], "hangs: more than a minute"
            tasks.send(number)
            ends = time.monotonic() + 60
            while time.monotonic() < ends and process.is_alive() and not results.poll(0.5):
                pass
            if results.poll():
                name, outcome = results.recv()
            else:
                outcome = outcome if process.is_alive() else f"dies: exit code {process.exitcode}"
                process.kill()
                process.join()
            short = outcome if outcome in ("read", "refused") else "FAULT"
            counts[name, short] += 1
            if short == "FAULT":
                print(f"{number} {name}: {outcome}", flush=True)
                if keep is not None:
                    kind = kinds(Path(folder))[name]
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{number}{kind.suffix}").write_bytes(mutated(kind, Random(f"{seed} {number}")))
        if process is not None:
            process.kill()
    return counts


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    parser.add_argument("--kinds", nargs="*", help="png, tiff, jpeg, ...; by default all")
    parser.add_argument("--keep", type=Path, help="folder for files that fail")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        names = options.kinds or list(kinds(Path(folder)))
    counts = run(options.files, options.seed, names, options.keep, options.first)
    for name in names:
        print(f"{name:12}", *(f"{word} {counts[name, word]:6}" for word in ("read", "refused", "FAULT")))
    faults = sum(count for (_, word), count in counts.items() if word == "FAULT")
    print(f"{sum(counts.values())} files, {faults} faults")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
