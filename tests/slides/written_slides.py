"""Slides as scanners and converters write them, all of one picture: tissue with a dark tumour at TUMOUR."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

MPP = 0.5
SIZE = (768, 512)  # width, height
TUMOUR = (128, 128, 384, 384)  # left, top, right, bottom: 4 tiles of 128 px
MARGIN = (256, 640)  # of `write_scn`, to the left and above
WHOLE = (1536, 1280)  # its level 0
GLASS = (10, 20, 250)  # of its picture of the whole glass
CM = {"resolution": (1e4 / MPP, 1e4 / MPP), "resolutionunit": "CENTIMETER"}
OME = {
    "axes": "YXS", "PhysicalSizeX": MPP, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": MPP, "PhysicalSizeYUnit": "µm"
}  # fmt: skip
_TILE = 128


def picture(tumour: bool = True) -> NDArray[np.uint8]:
    """(H, W, 3), glass of a pixel's noise around, so that a turn or a shift shows."""
    rng = np.random.default_rng(0)
    pixels = np.full((*SIZE[::-1], 3), 240, np.uint8)
    pixels[64:448, 64:704] = np.array((225, 150, 190)) + rng.integers(-12, 12, (384, 640, 3))
    if tumour:
        left, top, right, bottom = TUMOUR
        pixels[top:bottom, left:right] = np.array((90, 40, 140)) + rng.integers(
            -12, 12, (bottom - top, right - left, 3)
        )
    return pixels


def write_tiff(path: Path, pixels: NDArray[np.uint8] | None = None, **options: Any) -> Path:
    """A TIFF in tiles, or in strips with `tile=None`, at MPP unless `resolution` or `metadata` say otherwise."""
    scale = {} if {"resolution", "metadata"} & set(options) else CM
    defaults = {"photometric": "rgb", "tile": (_TILE, _TILE), "compression": "zlib", "metadata": None} | scale
    tifffile.imwrite(path, picture() if pixels is None else pixels, **(defaults | options))
    return path


def write_scn(path: Path, *, tumour: bool = True) -> Path:
    """Leica's format: the scanned part lies at MARGIN of a larger level 0, as in MIRAX."""
    nm, (x, y), (width, height) = round(1000 * MPP), MARGIN, SIZE
    full, glass = picture(tumour), np.full((256, 256, 3), 235, np.uint8)
    levels = [full, full[::4, ::4]]
    sizes = [
        f'<dimension sizeX="{p.shape[1]}" sizeY="{p.shape[0]}" r="{i}" ifd="{i + 1}"/>' for i, p in enumerate(levels)
    ]

    def image(size: str, view: tuple[int, ...], dimensions: str, objective: int, aperture: float) -> str:
        place = " ".join(f'{n}="{v * nm}"' for n, v in zip(("sizeX", "sizeY", "offsetX", "offsetY"), view, strict=True))
        return (
            f'<image><creationDate>2020-01-01</creationDate><device model="Leica SCN400" version="1"/><pixels {size}>'
            f"{dimensions}</pixels><view {place}/><scanSettings><objectiveSettings><objective>{objective}</objective>"
            f"</objectiveSettings><illuminationSettings><numericalAperture>{aperture}</numericalAperture>"
            "<illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings></image>"
        )

    macro = image(
        'sizeX="256" sizeY="256"', (*WHOLE, 0, 0), '<dimension sizeX="256" sizeY="256" r="0" ifd="0"/>', 1, 0.05
    )
    scan = image(f'sizeX="{width}" sizeY="{height}"', (width, height, x, y), "".join(sizes), 20, 0.4)
    xml = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"><collection '
        f'sizeX="{WHOLE[0] * nm}" sizeY="{WHOLE[1] * nm}"><barcode>MA==</barcode>{macro}{scan}</collection></scn>'
    )
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for number, pixels in enumerate((glass, *levels)):
            scale = (WHOLE[0] * MPP / 256, MPP, 4 * MPP)[number]
            file.write(
                pixels, photometric="rgb", tile=(256, 256), resolution=(1e4 / scale, 1e4 / scale),
                resolutionunit="CENTIMETER", description=xml if number == 0 else None, metadata=None, software=None,
            )  # fmt: skip
    return path


def write_dicom(folder: Path, *, names: tuple[str, ...] = ("b", "c"), label: str | None = None) -> list[Path]:
    """A series of DICOM: one file for each level, halved each time, and a picture of the label under its name."""
    from pydicom.uid import generate_uid

    folder.mkdir(parents=True, exist_ok=True)
    series = [generate_uid() for _ in range(3)]
    files = []
    for level, name in enumerate(names):
        pixels = picture()[:: 2**level, :: 2**level]
        kind = (
            ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"] if level == 0 else ["DERIVED", "PRIMARY", "VOLUME", "RESAMPLED"]
        )
        files.append(_write_instance(folder / f"{name}.dcm", pixels, MPP * 2**level, kind, series))
    if label is not None:
        red = np.full((256, 256, 3), (255, 0, 0), np.uint8)
        files.append(
            _write_instance(folder / f"{label}.dcm", red, 10.0, ["ORIGINAL", "PRIMARY", "LABEL", "NONE"], series)
        )
    return files


def _write_instance(path: Path, pixels: NDArray[np.uint8], mpp: float, kind: list[str], series: list[Any]) -> Path:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.sequence import Sequence
    from pydicom.uid import UID, JPEGBaseline8Bit, generate_uid

    def dataset(**elements: Any) -> Dataset:
        one = Dataset()
        for keyword, value in elements.items():
            setattr(one, keyword, value)
        return one

    height, width = pixels.shape[:2]
    side = 256
    frames = []
    for y in range(0, height, side):
        for x in range(0, width, side):
            tile, buffer = np.full((side, side, 3), 240, np.uint8), io.BytesIO()
            part = pixels[y : y + side, x : x + side]
            tile[: part.shape[0], : part.shape[1]] = part
            Image.fromarray(tile).save(buffer, "JPEG", quality=95, subsampling=0)
            frames.append(buffer.getvalue())
    instance, kind_of_slide = generate_uid(), UID("1.2.840.10008.5.1.4.1.1.77.1.6")
    of = dataset(PixelMeasuresSequence=Sequence([dataset(PixelSpacing=[mpp / 1000] * 2, SliceThickness=0.001)]))
    one = dataset(
        SOPClassUID=kind_of_slide, SOPInstanceUID=instance, SeriesInstanceUID=series[0], StudyInstanceUID=series[1],
        FrameOfReferenceUID=series[2], Modality="SM", PatientID="x", PatientName="x", ImageType=kind, SamplesPerPixel=3,
        PhotometricInterpretation="YBR_FULL_422", PlanarConfiguration=0, Rows=side, Columns=side, BitsAllocated=8,
        BitsStored=8, HighBit=7, PixelRepresentation=0, TotalPixelMatrixColumns=width, TotalPixelMatrixRows=height,
        NumberOfFrames=len(frames), TotalPixelMatrixFocalPlanes=1, NumberOfOpticalPaths=1,
        DimensionOrganizationType="TILED_FULL", VolumetricProperties="VOLUME", SpecimenLabelInImage="NO",
        FocusMethod="AUTO", ExtendedDepthOfField="NO", ImagedVolumeWidth=width * mpp / 1000,
        ImagedVolumeHeight=height * mpp / 1000, ImagedVolumeDepth=0.001, SharedFunctionalGroupsSequence=Sequence([of]),
        OpticalPathSequence=Sequence([dataset(OpticalPathIdentifier="0", ObjectiveLensPower=20)]),
        ImageOrientationSlide=[0, -1, 0, -1, 0, 0], PixelData=encapsulate(frames),
        TotalPixelMatrixOriginSequence=Sequence(
            [dataset(XOffsetInSlideCoordinateSystem=0, YOffsetInSlideCoordinateSystem=0)]
        ),
    )  # fmt: skip
    one.file_meta = FileMetaDataset()
    one.file_meta.MediaStorageSOPClassUID, one.file_meta.MediaStorageSOPInstanceUID = kind_of_slide, instance
    one.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    one["PixelData"].is_undefined_length = True
    one.save_as(path, enforce_file_format=True)
    return path
