"""What a call of `camelyon16_table` writes: patches, masks, the tables, and where all of it comes from."""

import hashlib
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from histoloc.data.images import JPEG_QUALITY
from histoloc.datasets.camelyon16.folder import CamelyonSlide
from histoloc.datasets.camelyon16.names import PatchName
from histoloc.datasets.camelyon16.protocol import Sampling, write_slide
from histoloc.errors import InputError
from histoloc.runner import JobsResult, Task, run_jobs
from histoloc.work_folder import atomic_path

SETS = ("train", "valid", "test")


@dataclass(frozen=True)
class Row:
    """A patch on its way into the table; x and y are pixels of level 0, width and height of the mpp."""

    slide: CamelyonSlide
    split: str
    name: PatchName
    x: int
    y: int
    width: int
    height: int
    mpp: float

    @property
    def label(self) -> str:
        """Name of the class."""
        return "normal" if self.name.kind == "normal" else "tumor"


@dataclass
class Build:
    """The state of one call; `rows` and what is told of them grow from step to step."""

    out: Path
    sampling: Sampling
    seed: int
    slides: dict[str, CamelyonSlide]
    splits: dict[str, str]
    failed: dict[str, str]
    jobs: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    counts: dict[str, Any] = field(default_factory=dict)

    def run(self, step: str, task: Task, items: Mapping[str, Any]) -> JobsResult:
        """Do a step on several slides; what is done is kept in a folder of the step's name."""
        return run_jobs(task, items, self.out / "work" / step, settings=asdict(self.sampling), **self.jobs)

    def item(self, slide: CamelyonSlide, *, annotations: bool = True, **more: Any) -> dict[str, Any]:
        """What a task has to know; a file that was exchanged makes it another item, which is done again."""
        item = {"slide": str(slide.path), **more}
        try:
            stat = slide.path.stat()
            item |= {"bytes": stat.st_size, "modified": stat.st_mtime_ns}
            if slide.mpp is not None:
                item["slide_mpp"] = slide.mpp
            if annotations:
                path = slide.annotations
                item["annotations"] = None if path is None else str(path)
                item["annotations_sha256"] = None if path is None else hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            item["unreadable"] = str(error)  # the task opens the files and tells it as the slide's own failure
        return item


@dataclass(frozen=True)
class Files:
    """Files of a row: image and mask, as the table has them, or None."""

    patch: Path | None
    mask: Path | None


def write_files(build: Build, write: str) -> list[Files]:
    """Write what the table points to beside the slides; the files of each row, in their order."""
    suffix = ".jpg" if write == "jpeg" else ".png"
    masks = write != "none" or build.sampling.protocol == "tmi"
    files: list[Files] = []
    items: dict[str, dict[str, Any]] = {}
    for row in build.rows:
        stem = str(row.name).removesuffix(row.name.suffix)
        patch = build.out / "patches" / f"{stem}{suffix}" if write != "none" else None
        mask = build.out / "masks" / f"mask_{stem}.png" if masks and row.label == "tumor" else None
        files.append(Files(patch, mask))
        if patch or mask:
            item = items.setdefault(row.slide.name, build.item(row.slide, patches=[]))
            paths = [None if path is None else str(path) for path in (patch, mask)]
            item["patches"].append([*paths, row.x, row.y, row.width, row.height])
    result = build.run("files", write_slide, items)
    if any(not path.is_file() for f in files for path in (f.patch, f.mask) if path) and not result.failed:
        shutil.rmtree(build.out / "work" / "files")  # somebody deleted what an earlier call had written
        result = build.run("files", write_slide, items)
    if result.failed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in result.failed.items())
        raise InputError(f"{build.out}: not all patches and masks could be written, so there is no table ({reasons})")
    return files


def write_patches(build: Build, files: Sequence[Files]) -> pd.DataFrame:
    """Write patches.csv for whoever wants to know where a patch comes from, and give the rows of table.csv.

    The table of an earlier call goes; the new one is to be written last, so that it is there only with what belongs
    to it.
    """
    shared = _shared_slides(build)
    table, patches = [], []
    for row, file in zip(build.rows, files, strict=True):
        outlines = row.slide.annotations if row.label == "tumor" else None
        region = {} if file.patch else {"x": row.x, "y": row.y, "width": row.width, "height": row.height}
        table.append(
            {
                "image": file.patch or row.slide.path,
                "label": row.label,
                "mask": file.mask or outlines or "",
                "split": row.split,
                "group": "" if row.slide.name in shared else row.slide.name,
                "mpp": row.mpp,
                **region,
                "slide_mpp": None if file.patch else row.slide.mpp,
            }
        )
        place = {"x": row.x, "y": row.y, "width": row.width, "height": row.height, "mpp": row.mpp}
        patches.append(
            {
                "name": str(row.name),
                "slide": row.slide.name,
                "label": row.label,
                "split": row.split,
                "region": row.name.region,
                "row": row.name.row,
                "patch": row.name.patch,
                **place,
                "tissue": row.name.tissue_text,
                "metastatic": row.name.tumour_text,
                "mask": file.mask.name if file.mask else "",
            }
        )
    listed = pd.DataFrame(patches).astype({"region": "Int64", "row": "Int64"})
    with atomic_path(build.out / "patches.csv") as temporary:
        listed.to_csv(temporary, index=False, lineterminator="\n")
        (build.out / "table.csv").unlink(missing_ok=True)
    rows = pd.DataFrame(table)
    return rows.drop(columns="slide_mpp") if rows["slide_mpp"].isna().all() else rows


def _shared_slides(build: Build) -> set[str]:
    """Slides that a published list has in several splits; they are no groups then, and that is told."""
    splits: dict[str, set[str]] = {}
    for row in build.rows:
        splits.setdefault(row.slide.name, set()).add(row.split)
    shared = {name for name, there in splits.items() if len(there) > 1}
    if shared:
        build.warnings.append(f"{len(shared)} slide(s) are in several splits of the list; their group is left empty")
    return shared


def failures(failed: Mapping[str, str]) -> list[str]:
    """What failed slides mean for the table, a sentence each."""
    if not failed:
        return []
    return [
        *(f"{name}: {reason}" for name, reason in sorted(failed.items())),
        f"{len(failed)} slide(s) failed, and numbers of patches were chosen without them; repair them and call again, "
        f"which does only these and chooses anew",
    ]


def provenance(
    build: Build,
    root: Path,
    fold: int,
    patches_from: Path | None,
    write: str,
    left_out: Mapping[str, str],
    folds: Mapping[str, int],
) -> dict[str, Any]:
    """All that is needed to make the table again, or to see why it is not the published one."""
    used = Counter(row.slide.name for row in build.rows)
    tally = Counter((row.split, row.label) for row in build.rows)
    return {
        "protocol": build.sampling.protocol,
        "parameters": asdict(build.sampling) | {"stride": build.sampling.step},
        "seed": build.seed,
        "fold": fold,
        "folds": "five slide-level folds as published in size; the published shuffle cannot be reproduced exactly",
        "patches_from": None if patches_from is None else Path(patches_from).name,
        "write": write if write != "jpeg" else f"jpeg, quality {JPEG_QUALITY}",
        "root": Path(root).absolute().name,
        "counts": build.counts,
        "patches": {split: {label: tally[split, label] for label in ("normal", "tumor")} for split in SETS},
        "slides": [
            {
                "slide": name, "label": slide.label, "split": build.splits[name], "fold": folds.get(name),
                "patches": used[name],
            }
            for name, slide in build.slides.items() if name not in build.failed
        ],
        "left_out": dict(left_out),
        "failed": dict(sorted(build.failed.items())),
        "warnings": build.warnings,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in ("histoloc", "numpy", "scikit-image", "openslide-python")},
    }  # fmt: skip
