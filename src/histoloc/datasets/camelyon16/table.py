"""Camelyon16-P512: from the challenge's slides and annotations to a table of patches, by the published protocol.

Bejnordi et al., "Diagnostic assessment of deep learning algorithms for detection of lymph node metastases in women
with breast cancer", JAMA 2017 (the slides); Belharbi et al., "Deep interpretable classification and
weakly-supervised segmentation of histology images via max-min uncertainty", IEEE TMI 2022 (the patches).
"""

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from histoloc.datasets.camelyon16.folder import check_fold, find_slides, split_of
from histoloc.datasets.camelyon16.names import PatchName, slide_key
from histoloc.datasets.camelyon16.protocol import check_slide, draw_slide, scan_slide
from histoloc.datasets.camelyon16.published import read_published
from histoloc.datasets.camelyon16.writing import SETS, Build, write_build
from histoloc.datasets.options import CamelyonOptions, Sampling
from histoloc.datasets.patches import calibrate, calibration_size, equal_numbers, random_for
from histoloc.datasets.result import TableResult
from histoloc.datasets.slide_list import ListedSlide
from histoloc.errors import InputError
from histoloc.runner import JobOptions, write_failed
from histoloc.slides.reader import open_slide
from histoloc.work_folder import locked


def camelyon16_table(
    root: Path,
    *,
    out: Path,
    sampling: Annotated[Sampling, Parameter(name="*")] = Sampling(),  # noqa: B008
    options: Annotated[CamelyonOptions, Parameter(name="*")] = CamelyonOptions(),  # noqa: B008
    jobs: Annotated[JobOptions, Parameter(name="*")] = JobOptions(),  # noqa: B008
) -> TableResult:
    """Camelyon16's slides and annotations -> a table of patches; a second call does only what is missing.

    Slides that fail are listed in failed.csv with their reasons; the table is made without them, the exit code is 1.

    Tumour patches are found by scanning the annotations' boxes; those with p > p1 are thinned out in the published
    proportion, over all training slides and over all test slides. In each of the sets train, valid and test as many
    normal patches are drawn, equally many from each normal slide. All draws depend on the seed and the slides' names
    alone. The table is always made anew, from all slides that succeeded.

    Args:
        root: the folder of the challenge, with training/ and testing/.
        out: folder for table.csv, patches.csv (what is known of each patch), provenance.json, failed.csv and masks/;
            what is done is kept in its folder work.
        sampling: which patches.
        options: what is made of them.
        jobs: where slides are worked on; a worker takes about 0.6 GB on a slide of 100,000 px.

    Raises:
        InputError: folder, options or list cannot be used, another call is writing to `out`, or no slide gives a
            tumour patch of the training set. Slides that cannot be used are no error; they are in the result.
    """
    folder = find_slides(root, published=sampling.protocol == "tmi")
    check_fold(folder.slides, folder.folds, options.fold)
    slides, notes = _scaled(folder.slides, options.slide_mpp)
    splits = {slide.name: split_of(slide, folder.folds, options.fold) for slide in folder.slides}
    build = Build(Path(root), Path(out).absolute(), sampling, options, jobs, folder, slides, splits)
    build.warnings += notes
    with locked(build.out):
        if options.patches_from is None:
            _scan(build)
            _draw(build)
        else:
            _take(build, options.patches_from)
        write_failed(build.out / "failed.csv", dict(sorted(build.failed.items())))
        if not any(row["split"] == "train" and row["label"] == "tumor" for row in build.rows):
            failed = "".join(f"; {name}: {reason}" for name, reason in build.failed.items())
            raise InputError(f"{root}: no tumour patch of the training set was found{failed}")
        return write_build(build)


def _scaled(slides: Iterable[ListedSlide], mpp: float | None) -> tuple[dict[str, ListedSlide], list[str]]:
    """The slides by name, those that do not say their scale with the given one, and where it contradicts others."""
    scaled, notes = {slide.name: slide for slide in slides}, []
    for slide in slides if mpp is not None else ():
        # What cannot be opened is told by its task.
        with suppress(InputError), open_slide(slide.path, mpp=mpp, option="--slide-mpp") as opened:
            notes += opened.notes
            scaled[slide.name] = replace(slide, mpp=mpp if opened.user_mpp else None)
    return scaled, notes


def _scan(build: Build) -> None:
    """Find tumour patches, and thin out those that are full of tumour."""
    sampling = build.sampling
    tumours = [slide for slide in build.slides.values() if slide.label == "tumor"]
    results = build.run("tumour", scan_slide, {slide.name: slide.item() for slide in tumours})
    rows: list[dict[str, Any]] = []
    for name, result in results.items():
        if not result["patches"]:
            build.warnings.append(f"{name}: gives no patch with enough tissue and tumour")
        side = round(sampling.size * result["downsample"])
        for region, row, patch, x, y, tissue, tumour in result["patches"]:
            place = (slide_key(name), patch, x, y, repr(tissue), side, side)
            rows.append(build.row(name, PatchName(*place, region, row, repr(tumour)), result["mpp"]))
    build.counts["repeated"] = sum(result["repeated"] for result in results.values())
    for part in ("train", "test"):
        mine = {row["name"]: row for row in rows if build.slides[row["slide"]].part == part}
        shares = {name: float(row["metastatic"]) for name, row in mine.items()}
        small = sum(share <= sampling.p1 for share in shares.values())
        rng = random_for(build.options.seed, "calibrate", part)
        selection = calibrate(shares, calibration_size(small, part), rng, p0=sampling.p0, p1=sampling.p1)
        build.rows += [row for name, row in mine.items() if name in selection]
        before, after = len(mine), len(selection)
        build.counts[part] = {
            "before": before, "up_to_p1": small, "above_p1": before - small, "drawn_above_p1": after - small,
            "after": after,
        }  # fmt: skip


def _draw(build: Build) -> None:
    """Draw as many normal patches in each set as it has tumour patches.

    How many a slide can give is known only when it has given them all, so what it lacks is asked of the others in
    another round. Each round asks under a key of its own, which a second call finds again.
    """
    totals = Counter(row["split"] for row in build.rows)
    limits: dict[str, int] = {}
    results, complete = {}, False
    while not complete:
        numbers: dict[str, int] = {}
        for split in SETS:
            slides = [s.name for s in build.slides.values() if s.label == "normal" and build.splits[s.name] == split]
            available = {name: limits.get(name, totals[split]) for name in slides if name not in build.failed}
            numbers |= equal_numbers(totals[split], available)
        items = {
            f"{name} {number}": build.slides[name].item(name=name, seed=build.options.seed, wanted=number)
            for name, number in numbers.items()
            if number
        }
        failed = len(build.failed)
        results = build.run("normal", draw_slide, items)
        short = {n: len(d["patches"]) for n, d in results.items() if len(d["patches"]) < numbers[n]}
        limits |= short
        complete = not short and len(build.failed) == failed
    for name, result in results.items():
        side = round(build.sampling.size * result["downsample"])
        for patch, (x, y, tissue) in enumerate(result["patches"]):
            row = build.row(name, PatchName(slide_key(name), patch, x, y, repr(tissue), side, side), result["mpp"])
            build.rows.append(row)
    for split in SETS:
        number = sum(len(result["patches"]) for name, result in results.items() if build.splits[name] == split)
        if number < totals[split]:
            build.warnings.append(
                f"{split}: its normal slides give {number} patches for {totals[split]} with tumour; add normal slides"
            )


def _take(build: Build, source: Path) -> None:
    """Take the patches of a published list."""
    lists = read_published(source, build.slides)
    items = {}
    for name, patches in lists.patches.items():
        if build.slides[name].label == "normal" and any(patch.name.label == "tumor" for patch in patches):
            build.failed[name] = f"{source} has patches with tumour of it, but it is a normal slide"
            continue
        right = max(patch.name.x + patch.name.width for patch in patches)
        bottom = max(patch.name.y + patch.name.height for patch in patches)
        items[name] = build.slides[name].item(right=right, bottom=bottom)
    results = build.run("look", check_slide, items)
    for name, result in results.items():
        for patch, split in lists.patches[name]:
            width, height = (max(1, round(side / result["downsample"])) for side in (patch.width, patch.height))
            row = build.row(name, patch, result["mpp"]) | {"width": width, "height": height}
            build.rows.append(row if split is None else row | {"split": split})
    lost = sum(len(patches) for name, patches in lists.patches.items() if name not in results)
    build.counts |= {
        "listed": sum(map(len, lists.patches.values())) + sum(lists.unknown.values()), "repeated": lists.repeated,
        "of_unknown_slides": lists.unknown, "of_failed_slides": lost,
    }  # fmt: skip
    if lists.unknown:
        slides = ", ".join(f"{slide} ({number})" for slide, number in lists.unknown.items())
        build.warnings.append(f"{source}: {len(lists.unknown)} of its slides are not there: {slides}")
