"""What there is to see: slides and images of all folders given. An address names an entry by its key, never a path."""

from __future__ import annotations

import hashlib
import math
import os
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AliasPath,
    BaseModel,
    BeforeValidator,
    Field,
    FiniteFloat,
    PlainSerializer,
    ValidationError,
)

from histoloc.data.images import image_size
from histoloc.errors import InputError
from histoloc.results import Evaluation, distinct_names, read_run
from histoloc.types import Origin, tier


def _printable(text: str) -> str:
    """Text that UTF-8 can hold; names of files may hold bytes that are none."""
    return text.encode("utf-8", "replace").decode()


Text = Annotated[str, BeforeValidator(_printable)]
Positive = Annotated[FiniteFloat, Field(gt=0)]
Side = Annotated[int, Field(gt=0, lt=2**31)]  # pixels
Presence = Annotated[Path | None, PlainSerializer(lambda file: file is not None)]
Hidden = Field(default=None, exclude=True)  # paths stay on this machine


class Layer(BaseModel):
    """A map in [0, 1] that lies over a picture, its left upper corner on the picture's.

    Attributes:
        file: a pyramidal TIFF (slides) or a grey picture (images).
        width: in pixels of the map.
        height: in pixels of the map.
        scale: pixels of the picture's level 0 per pixel of the map.
        threshold: where the model cuts it, or None where this is unknown.
    """

    file: Path = Field(exclude=True)
    width: Side
    height: Side
    scale: Positive = 1.0
    threshold: FiniteFloat | None = None


class Entry(BaseModel):
    """What one model says of one slide or image; as JSON it is what the page needs, without a path.

    Attributes:
        key: by which an address names it; it changes when the files do.
        model: number of the folder that it is from.
        title: of the model.
        name: equal names in several folders are shown side by side.
        kind: a whole slide, or a plain image.
        picture: file of the slide or image.
        width: of level 0 in pixels, 0 where unknown.
        height: of level 0 in pixels.
        mpp: micrometres per pixel of level 0, or None.
        user_mpp: what the user said of a slide that does not know its own scale.
        origin: where the slide's pixels begin.
        score: by which the list is sorted, in [0, 1], or None.
        score_of: what the score is: the class whose probability it is, or else a few words.
        label: the predicted class, or None.
        probabilities: by class.
        rule: how label and probabilities were made, in a sentence; empty where this is unknown.
        facts: pairs of a name and a value to show, in order.
        map: where the ROI is.
        uncertainty: where the model is unsure.
        regions: the model's outlines: GeoJSON, or a mask around which they run.
        truth: mask drawn by a person.
        problem: what is wrong with it, empty where nothing is.
    """

    key: str
    model: int
    title: str = Field(default="", exclude=True)
    name: Text
    kind: Literal["slide", "image"]
    picture: Path | None = Hidden
    width: int = 0
    height: int = 0
    mpp: float | None = None
    user_mpp: float | None = Hidden
    origin: Origin = Field(default="level0", exclude=True)
    score: float | None = None
    score_of: str = ""
    label: str | None = None
    probabilities: dict[str, float] = Field(default_factory=dict)
    rule: str = ""
    facts: list[tuple[str, str]] = Field(default_factory=list)
    map: Layer | None = None
    uncertainty: Layer | None = None
    regions: Presence = None
    truth: Presence = None
    problem: Text = ""


class Catalog:
    """Entries by key, read again on demand so that a running prediction shows its new slides.

    Args:
        folders: that `histoloc slides predict` or `histoloc evaluate` wrote; several are several models.

    Attributes:
        entries: by key.

    Raises:
        InputError: no such folder, one given twice, or nothing to look at in one of them.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        if not folders:
            raise InputError("nothing to view; give a folder that `histoloc slides predict` or `evaluate` wrote")
        self._folders = [_checked(folder) for folder in folders]
        if len(set(self._folders)) < len(folders):
            raise InputError(f"{folders[0]}: a folder is given twice; give each once")
        self._lock = threading.Lock()
        self._problems: dict[str, str] = {}
        self.entries: dict[str, Entry] = {}
        self.scan()

    def scan(self) -> None:
        """Read the folders again; one that is being written keeps the entries that it had a moment ago.

        Raises:
            InputError: metrics.json or per_image.csv is broken, and there are none.
        """
        with self._lock:
            entries: list[Entry] = []
            for model, folder in enumerate(self._folders):
                try:
                    entries += read_entries(folder, model)
                except (InputError, OSError):
                    earlier = [entry for entry in self.entries.values() if entry.model == model]
                    if not earlier:
                        raise
                    entries += earlier
            self.entries = {entry.key: entry for entry in entries}

    def note_problem(self, key: str, problem: str) -> None:
        """Remember, for the list, what went wrong with a file."""
        self._problems[key] = problem

    def without_folders(self, text: str) -> str:
        """A message in which files have names and no paths: where they lie is nobody's business."""
        pictures = {entry.picture.parent for entry in self.entries.values() if entry.picture}
        for folder in sorted({*self._folders, *pictures}, key=lambda folder: -len(str(folder))):
            text = text.replace(f"{folder}{os.sep}", "").replace(str(folder), folder.name)
        return _printable(text)

    def to_json(self) -> dict[str, Any]:
        """Models, and the slides sorted by score (the highest of any model first), each with its entries."""
        items: dict[tuple[str, str], list[dict[str, Any]]] = {}
        titles: dict[int, str] = {}
        for entry in self.entries.values():
            problem = self.without_folders(entry.problem or self._problems.get(entry.key, ""))
            items.setdefault((entry.name, entry.kind), []).append(entry.model_dump(mode="json") | {"problem": problem})
            titles[entry.model] = titles.get(entry.model) or entry.title
        listed = []
        for (name, kind), entries in sorted(items.items()):
            score = max((entry["score"] for entry in entries if entry["score"] is not None), default=None)
            listed.append({"name": name, "kind": kind, "score": score, "entries": entries})
        listed.sort(key=lambda item: item["score"] or 0.0, reverse=True)
        names = map(_printable, distinct_names(self._folders))
        models = [{"name": name, "title": titles.get(model, "")} for model, name in enumerate(names)]
        return {"models": models, "items": listed}


def read_entries(folder: Path, model: int) -> list[Entry]:
    """One entry for each slide that is finished, or else for each image of each evaluation.

    Of slides, a broken one becomes an entry that says so. An image of an evaluation with the defaults has its own name;
    of any other one, what is not the default is added: `a.png (test, cut at 0.40)`.

    Raises:
        InputError: metrics.json or per_image.csv is broken.
    """
    if files := _metrics_files(folder):
        return _evaluated(folder, model, file_state(*files, *(file.with_name("per_image.csv") for file in files)))
    return [_slide(slide, model) for slide in _slide_folders(folder)]


def _checked(folder: Path) -> Path:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give one that `histoloc slides predict` or `evaluate` wrote")
    if not (_slide_folders(folder) or _metrics_files(folder) or _is_begun(folder)):
        raise InputError(
            f"{folder}: holds neither slides of `histoloc slides predict` (NAME/slide.json) nor results of "
            "`histoloc evaluate` (metrics.json); give such a folder"
        )
    return folder.resolve()


def _is_begun(folder: Path) -> bool:
    """Whether slides are about to be predicted into this folder; other commands leave settings of theirs."""
    try:
        return b'"weights_sha256"' in (folder / "settings.json").read_bytes()
    except OSError:
        return False


def _slide_folders(folder: Path) -> list[Path]:
    if (folder / "slide.json").is_file():
        return [folder]
    return sorted(file.parent for file in folder.glob("*/slide.json"))


def _metrics_files(folder: Path) -> list[Path]:
    files = sorted((folder / "evaluation").glob("*/metrics.json"))
    return files or [file for file in (folder / "metrics.json",) if file.is_file()]


class _Map(BaseModel):
    file: str
    width: Side
    height: Side
    mpp: Positive
    threshold: FiniteFloat | None = None


def _at(*path: str) -> Any:
    return Field(default=None, validation_alias=AliasPath(*path))


class _SlideFile(BaseModel):
    """What the viewer reads of slide.json, under the names that an entry has for it."""

    name: str
    picture: Path = Field(validation_alias="slide")
    width: Side
    height: Side
    mpp: Positive
    user_mpp: Positive | None = _at("slide_mpp")
    origin: Origin = "level0"  # which histoloc 0.2 does not say
    label: str | None = _at("class")
    roi_class: str | None = None
    score: FiniteFloat | None = None
    probabilities: Annotated[dict[str, FiniteFloat], BeforeValidator(lambda value: value or {})] = {}  # or null
    rule: str = Field(default="", validation_alias="aggregation")
    map: _Map | None = None
    uncertainty: str | None = _at("uncertainty", "file")
    regions: str | None = None
    title: str | None = _at("model", "title")
    method: str | None = _at("model", "method")
    supervision: list[str] | None = _at("model", "supervision")
    roi_mm2: FiniteFloat | None = _at("roi", "mm2")
    tissue_mm2: FiniteFloat | None = _at("roi", "tissue_mm2")
    largest_mm2: FiniteFloat | None = _at("roi", "largest_mm2")
    roi_share: FiniteFloat | None = _at("roi", "share")
    count: FiniteFloat | None = _at("roi", "regions")
    min_area_mm2: FiniteFloat | None = _at("settings", "min_area_mm2")


def _slide(folder: Path, model: int) -> Entry:
    """A slide that was predicted on."""
    file = folder / "slide.json"
    key = _key(folder, model, *file_state(file, folder / "map.ome.tif", folder / "regions.geojson"))
    entry = {"key": key, "model": model, "kind": "slide", "name": folder.name}
    try:
        slide = _SlideFile.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        reason = _first(error) if isinstance(error, ValidationError) else str(error)
        problem = f"{file}: cannot be read ({reason}); predict this slide again"
        return Entry.model_validate(entry | {"problem": problem})
    state = file_state(slide.picture)
    entry |= slide.model_dump() | {
        "key": _key(key, *state),
        "title": slide.title or slide.method or "",
        "score_of": slide.roi_class or slide.label or "ROI of tissue",
        "facts": _slide_facts(slide),
        "map": slide.map and _layer(folder, slide.map.file, slide, slide.map.threshold),
        "uncertainty": _layer(folder, slide.uncertainty, slide),
        "regions": _within(folder, slide.regions),
        "problem": "" if any(state) else f"{slide.picture}: is not there any more; bring it back to see the tissue",
    }
    return Entry.model_validate(entry)


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    return f"`{place}`: {first['msg']}" if place else first["msg"]


def _layer(folder: Path, name: str | None, slide: _SlideFile, threshold: float | None = None) -> Layer | None:
    file, shape = _within(folder, name), slide.map  # the uncertainty has the map's shape
    if file is None or shape is None:
        return None
    scale = shape.mpp / slide.mpp
    return Layer(file=file, width=shape.width, height=shape.height, scale=scale, threshold=threshold)


def _slide_facts(slide: _SlideFile) -> list[tuple[str, str]]:
    areas = {"ROI": slide.roi_mm2, "Tissue": slide.tissue_mm2, "Largest region": slide.largest_mm2}
    facts = [(name, f"{area:.3g} mm²") for name, area in areas.items() if area is not None]
    if slide.roi_share is not None:
        facts.append(("ROI of tissue", f"{100 * slide.roi_share:.1f} %"))
    if slide.count is not None:
        least = f" of {slide.min_area_mm2:g} mm² or more" if slide.min_area_mm2 else ""
        facts.append(("Regions", f"{slide.count:.0f}{least}"))
    return facts + _learned_from(slide.supervision)


def _learned_from(supervision: list[str] | None) -> list[tuple[str, str]]:
    return [] if supervision is None else [("Learned from", tier(supervision))]


@lru_cache(16)
def _evaluated(folder: Path, model: int, _: tuple[int, ...]) -> list[Entry]:
    """Images of a folder's evaluations, read again when its state changes."""
    run = read_run(folder)
    entries: dict[str, Entry] = {}
    for evaluation in run.evaluations:
        for row in evaluation.images.to_dict("records"):
            entry = _image(evaluation, {str(name): value for name, value in row.items()}, model)
            entry.title = run.method.strip("–")
            if evaluation.label != evaluation.split or entry.name in entries:
                entry.name = f"{entry.name} ({evaluation.name})"
            entries[entry.name] = entry
    return list(entries.values())


def _image(evaluation: Evaluation, row: dict[str, Any], model: int) -> Entry:
    """An image of an evaluation; maps are there of those that the evaluation kept."""
    folder, stem = evaluation.folder, row["file"]
    picture, truth = evaluation.file(row["image"]), evaluation.file(row["mask"])
    map_file, mask = (_within(folder / "images", f"{stem}_{what}.png" if stem else None) for what in ("map", "mask"))
    probabilities = {name[5:]: p for name, p in row.items() if name.startswith("prob_") and not math.isnan(p)}
    problem = "" if picture else "the image was not kept; evaluate again with more maps kept"
    try:
        width, height = image_size(picture) if picture else (0, 0)
    except InputError as error:
        width, height, problem = 0, 0, str(error)
    threshold = evaluation.result.threshold.value if math.isnan(row["threshold"]) else row["threshold"]
    return Entry(
        key=_key(folder, model, row["name"], *file_state(picture, truth, map_file, mask)),
        model=model,
        name=row["name"],
        kind="image",
        picture=picture,
        width=width,
        height=height,
        score=max(probabilities.values(), default=None),
        score_of=row["predicted"],
        label=row["predicted"] or None,
        probabilities=probabilities,
        facts=[("Evaluation", evaluation.name), *_learned_from(evaluation.result.supervision), *_image_facts(row)],
        map=Layer(file=map_file, width=width, height=height, threshold=threshold) if map_file and width else None,
        regions=mask,
        truth=truth if any(file_state(truth)) else None,
        problem=problem,
    )


def _image_facts(row: dict[str, Any]) -> list[tuple[str, str]]:
    percent = {"F1⁺": row["f1_plus"], "F1⁻": row["f1_minus"]}
    percent |= {"ROI of image": 100 * row["roi_fraction"], "True ROI": 100 * row["true_fraction"]}
    facts = [("True class", row["label"])] if row["label"] else []
    return facts + [(name, f"{value:.1f} %") for name, value in percent.items() if not math.isnan(value)]


def _key(*parts: object) -> str:
    """16 hexadecimal digits for a file and its state: they say nothing of where it lies."""
    return hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def file_state(*files: Path | None) -> tuple[int, ...]:
    """Numbers that change when one of the files does; 0 for a file that is absent."""
    numbers: list[int] = []
    for file in files:
        try:
            status = file.stat() if file else None
        except (OSError, ValueError):  # absent, a name too long, a NUL byte
            status = None
        numbers += [status.st_mtime_ns, status.st_size] if status else [0]
    return tuple(numbers)


def _within(folder: Path, name: str | None) -> Path | None:
    """The file that a JSON or CSV file names in its own folder; None where it is absent or lies elsewhere."""
    try:
        file = (folder / name).resolve() if name else folder
        return file if file.is_relative_to(folder.resolve()) and file.is_file() else None
    except (OSError, RuntimeError, ValueError):  # a name too long, links in a circle, a NUL byte
        return None
