"""Camelyon16-P512: from the challenge's slides and annotations to a table of patches, by the published protocol.

Bejnordi et al., "Diagnostic assessment of deep learning algorithms for detection of lymph node metastases in women
with breast cancer", JAMA 2017 (the slides); Belharbi et al., "Deep interpretable classification and
weakly-supervised segmentation of histology images via max-min uncertainty", IEEE TMI 2022 (the patches).
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from histoloc.data.table import write_table
from histoloc.datasets.camelyon16.folder import check_fold, find_slides, give_scale, slide_folds, split_of
from histoloc.datasets.camelyon16.names import PatchName, normal_name, tumour_name
from histoloc.datasets.camelyon16.protocol import Sampling, draw_slide, look_at_slide, scan_slide
from histoloc.datasets.camelyon16.published import ends, read_published
from histoloc.datasets.camelyon16.writing import SETS, Build, Row, failures, provenance, write_files, write_patches
from histoloc.datasets.patches import calibrate, calibration_size, equal_numbers, random_for
from histoloc.errors import InputError
from histoloc.runner import write_failed
from histoloc.work_folder import locked, write_json

Write = Literal["none", "png", "jpeg"]
MEMORY_GB = 1.0  # of a worker: a strip across a whole slide of 100,000 px takes about 0.6


@dataclass(frozen=True)
class CamelyonResult:
    """What was made.

    Attributes:
        table: path of the table.
        provenance: what provenance.json says.
        warnings: one sentence each, failed slides included.
    """

    table: Path
    provenance: dict[str, Any]
    warnings: tuple[str, ...]

    def summary(self) -> str:
        """Slides, and patches before and after calibration or of the list, a line each."""
        told = self.provenance
        lines = [f"slides: {len(told['slides'])}, {len(told['left_out'])} left out, {len(told['failed'])} failed"]
        for part, count in told["counts"].items():
            said = ", ".join(f"{key} {n}" for key, n in count.items()) if isinstance(count, dict) else str(count)
            lines.append(f"{part}: {said or 'none'}".replace("_", " "))
        return "\n".join(lines)


def camelyon16_table(
    root: Path,
    out: Path,
    *,
    sampling: Sampling | None = None,
    fold: int = 0,
    seed: int = 0,
    patches_from: Path | None = None,
    write: Write = "none",
    slide_mpp: float | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    memory_gb: float = MEMORY_GB,
    progress: bool = True,
) -> CamelyonResult:
    """Sample patches of Camelyon16, or take those of a published list, and write them as a table.

    Tumour patches are found by scanning the annotations' boxes; those with p > p1 are thinned out in the published
    proportion, over all training slides and over all test slides. In each of the sets train, valid and test as many
    normal patches are drawn, equally many from each normal slide. All draws depend on the seed and the slides' names
    alone. What is done for one slide is kept in `out/work`, so that a second call does only what is missing; the
    table itself is always made anew, from all slides that succeeded.

    Args:
        root: the folder of the slides, see `find_slides`.
        out: folder for table.csv (a region table), patches.csv (what is known of each patch), provenance.json,
            failed.csv (where slides failed: which, and why), masks/ (under `tmi`, or where patches are written) and
            patches/ (where patches are written).
        sampling: what is sampled; None for the published protocol.
        fold: which of the five slide-level folds is the validation set, see `slide_folds`.
        seed: of calibration and of the draw of normal patches, from 0.
        patches_from: a list of published names, or a folder of them, to take instead of sampling.
        write: also write the patches as files, to which the table then points.
        slide_mpp: micrometres per pixel of level 0 of slides that do not say it; without it they fail.
        workers: processes; None for one per core.
        scheduler: address of a Dask scheduler.
        memory_gb: a worker process above it is ended, and its slide tried again.
        progress: show a bar.

    Raises:
        InputError: folder, options or list cannot be used, another call is writing to `out`, no slide gives a tumour
            patch of the training set, or files cannot be written. Slides that cannot be used are no error; they are
            in the result's warnings.
    """
    sampling = sampling or Sampling()
    if seed < 0:
        raise InputError(f"seed {seed}: give a whole number from 0 up")
    if write not in ("none", "png", "jpeg"):
        raise InputError(f"write {write}: there is no such format; write none, png or jpeg")
    found = find_slides(root, published=sampling.protocol == "tmi")
    folds = slide_folds((*found.slides, *found.without_outlines))
    check_fold(found.slides, folds, fold)
    slides = found.slides if slide_mpp is None else give_scale(found.slides, slide_mpp)
    build = Build(
        Path(out).absolute(),
        sampling,
        seed,
        {slide.name: slide for slide in slides},
        {slide.name: split_of(slide, folds, fold) for slide in slides},
        dict(found.failed),
        {"workers": workers, "scheduler": scheduler, "progress": progress, "memory_gb": memory_gb},
        warnings=list(found.warnings),
    )
    with locked(build.out):
        if patches_from is None:
            _sample(build)
        else:
            _take(build, patches_from)
        write_failed(build.out / "failed.csv", dict(sorted(build.failed.items())))
        if not any(row.split == "train" and row.label == "tumor" for row in build.rows):
            failed = "".join(f"; {name}: {reason}" for name, reason in build.failed.items())
            raise InputError(f"{root}: no tumour patch of the training set was found{failed}")
        build.rows.sort(key=lambda row: (SETS.index(row.split), row.label, row.slide.name, row.y, row.x, str(row.name)))
        files = write_files(build, write)
        table = write_patches(build, files)
        told = provenance(build, root, fold, patches_from, write, found.left_out, folds)
        write_json(build.out / "provenance.json", told)
        write_table(build.out / "table.csv", table)
    return CamelyonResult(build.out / "table.csv", told, (*failures(build.failed), *build.warnings))


def _sample(build: Build) -> None:
    """Scan, calibrate, draw normal patches."""
    tumours = [slide for slide in build.slides.values() if slide.label == "tumor"]
    scanned = build.run("tumour", scan_slide, {slide.name: build.item(slide) for slide in tumours})
    build.failed |= scanned.failed
    for name, result in scanned.done.items():
        build.warnings += result["warnings"]
        if not result["patches"]:
            build.warnings.append(f"{name}: gives no patch with enough tissue and tumour")
    build.counts["repeated"] = sum(result["repeated"] for result in scanned.done.values())
    for part in ("train", "test"):
        names = [slide.name for slide in tumours if slide.part == part and slide.name in scanned.done]
        _calibrate(build, part, {name: scanned.done[name] for name in names})
    _draw(build)


def _calibrate(build: Build, part: str, scanned: Mapping[str, Any]) -> None:
    sampling = build.sampling
    rows: list[Row] = []
    for name, result in scanned.items():
        side = round(sampling.size * result["downsample"])
        for region, row, patch, x, y, tissue, tumour in result["patches"]:
            named = tumour_name(
                name, region=region, row=row, patch=patch, x=x, y=y, tissue=tissue, tumour=tumour, width=side,
                height=side,
            )  # fmt: skip
            rows.append(_row(build, name, named, result["mpp"]))
    shares = [row.name.tumour for row in rows]
    kept = sum(share <= sampling.p1 for share in shares)
    wanted = calibration_size(kept, part)
    rng = random_for(build.seed, "calibrate", part)
    chosen = calibrate([str(row.name) for row in rows], shares, wanted, rng, p0=sampling.p0, p1=sampling.p1)
    build.rows += [row for row, keep in zip(rows, chosen, strict=True) if keep]
    build.counts[part] = {
        "before": len(rows), "up_to_p1": kept, "above_p1": len(rows) - kept,
        "drawn_above_p1": int(chosen.sum()) - kept, "after": int(chosen.sum()),
    }  # fmt: skip


def _row(build: Build, name: str, named: PatchName, mpp: float) -> Row:
    """A sampled patch."""
    size = build.sampling.size
    return Row(build.slides[name], build.splits[name], named, named.x, named.y, size, size, mpp)


def _draw(build: Build) -> None:
    """Draw as many normal patches in each set as it has tumour patches.

    How many a slide can give is known only when it has given them all, so what it lacks is asked of the others in
    another round. Each round asks under a key of its own, which a second call finds again.
    """
    totals = Counter(row.split for row in build.rows)
    normals = [slide for slide in build.slides.values() if slide.label == "normal"]
    limits: dict[str, int] = {}
    while True:
        wanted: dict[str, int] = {}
        for split in SETS:
            names = [s.name for s in normals if build.splits[s.name] == split and s.name not in build.failed]
            if names:
                available = {name: limits.get(name, totals[split]) for name in names}
                wanted |= equal_numbers(totals[split], names, available)
        asked = {f"{name} {number}": name for name, number in wanted.items() if number}
        items = {
            key: build.item(build.slides[name], annotations=False, name=name, seed=build.seed, wanted=wanted[name])
            for key, name in asked.items()
        }
        result = build.run("normal", draw_slide, items)
        build.failed |= {asked[key]: reason for key, reason in result.failed.items()}
        drawn = {asked[key]: done for key, done in result.done.items()}
        short = {n: len(done["patches"]) for n, done in drawn.items() if len(done["patches"]) < wanted[n]}
        limits |= short
        if not short and not result.failed:
            break
    for name, done in drawn.items():
        side = round(build.sampling.size * done["downsample"])
        for patch, (x, y, tissue) in enumerate(done["patches"]):
            named = normal_name(name, patch=patch, x=x, y=y, tissue=tissue, width=side, height=side)
            build.rows.append(_row(build, name, named, done["mpp"]))
    for split in SETS:
        given = sum(len(done["patches"]) for name, done in drawn.items() if build.splits[name] == split)
        if given < totals[split]:
            build.warnings.append(
                f"{split}: its normal slides give {given} patches for {totals[split]} with tumour; add normal slides"
            )


def _take(build: Build, source: Path) -> None:
    """Take the patches of a published list."""
    listed = read_published(source, list(build.slides.values()))
    items = {}
    for name, patches in listed.patches.items():
        if build.slides[name].label == "normal" and any(patch.name.kind == "tumour" for patch in patches):
            build.failed[name] = f"{source} has patches with tumour of it, but it is a normal slide"
            continue
        right, bottom = ends(patches)
        items[name] = build.item(build.slides[name], right=right, bottom=bottom)
    looked = build.run("look", look_at_slide, items)
    build.failed |= looked.failed
    for name, result in looked.done.items():
        build.warnings += result["warnings"]
        for patch in listed.patches[name]:
            named = patch.name
            width, height = (max(1, round(side / result["downsample"])) for side in (named.width, named.height))
            split = patch.split or build.splits[name]
            build.rows.append(Row(build.slides[name], split, named, named.x, named.y, width, height, result["mpp"]))
    lost = sum(len(patches) for name, patches in listed.patches.items() if name not in looked.done)
    build.counts |= {
        "listed": sum(map(len, listed.patches.values())) + sum(listed.unknown.values()), "repeated": listed.repeated,
        "of_unknown_slides": listed.unknown, "of_failed_slides": lost,
    }  # fmt: skip
    if listed.unknown:
        slides = ", ".join(f"{slide} ({number})" for slide, number in listed.unknown.items())
        build.warnings.append(f"{source}: {len(listed.unknown)} of its slides are not there: {slides}")
