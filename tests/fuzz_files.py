"""Good files of every kind, from which mutations begin."""

import io
import json
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import tifffile
from PIL import Image

import mutations as m
from fuzz_readers import (
    MODEL,
    RGB,
    SLIDE_JSON,
    read_asap,
    read_config,
    read_csv,
    read_geojson,
    read_npy,
    read_picture,
    read_run_yaml,
    read_slide,
    read_slide_json,
    read_tensors,
)

MASK = np.zeros((64, 96), dtype=np.uint8)
MASK[10:40, 20:70] = 255
RAMP = np.tile(np.linspace(0, 255, 96).astype(np.uint8), (64, 1))


@dataclass(frozen=True)
class Kind:
    """A kind of file: how it begins, what becomes of it, and who reads it."""

    suffix: str
    bases: tuple[bytes, ...]
    mutate: m.Mutation
    read: Callable[[Path], Any]


# --- what files begin with ---


def saved(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def tiff_of(values: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def npy_of(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


BOX = [[[10, 10], [60, 10], [60, 50], [10, 50], [10, 10]]]
FEATURES = {
    "type": "FeatureCollection",
    "features": [
        {
            "type": "Feature",
            "geometry": {"type": kind, "coordinates": rings},
            "properties": {"objectType": "annotation", "classification": {"name": "Tumor", "color": [200, 0, 0]}},
        }
        for kind, rings in (
            ("Polygon", BOX),
            ("Polygon", [[[0, 0], [90, 0], [0, 60], [90, 60], [0, 0]]]),
            (
                "MultiPolygon",
                [[[[0, 0], [9, 0], [9, 9], [0, 0]]], [[*BOX[0]], [[20, 20], [30, 20], [30, 30], [20, 20]]]],
            ),
        )
    ],
}
ASAP = '<?xml version="1.0"?>\n<ASAP_Annotations>\n<Annotations>\n' + "".join(
    f'<Annotation Name="{n}" Type="Polygon" PartOfGroup="{group}" Color="#F4FA58">\n<Coordinates>\n'
    + "".join(f'<Coordinate Order="{k}" X="{x + 5 * n}" Y="{y}" />\n' for k, (x, y) in enumerate(BOX[0][:4]))
    + "</Coordinates>\n</Annotation>\n"
    for n, group in enumerate(("Tumor", "_2"))
) + "</Annotations>\n</ASAP_Annotations>\n"  # fmt: skip
RUN = """about: A run.
method: maxmin
data: x.csv
fold: 0
empty_class: normal
options:
  slope: 10.0
  background: sem
backbone: {backbone: resnet18, stride: 16, weights: none}
input:
  crop: 64
  small_side: 64
  mean: [0.5, 0.5, 0.5]
training:
  epochs: 3
  lr: 0.01
  workers: 0
  compile: false
"""


def table_bytes(folder: Path) -> bytes:
    """A table of images that are there."""
    lines = ["image,label,mask,split,group,mpp,fold"]
    Image.fromarray(MASK).save(folder / "mask.png")
    for number in range(8):
        Image.fromarray(RGB + np.uint8(number)).save(folder / f"{number}.png")
        split = ("train", "train", "train", "valid", "test", "test", "train", "train")[number]
        fold = "0" if split == "train" else ""
        lines.append(f"{number}.png,{('benign', 'malignant')[number % 2]},mask.png,{split},p{number},0.5,{fold}")
    return "\n".join(lines).encode()


def model_bytes() -> bytes:
    from safetensors.torch import save

    from histoloc.config import strict
    from histoloc.model_folder import ModelConfig, build_method

    config = strict(ModelConfig, {k: v for k, v in MODEL.items() if k != "options"}, "m")
    return save(
        {name: value.contiguous() for name, value in build_method(config, load_backbone=False).state_dict().items()}
    )


def dicom_bytes() -> bytes:
    """One level of a slide in two tiles, without compression."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.sequence import Sequence
    from pydicom.uid import UID, ExplicitVRLittleEndian

    data, meta = Dataset(), FileMetaDataset()
    meta.MediaStorageSOPClassUID = data.SOPClassUID = UID("1.2.840.10008.5.1.4.1.1.77.1.6")
    meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = UID("1.2.3.4")
    meta.TransferSyntaxUID, data.file_meta = ExplicitVRLittleEndian, meta
    data.SeriesInstanceUID, data.StudyInstanceUID, data.FrameOfReferenceUID = UID("1.2.5"), UID("1.2.6"), UID("1.2.7")
    data.Modality, data.PatientID, data.ImageType = "SM", "x", ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", 0
    data.Rows = data.Columns = 64
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    data.TotalPixelMatrixColumns, data.TotalPixelMatrixRows, data.NumberOfFrames = 96, 64, 2
    data.TotalPixelMatrixFocalPlanes, data.NumberOfOpticalPaths, data.DimensionOrganizationType = 1, 1, "TILED_FULL"
    data.VolumetricProperties, data.FocusMethod, data.ExtendedDepthOfField = "VOLUME", "AUTO", "NO"
    measures, shared, origin, optics = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.0005, 0.0005], 0.001
    shared.PixelMeasuresSequence = Sequence([measures])
    origin.XOffsetInSlideCoordinateSystem = origin.YOffsetInSlideCoordinateSystem = 0
    optics.OpticalPathIdentifier, optics.ObjectiveLensPower = "0", 20
    data.SharedFunctionalGroupsSequence, data.TotalPixelMatrixOriginSequence = Sequence([shared]), Sequence([origin])
    data.OpticalPathSequence, data.ImageOrientationSlide = Sequence([optics]), [0, -1, 0, -1, 0, 0]
    tiles = np.pad(RGB, ((0, 0), (0, 32), (0, 0)), constant_values=255).reshape(64, 2, 64, 3).swapaxes(0, 1)
    data.PixelData = tiles.tobytes()
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def dicom(rng: Random, data: bytes) -> bytes:
    """An element, or bytes before the pixels."""
    import pydicom

    if rng.random() < 0.5:
        return m.bytes_of(rng, data[:1200]) + data[1200:]
    with suppress(Exception), warnings.catch_warnings(action="ignore"):
        content = pydicom.dcmread(io.BytesIO(data))
        places = [(part, e) for part in (content, *(i for e in content if e.VR == "SQ" for i in e.value)) for e in part]
        part, element = rng.choice(places)
        if rng.random() < 0.3:
            del part[element.tag]
        else:
            element.value = rng.choice((*m.NUMBERS[:11], -1, "", "x" * 64, [], ["1", "2", "3"], 0.0, 1e-9, 1e9))
        buffer = io.BytesIO()
        content.save_as(buffer, enforce_file_format=False)
        return buffer.getvalue()
    return m.bytes_of(rng, data)


def kinds(folder: Path) -> dict[str, Kind]:
    """All kinds; the table's images are put into the folder."""
    colour, grey = Image.fromarray(RGB), Image.fromarray(RAMP)
    deep = Image.fromarray(RAMP.astype(np.uint16) * 257)
    transparent = Image.fromarray(np.dstack([RGB, np.full((64, 96), 255, np.uint8)]))
    palette = Image.fromarray((MASK > 0).astype(np.uint8), mode="P")
    palette.putpalette([0, 0, 0, 255, 255, 255])
    pictures = [colour, Image.fromarray(MASK), grey, deep, palette, transparent, Image.fromarray(MASK > 0)]
    tiffs = [
        *(saved(image, format="TIFF") for image in pictures[:6]),
        *(saved(colour, format="TIFF", compression=name) for name in ("tiff_lzw", "tiff_adobe_deflate", "jpeg")),
        tiff_of(RAMP.astype(np.float32) / 255), tiff_of(RAMP / 255), tiff_of(MASK, photometric="miniswhite"),
        tiff_of(RGB, tile=(32, 32), compression="zlib", photometric="rgb"),
        tiff_of(np.moveaxis(RGB, -1, 0), photometric="rgb", planarconfig="separate", resolution=(20000, 20000)),
        tiff_of(RGB, bigtiff=True, photometric="rgb"), tiff_of(RGB, byteorder=">", photometric="rgb", metadata=None),
        tiff_of(RGB, ome=True, photometric="rgb", metadata={"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}),
    ]  # fmt: skip
    made = {
        "png": Kind(".png", tuple(saved(image, format="PNG") for image in pictures), m.png, read_picture),
        "tiff": Kind(".tif", tuple(tiffs), m.tiff, read_picture),
        "jpeg": Kind(
            ".jpg", tuple(saved(colour, format="JPEG", quality=95, **o) for o in ({}, {"progressive": True})), m.jpeg,
            read_picture,
        ),
        "bmp": Kind(".bmp", tuple(saved(i, format="BMP") for i in (colour, grey, palette)), m.bmp, read_picture),
        "npy": Kind(
            ".npy", tuple(map(npy_of, (RAMP.astype(np.float32) / 255, RAMP, MASK > 0, RAMP / 255))), m.npy, read_npy
        ),
        "csv": Kind(".csv", (table_bytes(folder),), m.as_csv, read_csv),
        "yaml": Kind(".yaml", (RUN.encode(),), m.as_yaml, read_run_yaml),
        "json": Kind(".json", (json.dumps(MODEL).encode(),), m.as_json, read_config),
        "geojson": Kind(".geojson", (json.dumps(FEATURES).encode(),), m.as_json, read_geojson),
        "xml": Kind(".xml", (ASAP.encode(),), m.as_xml, read_asap),
        "slide.json": Kind(".json", (SLIDE_JSON,), m.as_json, read_slide_json),
        "safetensors": Kind(".safetensors", (model_bytes(),), m.tensors, read_tensors),
    }  # fmt: skip
    with suppress(ImportError):
        made["dicom"] = Kind(".dcm", (dicom_bytes(),), dicom, read_slide)
    return made
