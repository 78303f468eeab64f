"""Tiles per second of `histoloc slides predict`, and how long the network waits, against a plain loop and peers.

    python benchmarks/slide.py [SLIDE] [--model FOLDER] [--mpp M] [--tiles N] [--repeats 2]

Without a slide, one of 5,120 px is written (JPEG tiles as scanners write them, half of it tissue); without a model, GAP
on the embedded EfficientNet-Lite0 with a random head. Every way gives the same tiles of the same slide to the same
`Predictor.evidence`, in a process of its own that has loaded the model and been warmed up on a small slide; the ways
take turns, so that a busy machine hurts all alike, and medians are printed. `pip install tiatoolbox` or `lazyslide`
into the environment adds them.

- histoloc: `slides predict` end to end: tissue, tiles, network, stitching with Gaussian weights, map, uncertainty,
  outlines, table of tiles, overview. Also in bf16 and with eight tiles at a time.
- plain loop: for each batch OpenSlide's `read_region` tile by tile, network, sum into an array in memory; one TIFF.
- TIAToolbox: its SemanticSegmentor merges maps at the tiles' resolution, which is how it works, and writes them.
- LazySlide: its feature extraction with probabilities and evidence as features, written to Zarr; no map.

What is counted: all from the call to the last file. What is not: imports, loading the model and, except for histoloc,
finding the tissue and laying out the tiles, which the others are given. `idle` is the share of this whole time outside
the network; `waits` its share between the first and the last batch. The network includes turning tiles into its input.
Memory is the peak of the process; worker processes, which the peers need in order to read ahead, are not in it. `p` is
the mean probability of a class over all tiles: it is the same where the tiles are.
"""

import argparse
import importlib.util
import io
import itertools
import json
import logging
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

# What needs PyTorch is imported where it is used: the peak memory of a process counts what its parent had.

Pixels = NDArray[np.uint8]
_LEVELS = (1, 4, 16)
_FILE_TILE = 256
_TEXTURE = 1024  # period of the written slide's texture, pixels


@dataclass(frozen=True)
class Job:
    """One prediction of one slide."""

    slide: Path
    model: Path
    mpp: float
    tile: int
    overlap: float
    batch: int
    readers: int
    device: str
    precision: Literal["float32", "bf16"]

    @property
    def options(self) -> dict[str, Any]:
        """For `SlideOptions`."""
        return {name: value for name, value in vars(self).items() if name not in ("slide", "model")}


class Figures(NamedTuple):
    """What one run took; `mean` is the last class's mean probability."""

    seconds: float
    tiles: int
    idle: float
    waits: float
    mean: float
    memory_mb: float
    outside_tiles: float | None = None


class Stopwatch:
    """Stands for `Predictor.evidence` and notes when it was called."""

    def __init__(self, evidence: Callable[..., Any]) -> None:
        self.evidence = evidence
        self.calls: list[tuple[float, float, NDArray[np.float32]]] = []

    def __call__(self, tiles: list[Pixels], **options: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        start = time.perf_counter()
        found = self.evidence(tiles, **options)
        self.calls.append((start, time.perf_counter(), found[0]))
        return found


class Ready(NamedTuple):
    """A model and the tiles of a slide, which a process keeps from run to run."""

    predictor: Any
    watch: Stopwatch
    grid: Any
    everywhere: Any


@lru_cache(maxsize=4)
def ready(job: Job) -> Ready:
    """Load and lay out what is not counted; the same tiles as `predict_slide` takes."""
    from histoloc.model_folder import read_model_config
    from histoloc.options import SlideOptions
    from histoloc.slide_cohort import resolved
    from histoloc.slide_prediction import opened_model
    from histoloc.slides.grid import tile_grid
    from histoloc.slides.reader import open_slide
    from histoloc.slides.tiles import TISSUE_MPP, Network
    from histoloc.slides.tissue import tissue

    config = read_model_config(job.model)
    options = resolved(job.model, config, SlideOptions(**job.options, progress=False))
    predictor = opened_model(str(job.model), config.weights_sha256, options)
    if not isinstance(predictor.evidence, Stopwatch):
        vars(predictor)["evidence"] = Stopwatch(predictor.evidence)
    _, cell = Network(predictor.evidence, predictor.stride, job.batch).probe(job.tile)
    with open_slide(job.slide) as slide:
        at = max(TISSUE_MPP, slide.mpp)
        grid = tile_grid(slide, job.mpp, job.tile, job.overlap, cell, mask=tissue(slide, at), mask_mpp=at)
        everywhere = tile_grid(slide, job.mpp, job.tile, job.overlap, cell)
    return Ready(predictor, vars(predictor)["evidence"], grid, everywhere)


def run_histoloc(job: Job, out: Path) -> dict[str, Any]:
    from histoloc.options import SlideOptions
    from histoloc.slide_cohort import predict_slides

    predict_slides(job.model, [job.slide], out, SlideOptions(**job.options, progress=False))
    return json.loads((out / job.slide.stem / "slide.json").read_text())["cost"]


def run_plain(job: Job, out: Path) -> None:
    import openslide

    from histoloc.slides.tiles import on_cells

    predictor, _, grid, _ = ready(job)
    maps: NDArray[np.float32] | None = None
    count = np.zeros((grid.rows + grid.side, grid.columns + grid.side), np.float32)
    with openslide.OpenSlide(str(job.slide)) as slide:
        level = slide.get_best_level_for_downsample(grid.downsample * 1.01)
        side = round(grid.tile * grid.downsample / slide.level_downsamples[level])
        for start in range(0, len(grid.positions), job.batch):
            batch = grid.positions[start : start + job.batch]
            tiles = []
            for x, y in batch * grid.downsample:
                picture = slide.read_region((round(x), round(y)), level, (side, side)).convert("RGB")
                tiles.append(np.array(picture if side == grid.tile else picture.resize((grid.tile, grid.tile))))
            _, values = predictor.evidence(tiles, precision=job.precision)
            if maps is None:
                maps = np.zeros((values.shape[1], *count.shape), np.float32)
            cells = on_cells(values, predictor.stride, grid.tile, grid.side)
            for (x, y), value in zip(batch // grid.cell, cells, strict=True):
                maps[:, y : y + grid.side, x : x + grid.side] += value
                count[y : y + grid.side, x : x + grid.side] += 1
    assert maps is not None
    mean = (maps[0] / np.maximum(count, 1))[: grid.rows, : grid.columns]
    grey = np.interp(mean, (mean.min(), mean.max()), (0, 255)).astype(np.uint8)
    tifffile.imwrite(out / "map.tif", grey, tile=(_FILE_TILE, _FILE_TILE), compression="zlib")


def run_tiatoolbox(job: Job, out: Path) -> None:
    import torch
    from tiatoolbox.models.engine.io_config import IOSegmentorConfig  # pyright: ignore[reportMissingImports]
    from tiatoolbox.models.engine.semantic_segmentor import SemanticSegmentor  # pyright: ignore[reportMissingImports]
    from tiatoolbox.models.models_abc import ModelABC  # pyright: ignore[reportMissingImports]

    logging.disable(logging.WARNING)
    predictor, _, grid, everywhere = ready(job)

    class Network(ModelABC):
        def forward(self, tiles: torch.Tensor) -> torch.Tensor:
            _, values = predictor.evidence(list(tiles.numpy()), precision=job.precision)
            return torch.nn.functional.interpolate(torch.from_numpy(values), size=(grid.tile, grid.tile))

        @staticmethod
        def infer_batch(model: torch.nn.Module, batch_data: torch.Tensor, *, device: str) -> NDArray[np.float32]:
            return model(batch_data).permute(0, 2, 3, 1).contiguous().numpy()

        @staticmethod
        def postproc(image: Any) -> Any:
            return image.argmax(-1)

    def boxes(positions: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.concatenate([positions, positions + grid.tile], axis=1)

    class Engine(SemanticSegmentor):
        def get_dataloader(self, *given: Any, **options: Any) -> Any:
            loader = super().get_dataloader(*given, **options)
            loader.dataset.inputs = loader.dataset.outputs = boxes(grid.positions)
            loader.dataset.full_outputs = boxes(everywhere.positions)
            return loader

    shape, step = (grid.tile, grid.tile), (grid.step, grid.step)
    resolution = [{"units": "mpp", "resolution": grid.mpp}]
    config = IOSegmentorConfig(resolution, shape, step, resolution, patch_output_shape=shape)
    engine = Engine(Network(), batch_size=job.batch, num_workers=job.readers, device=job.device, verbose=False)
    own = grid.mpp / grid.downsample
    engine.run(
        [job.slide], ioconfig=config, patch_mode=False, auto_get_mask=False, save_dir=out / "tiatoolbox",
        output_type="zarr", return_probabilities=True, wsireader_kwargs={"mpp": (own, own)},
    )  # fmt: skip


def run_lazyslide(job: Job, out: Path) -> None:
    import lazyslide  # pyright: ignore[reportMissingImports]
    import torch
    from wsidata import TileSpec, open_wsi  # pyright: ignore[reportMissingImports]
    from wsidata.io import add_tiles  # pyright: ignore[reportMissingImports]

    warnings.simplefilter("ignore")
    predictor, _, grid, _ = ready(job)

    def network(batch: torch.Tensor) -> NDArray[np.float32]:
        probabilities, values = predictor.evidence(list(batch.cpu().numpy()), precision=job.precision)
        return np.concatenate([probabilities, values.reshape(len(values), -1)], axis=1)

    wsi = open_wsi(job.slide, store=str(out / "lazyslide.zarr"))
    spec = TileSpec.from_wsidata(wsi, grid.tile, stride_px=grid.step, mpp=grid.mpp)
    places = np.rint(grid.positions * grid.downsample).astype(int)
    add_tiles(wsi, "tiles", places, spec, np.zeros(len(places), int))
    lazyslide.tl.feature_extraction(
        wsi, network, model_name="histoloc", transform=np.ascontiguousarray, device=job.device, amp=False,
        batch_size=job.batch, num_workers=job.readers, pbar=False,
    )  # fmt: skip
    wsi.write()


WAYS: dict[str, Callable[[Job, Path], dict[str, Any] | None]] = {
    "histoloc": run_histoloc,
    "plain loop": run_plain,
    "TIAToolbox": run_tiatoolbox,
    "LazySlide": run_lazyslide,
}
PEERS = {"TIAToolbox": "tiatoolbox", "LazySlide": "lazyslide"}


def measure(way: str, job: Job) -> Figures:
    """Run one way once, in the process that is its own."""
    from histoloc.progress import peak_memory

    watch, number = ready(job).watch, len(ready(job).grid.positions)
    with tempfile.TemporaryDirectory() as temporary:
        watch.calls.clear()
        start = time.perf_counter()
        told = WAYS[way](job, Path(temporary))
        seconds = time.perf_counter() - start
    # histoloc's first call only asks the network for its stride.
    calls = watch.calls if told is None else watch.calls[1:]
    probabilities = np.concatenate([found for _, _, found in calls])
    if len(probabilities) != number:
        raise RuntimeError(f"{way} gave the network {len(probabilities)} tiles, not {number}")
    busy = sum(end - begin for begin, end, _ in calls)
    waits = 1 - busy / (calls[-1][1] - calls[0][0])
    mean = float(probabilities[:, -1].mean())
    figures = Figures(seconds, number, 1 - busy / seconds, waits, mean, peak_memory() / 1e6)
    if told is None:
        return figures
    outside = seconds - number / told["tiles_per_second"]
    return figures._replace(outside_tiles=outside)


@lru_cache(maxsize=1)
def _texture() -> Pixels:
    """(period, period, 3): stained tissue with nuclei."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    noise = gaussian_filter(rng.normal(size=(_TEXTURE, _TEXTURE)), 5, mode="wrap")
    nuclei = gaussian_filter((noise > 1.2 * noise.std()).astype(float), 1.5, mode="wrap")[..., None]
    colour = (1 - nuclei) * np.asarray((225, 165, 200)) + nuclei * np.asarray((95, 55, 130))
    return np.clip(colour + rng.normal(0, 6, (_TEXTURE, _TEXTURE, 1)), 0, 255).astype(np.uint8)


def drawn(side: int) -> Callable[[int, int, int], Pixels]:
    """A slide of `side` px with an ellipse of tissue: (x, y, factor) in pixels of a level -> a tile of the file."""

    def pixels(x: int, y: int, factor: int) -> Pixels:
        rows, columns = (np.arange(start, start + _FILE_TILE) * factor for start in (y, x))
        inside = ((rows[:, None] / side - 0.5) ** 2 + (columns / side - 0.5) ** 2) < 0.4**2
        stained = _texture()[np.ix_(rows % _TEXTURE, columns % _TEXTURE)]
        return np.where(inside[..., None], stained, np.uint8(243))

    return pixels


def write_slide(path: Path, side: int, mpp: float, pixels: Callable[[int, int, int], Pixels]) -> Path:
    """Write a pyramid of JPEG tiles."""

    def tiles(length: int, factor: int) -> Iterator[bytes]:
        for y, x in itertools.product(range(0, length, _FILE_TILE), repeat=2):
            file = io.BytesIO()
            Image.fromarray(pixels(x, y, factor)).save(file, format="JPEG", quality=85, subsampling="4:2:0")
            yield file.getvalue()

    with tifffile.TiffWriter(path) as file:
        for factor in _LEVELS:
            length = -(-side // factor)
            file.write(
                tiles(length, factor), shape=(length, length, 3), dtype=np.uint8, tile=(_FILE_TILE, _FILE_TILE),
                compression="zlib", photometric="rgb", metadata=None, subfiletype=int(factor > 1),
                resolution=(1e4 / (mpp * factor), 1e4 / (mpp * factor)), resolutionunit="CENTIMETER",
            )  # fmt: skip
    with tifffile.TiffFile(path, mode="r+") as file:
        # Said afterwards, because tifffile takes ready JPEG tiles only where it could make them itself.
        for page in file.pages:
            page.aspage().tags["Compression"].overwrite(7)
            page.aspage().tags["PhotometricInterpretation"].overwrite(6)
    return path


def write_middle(path: Path, source: Path, side: int) -> Path:
    """Copy the middle of a slide."""
    from histoloc.slides.reader import open_slide

    with open_slide(source) as slide:
        left, top = (slide.width - side) // 2, (slide.height - side) // 2

        def pixels(x: int, y: int, factor: int) -> Pixels:
            return slide.read(left + x * factor, top + y * factor, _FILE_TILE, _FILE_TILE, slide.mpp * factor)

        return write_slide(path, side, slide.mpp, pixels)


def write_model(folder: Path, mpp: float) -> Path:
    """GAP with ImageNet features and a random head."""
    import torch

    from histoloc.data.transforms import InputConfig
    from histoloc.model_folder import ModelConfig, build_method, save_model

    torch.manual_seed(0)
    config = ModelConfig("gap", ("normal", "metastatic"), input=InputConfig(small_side=0), mpp=mpp)
    save_model(folder, build_method(config, load_backbone=True).state_dict(), config)
    return folder


def set_up(arguments: argparse.Namespace, folder: Path) -> tuple[Job, Job]:
    """Write what was not given; the job, and a smaller one to warm up with."""
    from histoloc.model_folder import find_model, read_model_config
    from histoloc.slides.reader import open_slide

    slide = arguments.slide or write_slide(folder / "drawn.tif", 5120, 0.25, drawn(5120))
    with open_slide(slide) as opened:
        size, own = opened.size, opened.mpp
    mpp = arguments.mpp or (read_model_config(arguments.model).mpp if arguments.model else None) or own
    if arguments.tiles:
        step = arguments.tile * (1 - arguments.overlap)
        side = (arguments.tile + step * (int(arguments.tiles**0.5) - 1)) * mpp / own
        slide = write_middle(folder / "middle.tif", slide, min(int(side), *size))
    model = find_model(arguments.model or write_model(folder / "model", mpp)).absolute()
    job = Job(
        Path(slide).absolute(), model, mpp, arguments.tile, arguments.overlap, arguments.batch, arguments.readers,
        arguments.device, "float32",
    )  # fmt: skip
    small = round(2 * arguments.tile * mpp / own)
    return job, replace(job, slide=write_middle(folder / "small.tif", job.slide, min(small, *size)))


def variants(job: Job) -> dict[str, tuple[str, Job]]:
    """Name -> way and job, of what can be run here."""
    found = {
        "histoloc": ("histoloc", job),
        "histoloc, bf16": ("histoloc", replace(job, precision="bf16")),
        "histoloc, batch 8": ("histoloc", replace(job, batch=8)),
        "plain loop": ("plain loop", job),
    }
    for name, package in PEERS.items():
        if importlib.util.find_spec(package) is None:
            print(f"{name}: not installed (pip install {package})")
        else:
            found[name] = (name, job)
    return found


def show(name: str, runs: list[Figures], base: list[Figures]) -> None:
    middle = Figures(*(statistics.median(column) for column in zip(*(run[:6] for run in runs), strict=True)))
    theirs, ours = (statistics.median(run.seconds for run in some) for some in (runs, base))
    print(
        f"{name:18}{middle.seconds:7.2f} s {middle.tiles / theirs:6.2f} tiles/s, histoloc is {theirs / ours:5.2f}x; "
        f"idle {middle.idle:6.1%}, waits {middle.waits:6.1%}, peak {runs[-1].memory_mb:5.0f} MB, p {middle.mean:.4f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path, nargs="?")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--mpp", type=float, help="by default the model's, or else the slide's own")
    parser.add_argument("--tiles", type=int, help="copy as much of the slide's middle as has about so many tiles")
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--overlap", type=float, default=0.25)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--readers", type=int, default=1, help="reading threads, or the peers' worker processes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=[], help="ways that are run besides histoloc, by their names")
    arguments = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as temporary:
        with ProcessPoolExecutor(1, spawn) as process:
            job, small = process.submit(set_up, arguments, Path(temporary)).result()
        ways = {n: w for n, w in variants(job).items() if not arguments.only or n in ("histoloc", *arguments.only)}
        processes = {name: ProcessPoolExecutor(1, spawn) for name in ways}
        runs: dict[str, list[Figures]] = {name: [] for name in ways}
        for repeat in range(arguments.repeats + 1):  # the first round warms up
            for name in list(runs):
                way, own = ways[name]
                given = own if repeat else replace(own, slide=small.slide)
                runs[name] += [processes[name].submit(measure, way, given).result()][: 1 if repeat else 0]
        for process in processes.values():
            process.shutdown()
    ours = runs["histoloc"]
    print(
        f"{job.slide.name}: {ours[0].tiles} tiles of {job.tile} px at {job.mpp:g} µm/px, overlap {job.overlap:g}, "
        f"batch {job.batch}, {job.device}, {os.environ.get('OMP_NUM_THREADS', os.cpu_count())} threads, float32, "
        f"median of {arguments.repeats}"
    )
    for name, some in runs.items():
        show(name, some, ours)
    outside = statistics.median(run.outside_tiles or 0 for run in ours)
    print(f"histoloc: {outside:.2f} s for tissue, stitching and files")


if __name__ == "__main__":
    sys.exit(main())
