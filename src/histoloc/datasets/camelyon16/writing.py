"""The state of a call of `camelyon16_table`, and what it writes: patches, masks, tables, and where they come from."""

import shutil
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from histoloc.data.images import JPEG_QUALITY
from histoloc.data.table import write_table
from histoloc.data.table_problems import refuse
from histoloc.datasets.camelyon16.folder import CamelyonFolder
from histoloc.datasets.camelyon16.names import PatchName
from histoloc.datasets.camelyon16.protocol import write_slide
from histoloc.datasets.options import CamelyonOptions, Sampling
from histoloc.datasets.result import TableResult
from histoloc.datasets.slide_list import ListedSlide
from histoloc.runner import JobOptions, Task, run_jobs
from histoloc.work_folder import WORK, atomic_path, write_json

SETS = ("train", "valid", "test")
PATCH_COLUMNS = ("name", "slide", "label", "split", "region", "row", "patch", "x", "y", "width", "height", "mpp",
                 "tissue", "metastatic", "mask")  # fmt: skip


@dataclass
class Build:
    """The state of one call; rows, failures and what is said of them grow from step to step."""

    root: Path
    out: Path
    sampling: Sampling
    options: CamelyonOptions
    jobs: JobOptions
    folder: CamelyonFolder
    slides: dict[str, ListedSlide]
    splits: dict[str, str]
    rows: list[dict[str, Any]] = field(default_factory=list)
    counts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.failed, self.warnings = dict(self.folder.failed), list(self.folder.warnings)

    def run(self, step: str, task: Task, items: Mapping[str, Any]) -> dict[str, Any]:
        """Do a step on several slides; what is done is kept in a folder of the step's name.

        Args:
            step: name of the folder.
            task: of `run_jobs`.
            items: by name of the slide, which a space and more may follow.

        Returns:
            Results by name of the slide.
        """
        result = run_jobs(task, items, self.out / WORK / step, settings=asdict(self.sampling), options=self.jobs)
        names = {key: next(name for name in (key, key.rpartition(" ")[0]) if name in self.slides) for key in items}
        self.failed |= {names[key]: reason for key, reason in result.failed.items()}
        warnings = [warning for value in result.results.values() for warning in value["warnings"]]
        self.warnings += [warning for warning in warnings if warning not in self.warnings]
        return {names[key]: value for key, value in result.results.items()}

    def row(self, slide: str, name: PatchName, mpp: float) -> dict[str, Any]:
        """A patch on its way into the tables; x and y are pixels of level 0, width and height of the mpp."""
        size = {"width": self.sampling.size, "height": self.sampling.size, "mpp": mpp}
        return {**name._asdict(), **size, "name": str(name), "slide": slide, "label": name.label,
                "split": self.splits[slide]}  # fmt: skip


def write_build(build: Build) -> TableResult:
    """Write patches and masks, then patches.csv, provenance.json and, last, table.csv.

    The table of an earlier call goes before: it shall be there only with what belongs to it.
    """
    rows = build.rows
    rows.sort(key=lambda row: (SETS.index(row["split"]), *(row[key] for key in ("label", "slide", "y", "x", "name"))))
    _write_files(build)
    splits: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        splits[row["slide"]].add(row["split"])
    shared = {name for name, sets in splits.items() if len(sets) > 1}
    if shared:
        build.warnings.append(f"{len(shared)} slide(s) are in several splits of the list; their group is left empty")
    patches, table = pd.DataFrame(rows), []
    patches["mask"] = [row["mask"].name if row["mask"] else "" for row in rows]
    with atomic_path(build.out / "patches.csv") as temporary:
        whole = patches.astype({"region": "Int64", "row": "Int64"})[list(PATCH_COLUMNS)]
        whole.to_csv(temporary, index=False, lineterminator="\n")
        (build.out / "table.csv").unlink(missing_ok=True)
    for row in rows:
        slide, file = build.slides[row["slide"]], row["file"]
        mask = row["mask"] or (slide.annotations if row["label"] == "tumor" else None)
        region = {} if file else {key: row[key] for key in ("x", "y", "width", "height")}
        group = "" if slide.name in shared else slide.name
        table.append(
            {"image": file or slide.path, "label": row["label"], "mask": mask, "split": row["split"], "group": group,
             "mpp": row["mpp"], **region, **({} if file or slide.mpp is None else {"slide_mpp": slide.mpp})}
        )  # fmt: skip
    report = _provenance(build)
    write_json(build.out / "provenance.json", report)
    write_table(build.out / "table.csv", pd.DataFrame(table))
    return _result(build, report)


def _write_files(build: Build) -> None:
    """Write what the table points to beside the slides, and tell it to the rows."""
    write = build.options.write
    masks = write != "none" or build.sampling.protocol == "tmi"
    items: dict[str, dict[str, Any]] = {}
    for row in build.rows:
        stem = Path(row["name"]).stem
        suffix = ".jpg" if write == "jpeg" else ".png"
        row["file"] = build.out / "patches" / f"{stem}{suffix}" if write != "none" else None
        row["mask"] = build.out / "masks" / f"mask_{stem}.png" if masks and row["label"] == "tumor" else None
        files = [None if path is None else str(path) for path in (row["file"], row["mask"])]
        if any(files):
            item = items.setdefault(row["slide"], build.slides[row["slide"]].item(patches=[]))
            item["patches"].append([*files, row["x"], row["y"], row["width"], row["height"]])
    failed = len(build.failed)
    build.run("files", write_slide, items)
    paths = [path for row in build.rows for path in (row["file"], row["mask"]) if path]
    if len(build.failed) == failed and not all(path.is_file() for path in paths):
        shutil.rmtree(build.out / WORK / "files")  # somebody deleted what an earlier call had written
        build.run("files", write_slide, items)
    if len(build.failed) > failed:
        refuse(build.out, [f"{name}: {reason}" for name, reason in list(build.failed.items())[failed:]])


def _provenance(build: Build) -> dict[str, Any]:
    """All that is needed to make the table again, or to see why it is not the published one."""
    options, folds = build.options, build.folder.folds
    used = Counter(row["slide"] for row in build.rows)
    tally = Counter((row["split"], row["label"]) for row in build.rows)
    slides = [
        {"slide": name, "label": slide.label, "split": build.splits[name], "fold": folds.get(name),
         "patches": used[name]}
        for name, slide in build.slides.items() if name not in build.failed
    ]  # fmt: skip
    return {
        "protocol": build.sampling.protocol,
        "parameters": asdict(build.sampling) | {"stride": build.sampling.step},
        "seed": options.seed,
        "fold": options.fold,
        "folds": "five slide-level folds as published in size; the published shuffle cannot be reproduced exactly",
        "patches_from": None if options.patches_from is None else options.patches_from.name,
        "write": options.write if options.write != "jpeg" else f"jpeg, quality {JPEG_QUALITY}",
        "root": build.root.absolute().name,
        "counts": build.counts,
        "patches": {split: {label: tally[split, label] for label in ("normal", "tumor")} for split in SETS},
        "slides": slides,
        "left_out": build.folder.exclusions,
        "failed": dict(sorted(build.failed.items())),
        "warnings": build.warnings,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in ("histoloc", "numpy", "scikit-image", "openslide-python")},
    }


def _result(build: Build, report: Mapping[str, Any]) -> TableResult:
    """Slides, and patches before and after calibration or of the list, a line each."""
    slides, excluded, failed = (len(report[key]) for key in ("slides", "left_out", "failed"))
    lines = [f"slides: {slides}, {excluded} left out, {failed} failed"]
    for part, count in build.counts.items():
        numbers = ", ".join(f"{key} {n}" for key, n in count.items()) if isinstance(count, dict) else str(count)
        lines.append(f"{part}: {numbers or 'none'}".replace("_", " "))
    remark = (
        f"{failed} slide(s) failed, and numbers of patches were chosen without them; repair them and call again, which "
        f"does only these and chooses anew"
    )
    return TableResult(build.out / "table.csv", build.warnings + [remark] * bool(failed), lines, report["failed"])
