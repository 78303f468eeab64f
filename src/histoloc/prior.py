"""Priors: drawn and trained, adapted to real images without labels and masks, and those that are shipped."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from tqdm import tqdm

from histoloc.bounds import Checked, Count, Positive, Whole
from histoloc.calibration import share_shift
from histoloc.config import Accelerator, RunConfig, read_recipe, run_config
from histoloc.data.pixels import sample_mpp, sample_size
from histoloc.data.sample import REGION, Sample
from histoloc.data.table import read_table, write_table
from histoloc.datasets.synthetic.dataset import Scene
from histoloc.datasets.synthetic.drawn import drawn_table
from histoloc.errors import InputError
from histoloc.inputs import IMAGE_SUFFIXES, input_files
from histoloc.model_folder import (
    ModelConfig,
    images_seen,
    load_model,
    read_model_config,
    save_images,
    save_model,
)
from histoloc.nn.average import averaged
from histoloc.prediction import load
from histoloc.prior_card import card
from histoloc.training import train
from histoloc.work_folder import locked, write_text

PriorScene = Literal["glands", "nests", "disc"]
# What is drawn for it, and what the masks show.
SCENES: dict[str, tuple[Scene, str]] = {
    "glands": ("colon", "gland"),
    "nests": ("nests", "tumour nest"),
    "disc": ("disc", "disc"),
}
STEPS = 340  # of an adaptation; it still rose slowly
POSITIONS = 16  # pixels between positions of the deepest level: between them, maps would lie beside their images
SMALLEST_SIDE = 96  # pixels of an image at the prior's scale


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(Checked):
    """Where and how long a prior is trained.

    Attributes:
        seed: of training and of the images that are drawn.
        epochs: passes over the images.
        recipe: name of a shipped recipe (`histoloc recipes`) or a YAML file that says the rest.
        drawers: processes that draw images.
        accelerator: auto, cpu, cuda or mps.
        resume: go on with a training that was stopped. Images that were drawn are kept in any case.
    """

    seed: Whole = 0
    epochs: Count | None = None
    recipe: str = "prior"
    drawers: Count = 2
    accelerator: Accelerator = "auto"
    resume: bool = False


@dataclass(frozen=True, kw_only=True)
class MakeOptions(TrainingOptions):
    """How a prior is made.

    Attributes:
        scene: what is drawn: glands in colon tissue of all kinds, nests of tumour in lymph nodes, or a disc, for
            trials.
        count: how many images.
        height: of an image in pixels of 1 µm.
        width: of an image in pixels of 1 µm.
        epochs: passes over the images; by default what the recipe says.
    """

    scene: PriorScene = "glands"
    count: Count = 1200
    height: Count = 320
    width: Count = 476


@dataclass(frozen=True, kw_only=True)
class AdaptOptions(TrainingOptions):
    """How a prior is adapted.

    Attributes:
        fold: which fold of the table is not looked at, its validation split.
        columns: what the table calls its columns, as image=path,label=diagnosis, where not so.
        mpp: micrometres per pixel of the images that do not say it, in the table or themselves.
        drawn: a table of images with masks that are seen beside the real ones; by default images of the prior's own
            scene are drawn.
        count: how many are drawn.
        epochs: passes over the images; by default so many that there are about 340 steps.
    """

    fold: Whole | None = None
    columns: str = ""
    mpp: Positive | None = None
    drawn: Path | None = None
    count: Count = 400
    recipe: str = "prior-adapt"


def make(out: Path, options: MakeOptions = MakeOptions(), *, progress: bool = True) -> Path:
    """Draw images of a scene, train a prior on them, and write its model folder.

    Args:
        out: folder for the images (`drawn`), the run (`run`) and the prior (`model`).
        options: how.
        progress: show bars.

    Returns:
        The model folder, of weights in half precision, with a card.

    Raises:
        InputError: there is another prior in `out`, or `resume` is not set and a training was begun there.
    """
    o, out = options, Path(out)
    with locked(out):
        _tell(f"1/2 drawing {o.count} images of the scene {o.scene} into {out / 'drawn'}", progress)
        size = (o.height, o.width)
        table = drawn_table(
            out / "drawn",
            scene=SCENES[o.scene][0],
            seed=o.seed,
            count=o.count,
            size=size,
            workers=o.drawers,
            progress=progress,
        )
        config = _config(o, table)
        _tell(f"2/2 training on them for {config.training.epochs} epochs in {out / 'run'}", progress)
        train(config, out / "run", resume=o.resume, progress=progress)
        facts = {
            "structure": SCENES[o.scene][1],
            "scene": o.scene,
            "seed": o.seed,
            "count": o.count,
            "size": [o.height, o.width],
            "command": _command("make", o, MakeOptions()),
            "saw": f"{o.count} drawn images of the scene {o.scene} (seed {o.seed}); no real image",
        }
        return _write(out, config, facts)


def adapt(
    prior: Path | str, data: Path, out: Path, options: AdaptOptions = AdaptOptions(), *, progress: bool = True
) -> Path:
    """Adapt a prior to the stain and scanner of real images; neither labels nor masks are read.

    A network that teaches itself finds less and less. So at the end a constant is added to its scores: of all images
    together the same share is structure as by the prior that it began with.

    Args:
        prior: `prior:NAME`, a run or a model folder; with a backbone and a decoder as `histoloc train prior` has them.
        data: a table, of which only the rows of split train are looked at, or a folder of images.
        out: folder for the table without labels, drawn images (`drawn`), the run (`run`) and the prior (`model`).
        options: how.
        progress: show bars.

    Returns:
        The model folder: a prior like any other, of weights in half precision, with a card.

    Raises:
        InputError: the scale of the images or of the prior is unknown, images are too small, the prior does not fit, or
            what is in `out` has other settings.
    """
    o, out, given = options, Path(out), read_model_config(Path(prior))
    if given.mpp is None:
        raise InputError(f"{prior}: does not say at how many µm/px it looks; train it on a table with the column mpp")
    with locked(out):
        table, crop = _unlabelled(Path(data), out / "images.csv", o, given)
        count = len(read_table(table, check_files=False).samples)
        _tell(f"{count} images, of which neither labels nor masks are read; seen at {given.mpp:.4g} µm/px", progress)
        drawn = o.drawn or drawn_beside(prior, out / "drawn", o, progress=progress)
        config = _adaptation(o, given, table, crop, count)
        _tell(f"training for {config.training.epochs} epochs in {out / 'run'}", progress)
        train(replace(config, prior=str(prior), drawn=drawn), out / "run", resume=o.resume, progress=progress)
        device = "cpu" if o.accelerator == "cpu" else "auto"
        before, after = load(Path(prior), device), load(out / "run", device)
        shift = share_shift(before, after, read_table(table, check_files=False).samples)
        _tell(f"{shift:+.2f} is added to the scores: the same share of the images is structure as before", progress)
        kept = {k: v for k, v in given.provenance.items() if k in ("structure", "scene", "seed", "count", "size")}
        before = given.provenance.get("saw", f"what the {given.method} saw")
        facts = kept | {
            "adapted_from": given.weights_sha256,
            "images": count,
            "command": _command(f"adapt {Path(prior).name} --data {Path(data).name}", o, AdaptOptions()),
            "saw": f"{before}; then {count} real images without labels and masks"
            + (f", beside images of {o.drawn.name} with masks" if o.drawn else ""),
        }
        return _write(out, replace(config, backbone=given.backbone), facts | {"shift": shift})


def _adaptation(o: AdaptOptions, given: ModelConfig, table: Path, crop: int, count: int) -> RunConfig:
    """The prior's own network and input, trained as the recipe says."""
    config = _config(o, table)
    own = given.options if given.method == config.method else config.options
    # The method randomises colours.
    jitter = dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0.0)
    usual = max(1, round(STEPS / -(-count // config.training.batch)))
    epochs = usual if o.epochs is None else o.epochs
    return replace(
        config,
        options=replace(own, average=config.options.average),
        backbone=replace(given.backbone, weights="none"),
        input=replace(given.input, mpp=given.mpp, small_side=0, crop=crop, **jitter),
        training=replace(config.training, epochs=epochs),
    )


def drawn_beside(prior: Path | str, out: Path, o: AdaptOptions, *, progress: bool = True) -> Path:
    """Draw the images that are seen beside real ones when a prior is adapted; what is there is kept.

    Args:
        prior: says of which scene.
        out: folder for them.
        o: how many, and their seed.
        progress: show a bar.

    Returns:
        Their table.

    Raises:
        InputError: the prior does not say which scene it was trained on.
    """
    given = read_model_config(Path(prior)).provenance
    scene: Any = given.get("scene")
    if scene not in SCENES:
        raise InputError(
            f"{prior}: does not say which scene it was trained on; give --drawn, a table of images with masks, as the "
            "one that it was trained on"
        )
    size = tuple(given.get("size", (MakeOptions.height, MakeOptions.width)))
    # Not the images that the prior was trained on.
    seed = int(given.get("seed", 0)) + 1 + o.seed
    _tell(f"drawing {o.count} images of the scene {scene} into {out}", progress)
    return drawn_table(
        out, scene=SCENES[scene][0], seed=seed, count=o.count, size=size, workers=o.drawers, progress=progress
    )


def _unlabelled(data: Path, to: Path, o: AdaptOptions, given: ModelConfig) -> tuple[Path, int]:
    """Write a table of the images to adapt to, without labels and masks; also the side of the crop that fits them."""
    if data.is_dir():
        files = input_files([data], IMAGE_SUFFIXES, "image", deep=True).values()
        samples: Sequence[Sample] = [Sample(str(f), f.absolute(), "", None) for f in files]
    else:
        samples = read_table(data, fold=o.fold, columns=o.columns, check_files=False).split("train")
    scales, crop = scales_and_crop(samples, given, str(data), o.mpp)
    rows = [
        # Not another µm/px than the table's own: what marks a region of a slide depends on it.
        {"image": s.image, "label": "none", "split": "train", "mpp": s.mpp if sample_mpp(s) else mpp}
        | {"slide_mpp": s.slide_mpp}
        | {key: getattr(s, key) for key in REGION}
        for s, mpp in zip(samples, scales, strict=True)
    ]
    write_table(to, pd.DataFrame(rows).dropna(axis="columns", how="all"))
    return to, crop


def scales_and_crop(
    samples: Sequence[Sample], given: ModelConfig, data: str, mpp: float | None = None
) -> tuple[list[float], int]:
    """The µm/px of samples, and the side of the training crop that fits all of them as a prior looks at them.

    Args:
        samples: what is looked at.
        given: of the prior.
        data: where the samples come from, for messages.
        mpp: of those that do not say it.

    Raises:
        InputError: the scale of one is unknown, or it is too small.
    """
    scales = [scale for sample in samples if (scale := sample_mpp(sample) or mpp) is not None]
    if len(scales) < len(samples):
        raise InputError(
            f"{data}: {len(samples) - len(scales)} of {len(samples)} images do not say their scale, and the prior "
            f"looks at {given.mpp:.4g} µm/px; give --mpp, or fill the table's column mpp"
        )
    crop = given.input.crop
    for sample, scale in zip(samples, scales, strict=True):
        side = round(min(sample_size(sample)) * scale / (given.mpp or 1))
        if side < SMALLEST_SIDE:
            raise InputError(
                f"{sample.name}: its shorter side has {side} px at the {given.mpp:.4g} µm/px of the prior, where "
                f"{SMALLEST_SIDE} are needed; leave such images out, or correct their µm/px"
            )
        crop = min(crop, side // POSITIONS * POSITIONS)
    return scales, crop


def _config(o: TrainingOptions, table: Path) -> RunConfig:
    """What the recipe says, with what was asked for."""
    values = {**read_recipe(o.recipe), "data": str(table), "recipe": o.recipe}
    config = run_config(values, where=f"recipe {o.recipe}")
    if config.method != "prior":
        raise InputError(f"--recipe {o.recipe}: is for {config.method}; give one for prior")
    epochs = config.training.epochs if o.epochs is None else o.epochs
    # One device: more would start this whole command again in every process.
    changes: dict[str, Any] = {"seed": o.seed, "epochs": epochs, "accelerator": o.accelerator, "devices": "1"}
    return replace(config, training=replace(config.training, **changes))


def _command(name: str, options: TrainingOptions, usual: TrainingOptions) -> str:
    """The command with what is not its default, without what names this machine."""
    left_out = ("resume", "drawers", "accelerator", "drawn")
    values = {key: value for key, value in vars(options).items() if value != getattr(usual, key)}
    flags = [f"--{key.replace('_', '-')} {value}" for key, value in values.items() if key not in left_out]
    return " ".join([f"histoloc prior {name}", *flags])


def _write(out: Path, config: RunConfig, facts: dict[str, Any]) -> Path:
    """The finished run as a prior: averaged weights alone, in half precision, and a card."""
    method, trained = load_model(out / "run")
    halved = {name for name, _ in method.named_parameters()}
    weights = averaged(method.state_dict())
    weights["decoder.head.bias"] = weights["decoder.head.bias"] + facts.get("shift", 0.0)
    weights = {n: v.half() if n in halved else v for n, v in weights.items()}
    provenance = {name: value for name, value in trained.provenance.items() if name not in ("table", "fold", "prior")}
    save_model(
        out / "model",
        weights,
        replace(
            trained,
            backbone=config.backbone,
            options=replace(trained.options, average=0.0),
            provenance=provenance | facts,
        ),
    )
    save_images(out / "model", images_seen(out / "run"))
    write_text(out / "model" / "card.md", card(read_model_config(out / "model")))
    return out / "model"


def _tell(text: str, progress: bool) -> None:
    if progress:
        tqdm.write(text, file=sys.stderr)
