"""At how many micrometres per pixel a network looks: learned from its training images, applied to every other one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from histoloc.data.pixels import sample_mpp, sample_size
from histoloc.data.table import Sample, Table
from histoloc.data.transforms import InputConfig
from histoloc.errors import InputError
from histoloc.model_folder import ModelConfig

ALIKE = 1.25  # scales, and sizes, that differ by no more than this factor are alike
LARGEST_TILE = 512
MOST_ENLARGED = 8.0  # an image that is coarser than the model by more shows nothing of what it learned
_LOOKED_AT = 200  # training images whose header is read


@dataclass(frozen=True)
class View:
    """How an image is brought to the network.

    Attributes:
        size: (H, W) in pixels at which the network sees it.
        tiled: whether it is cut into tiles, because training images were smaller.
        name: of the rule, for outputs.
        notes: what the user must know, one sentence each.
    """

    size: tuple[int, int]
    tiled: bool = False
    name: str = "as it is"
    notes: tuple[str, ...] = ()


def training_scale(config: ModelConfig, table: Table) -> tuple[ModelConfig, tuple[str, ...]]:
    """Decide at which scale a network is trained on a table.

    Images that differ by more than 1.25 times in µm/px, after the input's own resizing, are all resampled to their
    median.

    Args:
        config: of the model, with the run's input.
        table: its training images are looked at, at most 200 of them and one of each µm/px.

    Returns:
        The same configuration with the µm/px to which images are resampled where that is needed (`input.mpp`), that
        at which the network looks (`mpp`), `extent` and `shorter_side`; and what was decided, one sentence each.

    Raises:
        InputError: the images differ in scale, or a scale was asked for, and some do not say theirs.
    """
    samples = _selection([sample for sample in table.samples if sample.split == "train"])
    if not samples:
        return config, ()
    own = config.input
    sizes = [sample_size(sample) for sample in samples]
    scales = [sample_mpp(sample) for sample in samples]
    mpps = [m * _shrinkage(own, s) for m, s in zip(scales, sizes, strict=True) if m is not None]
    differ = bool(mpps) and max(mpps) > ALIKE * min(mpps)
    notes: tuple[str, ...] = ()
    if (own.mpp is not None or differ) and None in scales:
        why = f"--mpp {own.mpp:g} was asked for" if own.mpp else _spread("images are seen at", mpps)
        raise InputError(
            f"{table.path}: {why}, and {scales.count(None)} of {len(samples)} training images do not say their scale; "
            "fill the column mpp of every row, or empty all of them"
        )
    if differ and own.mpp is None:
        own = replace(own, mpp=float(median(mpps)), small_side=0)
        notes = (f"{_spread('training images would be seen at', mpps)}: all are resampled to {own.mpp:.4g} µm/px",)
    factors = [m / own.mpp if own.mpp and m else 1 / _shrinkage(own, s) for m, s in zip(scales, sizes, strict=True)]
    scaled = [sorted(round(side * f) for side in size) for f, size in zip(factors, sizes, strict=True)]
    extent = (max(short for short, _ in scaled), max(long for _, long in scaled))
    mpp = own.mpp or (float(median(mpps)) if mpps else None)
    shorter = round(median(min(size) for size in sizes))
    return replace(config, input=own, mpp=mpp, extent=extent, shorter_side=shorter), notes


def view(config: ModelConfig, size: tuple[int, int], mpp: float | None) -> View:
    """How a model sees an image.

    A model that was trained by the published rule (shorter side to N pixels) sees an image so, if that gives its own
    µm/px within 1.25 times, or if the scale is unknown. Any other image of known scale is brought to the model's µm/px,
    and cut into tiles where it is more than 1.25 times as large as training images were. A model whose training images
    were resampled to one scale sees an image of unknown scale as if it had that one.

    Args:
        config: of the model folder.
        size: (H, W) of the image in pixels.
        mpp: of the image in µm/px; None where unknown.

    Raises:
        InputError: the image is more than 8 times as coarse as the model.
    """
    small_side, trained = config.input.small_side, config.mpp
    known = mpp is not None and trained is not None
    factor = mpp / trained if mpp is not None and trained is not None else 1.0
    name = f"{trained:.4g} µm/px" if known else "as it is"
    if mpp is None and config.input.mpp is not None:
        name = f"taken as {config.input.mpp:.4g} µm/px"
    notes = _unknown_scale(config, size, mpp)
    if config.input.mpp is None and small_side:
        alike = _alike(factor * min(size), small_side) and not larger_than_training(config, _scaled(size, factor))
        if alike or not known:
            height, width = size
            fitted = (max(small_side, small_side * height // width), max(small_side, small_side * width // height))
            return View(fitted, False, f"shorter side to {small_side} px", notes)
    if not factor <= MOST_ENLARGED:
        raise InputError(
            f"an image of {mpp:g} µm/px cannot be enlarged to the {trained:.4g} µm/px at which the model looks; "
            "correct --mpp, or give the image at a finer scale"
        )
    if factor > ALIKE:
        coarse = f"the image has {mpp:.4g} µm/px, coarser than the {trained:.4g} at which the model looks"
        notes = (*notes, f"{coarse}: it is enlarged, and shows less than training images did")
    fitted = size if abs(factor - 1) <= 0.01 else _scaled(size, factor)
    return View(fitted, larger_than_training(config, fitted), name, notes)


def larger_than_training(config: ModelConfig, size: tuple[int, int]) -> bool:
    """Whether an image of (H, W) pixels at the model's scale is more than 1.25 times as large as training images."""
    return any(side > ALIKE * most for side, most in zip(sorted(size), config.extent or (), strict=False))


def tile_side(config: ModelConfig) -> int:
    """Side of the tiles that a model is used with, in pixels of its own scale.

    That of its training images, from 32 to 512, rounded down to a multiple of 32.
    """
    side = LARGEST_TILE if config.extent is None else min(LARGEST_TILE, config.extent[0])
    return max(32, side // 32 * 32)


def _scaled(size: tuple[int, int], factor: float) -> tuple[int, int]:
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _unknown_scale(config: ModelConfig, size: tuple[int, int], mpp: float | None) -> tuple[str, ...]:
    trained = config.shorter_side
    if mpp is not None and config.mpp is not None:
        return ()
    if config.input.mpp is not None:
        taken = f"the image's scale is unknown: it is taken as {config.input.mpp:.4g} µm/px, that of the model"
        return (f"{taken}; where it is another, give it by --mpp, or by the column mpp of a table",)
    if trained is None or _alike(min(size), trained):
        return ()
    what = "the image's scale" if mpp is None else "the scale of the model's training images"
    remedy = "give --mpp" if mpp is None else "train on a table with the column mpp"
    return (
        f"{what} is unknown, and its shorter side of {min(size)} px is {min(size) / trained:.2g} times that of "
        f"training images ({trained} px): if it shows tissue at another scale, the map cannot be trusted; {remedy}",
    )


def _selection(samples: Sequence[Sample]) -> list[Sample]:
    """At most 200 samples, evenly spaced, and the first one of each µm/px."""
    step = max(1, -(-len(samples) // _LOOKED_AT))
    first = {sample.mpp: sample for sample in reversed(samples)}
    by_name = {sample.name: sample for sample in (*samples[::step], *list(first.values())[:_LOOKED_AT])}
    return list(by_name.values())


def _shrinkage(config: InputConfig, size: tuple[int, int]) -> float:
    """Image pixels per pixel that the network sees."""
    return min(size) / config.small_side if config.small_side and config.mpp is None else 1.0


def _spread(text: str, values: Sequence[float]) -> str:
    return f"{text} {min(values):.4g} to {max(values):.4g} µm/px"


def _alike(a: float, b: float) -> bool:
    return max(a, b) <= ALIKE * min(a, b)
