"""Image in, Localization out: the one place where a model is applied."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from histoloc.data.images import read_image
from histoloc.data.transforms import as_tensor, normalise, resample_to
from histoloc.errors import InputError
from histoloc.maps import largest_is_roi, otsu_threshold, resize, roi, roi_at_stride
from histoloc.methods import Method
from histoloc.model_folder import ModelConfig, empty_index, load_model, no_classes
from histoloc.options import MapOptions
from histoloc.scale import View, tile_side, view
from histoloc.slides.answer import slide_probabilities
from histoloc.slides.reader import stored_mpp
from histoloc.slides.stitch import stitch, tissue_rows
from histoloc.slides.tiles import Network, evidence_of_image
from histoloc.types import Calibration, Localization, Output, Range

Pixels = NDArray[np.uint8]
SMALLEST_SIDE = 32


class Answer(NamedTuple):
    """What a network says of one image, before a class, a range and a threshold are chosen.

    Attributes:
        probabilities: (K,) float32, sums to one.
        maps: C, one for each class, or one.
        roi: (class index, calibration) -> ROI map (H, W) float32 at the image's own resolution.
        largest: (class index, calibration) -> bool (H, W), the rule of published CAM rows; None in tiles.
        view: how the image was brought to the network.
        tissue: (H, W) bool, where tissue alone was looked at; else None.
    """

    probabilities: NDArray[np.float32]
    maps: int
    roi: Callable[[int, Calibration], NDArray[np.float32]]
    largest: Callable[[int, Calibration], NDArray[np.bool_]] | None
    view: View
    tissue: NDArray[np.bool_] | None = None


class Predictor:
    """A trained method with the preprocessing, classes, µm/px, range and threshold of its model folder.

    Args:
        method: the network.
        config: of its model folder.
        device: where to compute, for example "cpu" or "cuda".
        range: how evidence becomes a map, instead of what the model folder says.
        empty_class: the class without ROI, instead of what the model folder says.

    Raises:
        InputError: the method has no such range, or there is no such class.

    Example:
        >>> import histoloc  # doctest: +SKIP
        >>> result = histoloc.load("runs/sem").predict("image.png")  # doctest: +SKIP
        >>> result.label, result.mask.mean()  # doctest: +SKIP
    """

    def __init__(
        self,
        method: Method,
        config: ModelConfig,
        device: torch.device | str = "cpu",
        *,
        range: Range | None = None,
        empty_class: str | None = None,
    ) -> None:
        self.method, self.device = method, torch.device(device)
        if empty_class is not None and config.empty_class not in (None, empty_class):
            raise InputError(
                f"--empty-class {empty_class}: the model was trained with {config.empty_class} as the class without "
                "ROI; leave --empty-class out"
            )
        self.config = config if empty_class is None else replace(config, empty_class=empty_class)
        self.method.to(self.device)
        learned = config.learned
        centre, slope = ((), ()) if learned is None else (learned.centre, learned.slope)
        empty = empty_index(self.config.empty_class, config.classes, "the model")
        self.calibration = replace(method.calibration(range or config.range, centre, slope), empty=empty)

    def predict(
        self,
        image: Pixels | Path | str,
        *,
        mpp: float | None = None,
        threshold: float | None = None,
        map_class: str | None = None,
        per_image: bool = False,
        tissue: bool = True,
    ) -> Localization:
        """Localize in one image of any size.

        Args:
            image: (H, W, 3) uint8 RGB, or the path of an image file.
            mpp: micrometres per pixel of the image: it is brought to the scale at which the model looks, and areas are
                known in mm². None for what the file says of itself, where it is one.
            threshold: cut the map here, in [0, 1], instead of where the model folder says.
            map_class: the class whose map is made; None for the predicted one.
            per_image: also give the map by the papers' per-image rule (`image_roi`), where the map is another one.
            tissue: where the image is cut into tiles, look at tissue alone, as on slides.

        Returns:
            Class probabilities, ROI map and mask at the image's own resolution.

        Raises:
            InputError: the image cannot be read or is no RGB image, the threshold is outside [0, 1], there is no such
                class, or the model has learned no range.
        """
        if isinstance(image, str | Path):
            mpp = stored_mpp(Path(image)) if mpp is None else mpp
            image = read_image(Path(image))
        answer = self.infer(image, mpp, tissue=tissue)
        return self.localize(answer, mpp, threshold=threshold, map_class=map_class, per_image=per_image)

    def infer(self, image: Pixels, mpp: float | None = None, *, tissue: bool = True) -> Answer:
        """Ask the network about one image, in one piece or in tiles; see `predict`."""
        size = _checked(image).shape[:2]
        plan = view(self.config, (size[0], size[1]), mpp)
        if min(plan.size) < SMALLEST_SIDE:
            raise InputError(
                f"an image of {size[1]}x{size[0]} pixels is {plan.size[1]}x{plan.size[0]} at the scale of the model "
                f"({plan.name}), where 32x32 or more are needed; correct --mpp, or give a larger image"
            )
        if plan.tiled and self.calibration.range != "image":
            return self._in_tiles(image, plan, mpp, tissue)
        return self._in_one_piece(image, replace(plan, tiled=False))

    def localize(
        self,
        answer: Answer,
        mpp: float | None = None,
        *,
        threshold: float | None = None,
        map_class: str | None = None,
        per_image: bool = False,
    ) -> Localization:
        """Make map and mask of what the network says; see `predict`."""
        self.check(threshold)
        predicted = int(answer.probabilities.argmax()) if self.config.classes else 0  # without effect on one map
        label = predicted if map_class is None else self.class_index(map_class, answer.maps)
        map = answer.roi(label, self.calibration)
        fixed = self.threshold(threshold)
        cut = fixed if fixed is not None else otsu_threshold(map if answer.tissue is None else map[answer.tissue])
        by_rule = None
        if per_image and self.calibration.range == "learned" and not answer.view.tiled:
            by_rule = answer.roi(label, replace(self.calibration, range="image"))
        notes = answer.view.notes
        if answer.view.tiled and self.method.in_tiles:
            notes = (*notes, f"{self.method.title} on an image in tiles: {self.method.in_tiles}")
        return Localization(
            self.config.classes,
            answer.probabilities if self.method.classifies else None,
            map,
            map >= cut,
            cut,
            mpp,
            None if answer.largest is None else answer.largest(label, self.calibration),
            self.map_class(label, answer.maps),
            self.calibration.range,
            answer.view.name + (" in tiles" if answer.view.tiled else ""),
            notes,
            by_rule,
        )

    @property
    def stride(self) -> int:
        """Input pixels per position of the evidence."""
        return self.method.stride

    def map_class(self, label: int, maps: int) -> str | None:
        """The class whose map is made for the class `label`; None where it is one map for all, or for several."""
        classes, empty = self.config.classes, self.calibration.empty
        others = [name for index, name in enumerate(classes) if index != empty]
        if empty is not None and len(others) == 1:
            return others[0]
        return None if maps == 1 or label == empty else classes[label]

    def roi_name(self, label: int, maps: int) -> str:
        """What outlines of the map are called: its class, the structure that a model without classes finds, or ROI."""
        return self.map_class(label, maps) or self.config.structure or "ROI"

    def class_index(self, name: str, maps: int) -> int:
        """Index of the class that `--class` names, of a method with so many maps.

        Raises:
            InputError: there is no such class, it has no ROI, or the method has one map for all classes.
        """
        classes = self.config.classes
        if not classes:
            raise InputError(no_classes(name))
        if name not in classes:
            raise InputError(f"--class {name!r} is not a class of the model; choose one of {list(classes)}")
        index = classes.index(name)
        if index == self.calibration.empty:
            raise InputError(f"--class {name}: images of this class have no ROI, and so no map; choose another one")
        if maps == 1 and self.map_class(index, maps) != name:
            raise InputError(f"--class {name}: this method has one map for all classes; leave --class out")
        return index

    def check(self, threshold: float | None = None, map_class: str | None = None) -> None:
        """Refuse, before anything is computed, what no image could be localized with.

        Raises:
            InputError: the range was never learned, the threshold means nothing, or there is no such class.
        """
        if self.calibration.range == "learned" and not self.calibration.centre:
            raise InputError(
                "the model has no learned range: it was trained by histoloc 0.1, or its table had no training images; "
                "`histoloc train METHOD --data TABLE --out RUN --resume` learns it, --range image does without"
            )
        self.threshold(threshold)
        if map_class is not None:
            white = np.full((SMALLEST_SIDE * 2, SMALLEST_SIDE * 2, 3), 255, np.uint8)
            self.class_index(map_class, self.evidence([white])[1].shape[1])

    def threshold(self, value: float | None) -> float | None:
        """Where maps are cut: as asked, or as the model folder says; None is Otsu's rule.

        Raises:
            InputError: it lies outside [0, 1], or the model's was chosen on maps of another range.
        """
        MapOptions(threshold=value)  # refuses what no map can be cut at
        own = self.config.threshold
        if value is None and own.rule == "valid" and own.range not in (None, self.calibration.range):
            raise InputError(
                f"the model's threshold {own.value:g} was chosen on maps of --range {own.range} and means nothing on "
                f"those of --range {self.calibration.range}; give --threshold"
            )
        return own.value if value is None else value

    def output_of(self, image: Pixels, mpp: float | None = None) -> Output:
        """What the network says of one image in one piece, as images reach it in training: an `Output` of B = 1."""
        plan = view(self.config, (image.shape[0], image.shape[1]), mpp)
        return self._output(resample_to(as_tensor(_checked(image)), plan.size)[None])

    def evidence(
        self, tiles: Sequence[Pixels], *, precision: Literal["float32", "bf16"] = "float32"
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Class probabilities and evidence of images of one size, at the scale of the model; one batch.

        Args:
            tiles: B images, each (H, W, 3) uint8 RGB, all of one size.
            precision: bf16 computes in bfloat16 where that is safe (autocast), faster on recent GPUs.

        Returns:
            Probabilities (B, K), and evidence (B, C, h, w) at the network's own stride: C = K where the method has a
            map per class, otherwise 1. Probabilities of a method that does not classify mean nothing.

        Raises:
            InputError: a tile is no RGB image.
        """
        with torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16"):
            output = self._output(torch.stack([as_tensor(_checked(tile)) for tile in tiles]))
        return output.logits.softmax(dim=1).cpu().numpy(), output.evidence.contiguous().cpu().numpy()

    def roi_of_tiles(
        self, probabilities: NDArray[np.float32], evidence: NDArray[np.float32], label: int, calibration: Calibration
    ) -> NDArray[np.float32]:
        """ROI map (B, h, w) in [0, 1] of tiles, from what `evidence` gives; `label` is the whole image's class."""
        logits = torch.from_numpy(probabilities).clamp_min(1e-30).log()
        output = Output(logits, torch.from_numpy(np.ascontiguousarray(evidence)), {})
        labels = torch.full((len(logits),), label)
        return roi_at_stride(output, labels, calibration)[:, 0].numpy()

    def _in_one_piece(self, image: Pixels, plan: View) -> Answer:
        size = (image.shape[0], image.shape[1])
        output = self._output(resample_to(as_tensor(image), plan.size)[None])

        def map_of(label: int, calibration: Calibration) -> NDArray[np.float32]:
            map = roi(output, torch.tensor([label], device=self.device), calibration, plan.size)
            return resize(map, size).clamp(0, 1)[0, 0].cpu().numpy()

        def largest(label: int, calibration: Calibration) -> NDArray[np.bool_]:
            mask = largest_is_roi(output, torch.tensor([label], device=self.device), calibration, plan.size)
            return resize(mask[:, None].float(), size)[0, 0].cpu().numpy() >= 0.5

        maps = output.evidence.shape[1]
        probabilities = output.logits.softmax(dim=1)[0].cpu().numpy()
        return Answer(probabilities, maps, map_of, largest if maps > 1 else None, plan)

    def _in_tiles(self, image: Pixels, plan: View, mpp: float | None, tissue: bool) -> Answer:
        trained = self.config.mpp
        known = mpp is not None and trained is not None
        own, working_mpp = (mpp, trained) if mpp is not None and trained is not None else (1.0, 1.0)
        if known and working_mpp < own / 1.1:  # a slide would refuse to be enlarged
            image_at, own = resample_to(as_tensor(image), plan.size).permute(1, 2, 0).numpy(), working_mpp
        else:
            image_at = image
        network = Network(self.evidence, self.stride, 2 if self.device.type == "cpu" else 16)
        tile = tile_side(self.config)
        grid, p, evidence, mask = evidence_of_image(network, image_at, own, working_mpp, tile, tissue=tissue and known)
        if tissue and mask is None:
            why = "no tissue was found" if known else "its scale is unknown"
            plan = replace(plan, notes=(*plan.notes, f"{why}: all of the image is looked at, also glass"))
        size = (image.shape[0], image.shape[1])
        on_tissue = None
        if mask is not None:
            cells = torch.from_numpy(tissue_rows(grid, mask, 0, grid.rows))[None, None].float()
            on_tissue = resize(cells, size)[0, 0].numpy() >= 0.5

        def map_of(label: int, calibration: Calibration) -> NDArray[np.float32]:
            def tiles(start: int, stop: int) -> NDArray[np.float32]:
                return self.roi_of_tiles(p[start:stop], evidence[start:stop], label, calibration)

            map = torch.from_numpy(np.concatenate(list(stitch(grid, tiles, mask))))[None, None]
            covered = (grid.rows * grid.cell, grid.columns * grid.cell)
            at_scale = resize(map, covered)[..., : grid.height, : grid.width]
            return resize(at_scale, size).clamp(0, 1)[0, 0].numpy()

        mean = slide_probabilities(p, grid.tissue, self.calibration.empty).astype(np.float32)
        return Answer(mean, evidence.shape[1], map_of, None, plan, on_tissue)

    def _output(self, images: Tensor) -> Output:
        """The network's output for (B, 3, H, W) uint8 at the scale of the model, cropped to the positions of the image.

        The image is continued beyond its right and lower edge to whole positions of every level of the network, so that
        the positions of an image do not depend on its size.
        """
        height, width = images.shape[-2:]
        batch = torch.stack([normalise(image, self.config.input) for image in images]).to(self.device)
        batch = self.method.continued(batch).contiguous(memory_format=torch.channels_last)
        stride = self.method.stride
        with torch.no_grad():
            output = self.method.eval().evidence(batch)
        rows, columns = -(-height // stride), -(-width // stride)
        terms = {
            name: value[..., :rows, :columns] if value.ndim == 4 else value for name, value in output.terms.items()
        }
        return Output(output.logits.float(), output.evidence.float()[..., :rows, :columns], terms)


def load(
    folder: Path | str, device: str = "auto", *, range: Range | None = None, empty_class: str | None = None
) -> Predictor:
    """Open a model folder or a run.

    Args:
        folder: a model folder (`config.json`, `model.safetensors`), a run that holds one in `model/`, or the name of a
            shipped prior, as `prior:glands`.
        device: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1", "mps".
        range: how evidence becomes a map, instead of what the model folder says.
        empty_class: the class without ROI, instead of what the model folder says.

    Raises:
        InputError: no model folder, a corrupted or foreign one, an unknown device, a range that the method lacks.
    """
    method, config = load_model(Path(folder))
    network = method.to(memory_format=torch.channels_last)
    return Predictor(network, config, choose_device(device), range=range, empty_class=empty_class)


def choose_device(device: str) -> torch.device:
    """The device of this name; "auto" takes a GPU where there is one.

    Raises:
        InputError: no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        result = torch.device(device)
        torch.empty(1, device=result)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {device}: not usable here ({reason}); try auto or cpu") from error
    return result


def _checked(image: Pixels) -> Pixels:
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        kind = f"{image.dtype} array of shape {image.shape}" if isinstance(image, np.ndarray) else repr(type(image))
        raise InputError(f"predict needs an RGB image as uint8 array (H, W, 3), not {kind}; convert it first")
    if min(image.shape[:2]) < SMALLEST_SIDE:
        raise InputError(f"an image of {image.shape[1]}x{image.shape[0]} pixels is too small; give at least 32x32")
    return image
