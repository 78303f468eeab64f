"""Image in, Localization out: the one place where a model is applied."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from histoloc.checkpoint import ModelConfig, load_model
from histoloc.data.transforms import load_tensor, normalise
from histoloc.errors import InputError
from histoloc.files import atomic_path
from histoloc.images import read_image, write_map, write_mask, write_picture
from histoloc.maps import otsu_threshold, resize
from histoloc.methods import Method
from histoloc.pictures import overlay
from histoloc.types import BatchLocalization, Localization

IMAGE_SUFFIXES = {".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff"}
MPP_TOLERANCE = 0.2


class Predictor:
    """A trained method with the preprocessing, classes, µm/px and threshold of its model folder.

    Args:
        method: the network.
        config: of its model folder.
        device: where to compute, for example "cpu" or "cuda".

    Example:
        >>> import histoloc  # doctest: +SKIP
        >>> found = histoloc.load("runs/sem").predict("image.png")  # doctest: +SKIP
        >>> found.label, found.mask.mean()  # doctest: +SKIP
    """

    def __init__(self, method: Method, config: ModelConfig, device: torch.device | str = "cpu") -> None:
        self.method, self.config, self.device = method, config, torch.device(device)
        self.method.to(self.device)

    def predict(
        self,
        image: NDArray[np.uint8] | Path | str,
        *,
        mpp: float | None = None,
        threshold: float | None = None,
    ) -> Localization:
        """Localize in one image of any size.

        Args:
            image: (H, W, 3) uint8 RGB, or the path of an image file.
            mpp: micrometres per pixel of the image, for areas in mm².
            threshold: cut the map here, in [0, 1], instead of where the model folder says.

        Returns:
            Class probabilities, ROI map and mask at the image's own resolution.

        Raises:
            InputError: the image cannot be read or is no RGB image; the threshold is outside [0, 1].
        """
        pixels = read_image(Path(image)) if isinstance(image, str | Path) else _checked(image)
        batch = self._network_input([pixels])
        with self._at_rest():
            found = self.method.localize(batch)
            size = (pixels.shape[0], pixels.shape[1])
            roi = resize(found.roi.float(), size).clamp(0, 1)
            largest = None if found.class_maps is None else predicted_is_largest(found, size)
        roi_map = roi[0, 0].cpu().numpy()
        cut = self._threshold(roi_map, threshold)
        probabilities = found.probabilities[0].float().cpu().numpy() if self.method.classifies else None
        by_argmax = None if largest is None else largest[0].cpu().numpy()
        return Localization(self.config.classes, probabilities, roi_map, roi_map >= cut, cut, mpp, by_argmax)

    def evidence(
        self, tiles: Sequence[NDArray[np.uint8]], *, precision: Literal["float32", "bf16"] = "float32"
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Class probabilities and evidence of images of one size, comparable between all images; one batch.

        The images are preprocessed as by `predict`. Evidence becomes a ROI map by `roi_of`.

        Args:
            tiles: B images, each (H, W, 3) uint8 RGB, all of one size.
            precision: bf16 computes in bfloat16 where that is safe (autocast), faster on recent GPUs.

        Returns:
            Probabilities (B, K), and evidence (B, C, h, w) at the network's own stride: C = K where the method has a
            map per class, otherwise 1. Probabilities of a method that does not classify mean nothing.

        Raises:
            InputError: no tiles, tiles of different sizes, or one that is no RGB image.
        """
        sizes = {_checked(tile).shape for tile in tiles}
        if len(sizes) != 1:
            said = ", ".join(sorted(f"{width}x{height}" for height, width, _ in sizes)) or "none at all"
            raise InputError(f"evidence needs tiles of one size, not {said}; give them in batches of one size")
        batch = self._network_input(tiles)
        with self._at_rest(), torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16"):
            found = self.method.evidence(batch)
        return found.probabilities.float().cpu().numpy(), found.values.float().contiguous().cpu().numpy()

    def roi_of(
        self,
        values: NDArray[np.floating],
        low: float | Sequence[float] | None = None,
        high: float | Sequence[float] | None = None,
    ) -> NDArray[np.float32]:
        """Evidence -> ROI map in [0, 1], position by position; see `Method.roi_of`.

        Args:
            values: (B, C, h, w) or (C, h, w) with `low` and `high` of length C; or of any shape with one number each.
            low: evidence at and below which there is no ROI; not needed where `method.evidence_is_roi`.
            high: evidence at and above which there is nothing but ROI.

        Returns:
            The shape of `values`.
        """
        # Copied: an array from a file may be read-only, which tensors cannot be.
        given = torch.tensor(np.asarray(values, dtype=np.float32))
        bounds = [None if b is None else torch.as_tensor(np.asarray(b, dtype=np.float32)) for b in (low, high)]
        with torch.no_grad():
            return self.method.roi_of(given, *bounds).numpy()

    def _network_input(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        config = self.config.input
        batch = torch.stack([normalise(load_tensor(image, config), config) for image in images])
        return batch.to(self.device, memory_format=torch.channels_last)

    @contextmanager
    def _at_rest(self) -> Iterator[None]:
        """Eval mode and no gradients, for a while."""
        was_training = self.method.training
        self.method.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.method.train(was_training)

    def _threshold(self, roi: NDArray[np.float32], asked: float | None) -> float:
        if asked is not None:
            if not 0 <= asked <= 1:
                raise InputError(f"--threshold {asked} must lie within [0, 1]")
            return asked
        rule = self.config.threshold
        return otsu_threshold(roi) if rule.value is None else rule.value


def predicted_is_largest(found: BatchLocalization, size: tuple[int, int]) -> Tensor:
    """Where the predicted class has the largest class map, alone; where maps tie (all are zero), no class has it.

    Args:
        found: with class maps (B, K, h, w).
        size: (H, W) wanted, in pixels.

    Returns:
        (B, H, W) bool.
    """
    assert found.class_maps is not None
    maps = resize(found.class_maps, size)
    predicted = found.probabilities.argmax(dim=1).view(-1, 1, 1, 1).expand(-1, 1, *size)
    others = maps.scatter(1, predicted, -torch.inf).amax(dim=1)
    return maps.gather(1, predicted)[:, 0] > others


def load(folder: Path | str, device: str = "auto") -> Predictor:
    """Open a model folder or a run.

    Args:
        folder: a model folder (`config.json`, `model.safetensors`) or a run that holds one in `model/`.
        device: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1", "mps".

    Raises:
        InputError: no model folder, a corrupted or foreign one, an unknown device.
    """
    method, config = load_model(Path(folder))
    return Predictor(method.to(memory_format=torch.channels_last), config, choose_device(device))


def choose_device(device: str) -> torch.device:
    """The device of this name; "auto" takes a GPU where there is one.

    Raises:
        InputError: no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {device}: not usable here ({reason}); try auto or cpu") from error
    return chosen


def predict_files(
    model: Path,
    images: Sequence[Path],
    out: Path,
    *,
    mpp: float | None = None,
    threshold: float | None = None,
    device: str = "auto",
    progress: bool = True,
) -> pd.DataFrame:
    """Localize in files and folders of images; write mask, heatmap and overlay of each, and one CSV.

    Args:
        model: a model folder or a run.
        images: image files, or folders whose images are taken (sub-folders too).
        out: folder to write `NAME_mask.png`, `NAME_map.png`, `NAME_overlay.png` and `predictions.csv` into.
        mpp: micrometres per pixel of the images, for areas in mm².
        threshold: cut the maps here instead of where the model says.
        device: where to compute.
        progress: show a bar.

    Returns:
        The CSV's rows: image, class, prob_<class>, roi_fraction, roi_mm2, threshold.

    Raises:
        InputError: nothing to do, two images of one name, an unreadable image, a folder that cannot be written.
    """
    if mpp is not None and not mpp > 0:
        raise InputError(f"--mpp {mpp} must be above 0 (micrometres per pixel)")
    predictor = load(model, device)
    files = _image_files(images)
    trained = predictor.config.mpp
    if mpp is not None and trained is not None and not _close(mpp, trained):
        tqdm.write(
            f"note: the model was trained at {trained:g} µm/px and these images are said to have {mpp:g}; "
            f"resize them to {trained:g} µm/px for results that can be trusted"
        )
    rows: list[dict[str, object]] = []
    for name, file in tqdm(files.items(), "predicting", disable=not progress):
        pixels = read_image(file)
        found = predictor.predict(pixels, mpp=mpp, threshold=threshold)
        write_mask(out / f"{name}_mask.png", found.mask)
        write_map(out / f"{name}_map.png", found.roi)
        write_picture(out / f"{name}_overlay.png", overlay(pixels, found.roi, found.mask))
        rows.append({"image": str(file), **describe(found)})
    table = pd.DataFrame(rows)
    with atomic_path(out / "predictions.csv") as temporary:
        table.to_csv(temporary, index=False)
    return table


def describe(found: Localization) -> dict[str, object]:
    """One localization as flat values for a CSV row."""
    row: dict[str, object] = {"class": found.label or ""}
    if found.probabilities is not None:
        row |= {f"prob_{c}": round(float(p), 6) for c, p in zip(found.classes, found.probabilities, strict=True)}
    mm2 = found.roi_mm2
    row |= {"roi_fraction": round(found.roi_fraction, 6), "roi_mm2": "" if mm2 is None else round(mm2, 6)}
    return row | {"threshold": round(found.threshold, 6)}


def _image_files(given: Sequence[Path]) -> dict[str, Path]:
    """Output name -> image, for files and for all images below folders."""
    files: dict[str, Path] = {}
    for file in _expand(given):
        name = file.stem
        if name in files:
            raise InputError(
                f"{file}: has the same name as {files[name]}, and their results would overwrite each other; "
                "predict them into different folders"
            )
        files[name] = file
    return files


def _expand(given: Sequence[Path]) -> Iterator[Path]:
    for path in given:
        if path.is_file():
            yield path
            continue
        if not path.is_dir():
            raise InputError(f"{path}: no such image or folder; check the path")
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        if not found:
            raise InputError(f"{path}: holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}); check the folder")
        yield from found


def _checked(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        what = f"{image.dtype} array of shape {image.shape}" if isinstance(image, np.ndarray) else repr(type(image))
        raise InputError(f"predict needs an RGB image as uint8 array (H, W, 3), not {what}; convert it first")
    if min(image.shape[:2]) < 32:
        raise InputError(f"an image of {image.shape[1]}x{image.shape[0]} pixels is too small; give at least 32x32")
    return image


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= MPP_TOLERANCE * b
