"""Each kind of file as histoloc reads it, compared with what others read."""

import csv
import hashlib
import io
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import shapely
import shapely.geometry
import tifffile
import yaml
from PIL import Image, ImageOps

from histoloc.config import read_recipe, run_config
from histoloc.data.images import check_image, image_size, read_image, read_map, read_mask
from histoloc.data.table import read_table
from histoloc.errors import InputError
from histoloc.slides.annotations import read_annotations
from histoloc.slides.reader import open_slide
from histoloc.viewer.catalog import read_entries
from histoloc.work_folder import read_json, read_yaml

RGB = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
MODEL: dict[str, Any] = {
    "method": "gap", "classes": ["benign", "malignant"], "mpp": 0.5, "shorter_side": 64, "extent": [64, 96],
    "backbone": {"backbone": "test_efficientnet_ln", "stride": 0, "weights": "none"},
    "input": {"small_side": 64, "crop": 64, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    "threshold": {"rule": "fixed", "value": 0.5}, "range": "learned",
    "learned": {"centre": [0.1, 0.2], "slope": [1.0, 2.0], "share": [0.5, 0.5], "images": 12},
    "supervision": ["image"], "provenance": {"table": "t.csv", "fold": None}, "weights_sha256": "", "format": 2,
}  # fmt: skip

SLIDE_JSON = json.dumps({
    "name": "good", "slide": "good.tif", "width": 640, "height": 480, "mpp": 0.5, "slide_mpp": None, "class": "tumour",
    "probabilities": {"normal": 0.2, "tumour": 0.8}, "score": 0.8, "aggregation": "mean", "roi_class": "tumour",
    "map": {"file": "map.ome.tif", "width": 40, "height": 30, "mpp": 8.0, "threshold": 0.5}, "notes": [],
    "roi": {"mm2": 0.1, "tissue_mm2": 0.5, "share": 0.2, "regions": 3, "largest_mm2": 0.05},
    "settings": {"min_area_mm2": 0.001}, "model": {"title": "GAP", "method": "gap", "supervision": ["image"]},
}).encode()  # fmt: skip


class AnotherValueError(AssertionError):
    """What histoloc reads is not what an independent reader reads."""


# --- readers, each with its oracle ---


def expect(same: object, what: str) -> None:
    if not same:
        raise AnotherValueError(what)


def by_others(path: Path) -> Iterator[np.ndarray]:
    """Pixels as Pillow and as tifffile have them."""
    with suppress(Exception), warnings.catch_warnings(action="ignore"), Image.open(path) as image:
        image.load()
        yield np.asarray(ImageOps.exif_transpose(image))
        if image.mode == "P":
            yield np.asarray(image.convert("RGB"))
        if "transparency" in image.info:
            yield np.asarray(image.convert("RGBA"))
    with suppress(Exception):
        values = tifffile.imread(path).squeeze()
        yield np.moveaxis(values, 0, -1) if values.ndim == 3 and len(values) in (3, 4) else values


def attempt(read: Callable[..., Any], *arguments: Any) -> Any:
    """What is read, or None where it is refused in one sentence that names the file."""
    try:
        return read(*arguments)
    except InputError as error:
        names = [a.name for a in arguments if isinstance(a, Path)]
        if (names and not any(name in str(error) for name in names)) or len(str(error)) > 4000:
            raise AssertionError(f"names no file, or is very long: {error}") from error
        return None


def read_picture(path: Path) -> bool:
    """As image, mask, map and slide."""
    others = list(by_others(path))
    image, mask, values = (attempt(read, path) for read in (read_image, read_mask, read_map))
    header, checked = attempt(image_size, path), attempt(check_image, path)
    if image is not None:
        expect(any(o.ndim == 3 and np.array_equal(o[..., :3], image) for o in others), "image")
        expect(header == checked == (image.shape[1], image.shape[0]), "image size")
    if mask is not None:
        flat = [o if o.ndim == 2 else o[..., 0] for o in others]
        expect(any(np.array_equal(o != 0, mask) for o in flat), "mask")
        expect(header == (mask.shape[1], mask.shape[0]), "mask size")
    if values is not None and others:
        flat = [(o if o.ndim == 2 else o[..., 0]).astype(float) for o in others]
        scaled = [o / top for o in flat for top in (1, 255, 4095, 65535, 1023, 16383)]
        expect(any(o.shape == values.shape and np.allclose(o, values, atol=2e-5) for o in scaled), "map")
    slide = read_slide(path) if path.suffix != ".npy" else False
    return image is not None or mask is not None or values is not None or slide


def read_slide(path: Path) -> bool:
    """Level 0, compared pixel by pixel where it is small."""

    def read() -> tuple[Any, Any]:
        with open_slide(path, mpp=None) as slide:
            return slide, slide.read(0, 0, min(slide.width, 200), min(slide.height, 200), slide.mpp)

    result = attempt(read)
    if result is None:  # without its own scale it is opened by the user's

        def read() -> tuple[Any, Any]:
            with open_slide(path, mpp=0.5) as slide:
                return slide, slide.read(0, 0, min(slide.width, 200), min(slide.height, 200), slide.mpp)

        result = attempt(read)
    if result is None:
        return False
    slide, pixels = result
    others = list(by_dicom(path) if path.suffix == ".dcm" else by_others(path))
    close = [np.abs(cropped(o, pixels).astype(int) - pixels).max() <= 3 for o in others if fits(o, pixels, slide)]
    unread = path.suffix == ".dcm" and not others  # pydicom gives up where OpenSlide does not
    expect(any(close) or pixels.min() == 255 or unread, "slide")
    return True


def fits(other: np.ndarray, pixels: np.ndarray, slide: Any) -> bool:
    return other.ndim == 3 and other.shape[2] >= 3 and other.shape[:2] == (slide.height, slide.width)


def cropped(other: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    part = other[: pixels.shape[0], : pixels.shape[1]]
    if part.shape[2] < 4:
        return part
    alpha = part[..., 3:] / 255
    return np.rint(part[..., :3] * alpha + 255 * (1 - alpha))


def by_dicom(path: Path) -> Iterator[np.ndarray]:
    import pydicom

    with suppress(Exception), warnings.catch_warnings(action="ignore"):
        data = pydicom.dcmread(path, force=True)
        frames = data.pixel_array
        tall, wide = data.Rows, data.Columns
        height, width = data.TotalPixelMatrixRows, data.TotalPixelMatrixColumns
        whole = np.zeros((-(-height // tall) * tall, -(-width // wide) * wide, 3), np.uint8)
        for number, frame in enumerate(frames.reshape(-1, tall, wide, 3)):
            row, column = divmod(number, -(-width // wide))
            whole[row * tall :, column * wide :][:tall, :wide] = frame
        yield whole[:height, :width]


def read_npy(path: Path) -> bool:
    values = attempt(read_map, path)
    if values is None:
        return False
    other = np.load(path, allow_pickle=False).astype(float).squeeze()
    expect(any(np.allclose(other / top, values, atol=2e-5) for top in (1, 255, 65535)), "npy")
    return True


def read_csv(path: Path) -> bool:
    table = attempt(read_table, path)
    if table is None:
        return False
    raw = path.read_bytes()
    marks = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
    text = raw.decode(next((name for mark, name in marks.items() if raw.startswith(mark)), "utf-8-sig"))
    cells: list[list[str]] = []
    head: list[str] = []
    for separator in ",;\t":
        rows = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, delimiter=separator)
        cells = [[cell.strip() for cell in row] for row in rows if any(cell.strip() for cell in row)]
        head = [name.casefold() for name in cells[0]]
        if {"image", "label"} <= set(head):
            break
    for column in ("label", "split"):
        if column in head:
            place = head.index(column)
            values = [row[place] if place < len(row) else "" for row in cells[1:]]
            if column == "split":
                words = {"training": "train", "val": "valid", "validation": "valid", "testing": "test"}
                values = [words.get(value.casefold(), value.casefold()) for value in values]
                if not any(values):  # drawn
                    continue
            expect([getattr(sample, column) or "" for sample in table.samples] == values, column)
    return True


def numbers_in(value: Any) -> list[float]:
    return [float(number) for number in (value if isinstance(value, list) else [value])]


def read_run_yaml(path: Path) -> bool:
    values, recipe = attempt(read_yaml, path), attempt(read_recipe, str(path))
    if values is None:
        return False
    expect(repr(yaml.safe_load(path.read_text(encoding="utf-8-sig"))) == repr(values), "yaml")
    if recipe is not None:
        config = run_config({"data": "x.csv", **recipe}, path.name)
        for section in ("training", "input", "backbone"):
            said = {key: value for key, value in (recipe.get(section) or {}).items() if value is not None}
            for key, value in said.items():
                got = getattr(getattr(config, section), key)
                plain: Any = list(got) if isinstance(got, tuple) else got
                expect(str(plain) == str(value) or numbers_in(plain) == numbers_in(value), f"{section}.{key}")
    return True


def read_config(path: Path) -> bool:
    """A model folder around config.json."""
    from histoloc.model_folder import read_model_config

    folder = path.with_suffix("")
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes(path.read_bytes())
    attempt(read_json, path)
    config = attempt(lambda: read_model_config(folder))
    if config is None:
        return False
    values = json.loads(path.read_bytes())
    expect(list(config.classes) == values["classes"], "classes")
    expect(config.mpp == values.get("mpp") or float(values["mpp"]) == config.mpp, "mpp")
    return True


def read_tensors(path: Path) -> bool:
    """A model folder around model.safetensors, with its checksum."""
    import safetensors.torch

    from histoloc.model_folder import load_model

    folder = path.with_suffix("")
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(path.read_bytes())
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "config.json").write_text(json.dumps(MODEL | {"weights_sha256": checksum}))
    loaded = attempt(lambda: load_model(folder))
    if loaded is None:
        return False
    state = safetensors.torch.load(path.read_bytes())
    expect(
        all((loaded[0].state_dict()[name] == value).all() or value.isnan().any() for name, value in state.items()), "w"
    )
    return True


def rings(item: Any) -> shapely.Geometry:
    geometry = shapely.geometry.shape(item["geometry"])
    return shapely.transform(geometry, lambda p: p[:, :2], include_z=False)


def read_geojson(path: Path) -> bool:
    found = attempt(read_annotations, path)
    if found is None:
        return False
    content = json.loads(path.read_text(encoding="utf-8-sig"))
    items = content.get("features", [content]) if isinstance(content, dict) else content
    return same_areas(found, dict(enumerate(items)), rings)


def same_areas(found: Any, items: dict[int, Any], shape: Callable[[Any], shapely.Geometry]) -> bool:
    for region in found.regions:
        with warnings.catch_warnings(action="ignore"):
            valid = shapely.make_valid(shape(items[region.feature.index]))
        expect(np.isclose(region.polygon.area, valid.area, rtol=1e-6, atol=1e-6), f"area of {region.feature.index}")
    return True


def read_asap(path: Path) -> bool:
    from xml.etree import ElementTree

    found = attempt(read_annotations, path)
    if found is None:
        return False
    items = dict(enumerate(ElementTree.parse(path).getroot().iter("Annotation")))

    def shape(element: Any) -> shapely.Geometry:
        corners = sorted(element.findall("Coordinates/Coordinate"), key=lambda c: float(c.get("Order", 0)))
        return shapely.Polygon([(float(c.get("X", "nan")), float(c.get("Y", "nan"))) for c in corners])

    return same_areas(found, items, shape)


def read_slide_json(path: Path) -> bool:
    """A folder of predictions with two slides, one of which is good."""
    folder = path.with_suffix("")
    for name, data in (("good", SLIDE_JSON), ("bad", path.read_bytes())):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "slide.json").write_bytes(data)
    entries = attempt(read_entries, folder, 0)
    if entries is None:
        return False
    listed = {entry.name: json.loads(entry.model_dump_json()) for entry in entries}
    expect("good" in listed and len(entries) == 2, "one bad slide is one slide's problem")
    return not any(entry.problem and "cannot be read" in entry.problem for entry in entries)
