import csv
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from scipy.stats import ks_2samp

from histoloc.datasets.synthetic.dataset import CLASSES, SyntheticImage, render, synthetic_table
from histoloc.datasets.synthetic.glands import AREA_RANGE, Label, lay_out, noise
from histoloc.datasets.synthetic.tissue import _along, splat
from histoloc.errors import InputError

PER_CLASS = 40


@cache
def images(label: Label) -> tuple[SyntheticImage, ...]:
    return tuple(render(label, seed=11, index=i, height=192, width=240) for i in range(PER_CLASS))


def per_image(label: Label, measure) -> np.ndarray:
    return np.array([measure(sample) for sample in images(label)])


def gland_share(sample: SyntheticImage) -> float:
    return float((sample.instances > 0).mean())


def stroma_colour(sample: SyntheticImage) -> np.ndarray:
    """Mean and spread of each channel outside the glands; the blur mixes the first pixels beside them."""
    far = ndimage.distance_transform_edt(sample.instances == 0)
    pixels = sample.image[np.asarray(far) > 3].astype(float)
    return np.concatenate([pixels.mean(axis=0), pixels.std(axis=0)])


def standard_errors_apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    error = np.sqrt(a.var(axis=0, ddof=1) / len(a) + b.var(axis=0, ddof=1) / len(b))
    return np.abs(a.mean(axis=0) - b.mean(axis=0)) / error


@pytest.mark.parametrize("label", CLASSES)
def test_render_is_a_pure_function_of_its_arguments(label):
    first, again = (render(label, seed=3, index=5, height=96, width=128) for _ in range(2))
    assert first.image.tobytes() == again.image.tobytes()
    assert first.instances.tobytes() == again.instances.tobytes()
    for seed, index in ((3, 6), (4, 5)):
        other = render(label, seed=seed, index=index, height=96, width=128)
        assert not np.array_equal(first.image, other.image)
    assert first.image.shape == (96, 128, 3)
    assert first.instances.shape == (96, 128)
    assert (first.image.dtype, first.instances.dtype, first.label) == (np.uint8, np.uint16, label)


@pytest.mark.parametrize("label", CLASSES)
def test_instances_are_numbered_without_gaps_and_cover_a_plausible_share(label):
    for sample in images(label):
        present = np.unique(sample.instances)
        assert np.array_equal(present, np.arange(len(present)))
        assert len(present) >= 4
        assert AREA_RANGE[0] - 0.05 <= gland_share(sample) <= AREA_RANGE[1] + 0.02


@pytest.mark.parametrize("label", CLASSES)
def test_area_hits_its_target(label):
    """The target is the first number drawn; only slivers and seams between glands may be missing from it."""
    for seed in range(10):
        target = np.random.default_rng(seed).uniform(*AREA_RANGE)
        glands = lay_out(np.random.default_rng(seed), label, (200, 240), 14)
        share = (glands.instances > 0)[14:-14, 14:-14].mean()
        assert target - 0.05 < share < target + 0.02
        assert np.array_equal(glands.depth > 0, glands.instances > 0)
        assert (glands.reach >= glands.depth).all()


def test_gland_area_does_not_give_the_class_away():
    benign, malignant = (per_image(label, gland_share) for label in CLASSES)
    assert ks_2samp(benign, malignant).pvalue > 0.05
    assert standard_errors_apart(benign, malignant) < 2


def test_stroma_is_drawn_from_one_distribution_for_both_classes():
    benign, malignant = (per_image(label, stroma_colour) for label in CLASSES)
    assert (standard_errors_apart(benign, malignant) < 3).all()
    assert all(ks_2samp(a, b).pvalue > 0.01 for a, b in zip(benign.T, malignant.T, strict=True))


def test_mean_colour_overlaps_between_the_classes():
    benign, malignant = (per_image(label, lambda s: s.image.mean(axis=(0, 1))) for label in CLASSES)
    spread = np.sqrt((benign.var(axis=0) + malignant.var(axis=0)) / 2)
    assert (np.abs(benign.mean(axis=0) - malignant.mean(axis=0)) < 0.6 * spread).all()


def test_benign_glands_have_a_dark_border_and_a_light_middle():
    for sample in images("benign"):
        red = sample.image[..., 0].astype(float)  # haematoxylin absorbs red, eosin hardly does
        depth = np.asarray(ndimage.distance_transform_edt(sample.instances > 0))
        ring, middle = red[(depth > 3) & (depth < 7)].mean(), red[depth > 20].mean()
        stroma = red[sample.instances == 0].mean()
        assert ring + 40 < middle
        assert ring + 20 < stroma


def test_malignant_nuclei_are_stratified():
    """Beyond the first row of nuclei, malignant glands are still dark where benign ones hold mucin."""

    def contrast(sample: SyntheticImage) -> float:
        red = sample.image[..., 0].astype(float)
        depth = np.asarray(ndimage.distance_transform_edt(sample.instances > 0))
        return red[(depth > 10) & (depth < 14)].mean() - red[(depth > 3) & (depth < 7)].mean()

    benign, malignant = (per_image(label, contrast) for label in CLASSES)
    assert np.quantile(malignant, 0.9) < np.quantile(benign, 0.1)


def test_noise_has_unit_variance_and_the_asked_direction():
    field = noise(np.random.default_rng(0), (300, 300), 6, 1.0, angle=0.0)
    assert abs(float(field.std()) - 1) < 0.15
    along, across = ((np.diff(field, axis=axis) ** 2).mean() for axis in (1, 0))
    # Smoothing by a Gaussian of deviation s leaves an expected squared step of 2 (1 - exp(-1 / 4 s^2)).
    assert along == pytest.approx(2 * (1 - np.exp(-1 / (4 * 36))), rel=0.2)
    assert across == pytest.approx(2 * (1 - np.exp(-1 / 4)), rel=0.2)


def test_points_along_a_circle_are_evenly_spaced_and_tangent():
    y, x = np.mgrid[:101, :101].astype(float)
    points, angles = _along(np.random.default_rng(0), np.hypot(x - 50, y - 50), 30.0, 6.0)
    assert len(points) == int(2 * np.pi * 30 / 6)
    assert np.hypot(*(points - 50).T) == pytest.approx(30, abs=0.1)
    radial = (points - 50) / 30
    tangent = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert np.median(np.abs((radial * tangent).sum(axis=1))) < 0.1


def testsplat_draws_an_ellipse_of_the_right_area_and_keeps_the_greater_weight():
    centres, radii = np.array([[20.0, 15.0], [20.0, 15.0]]), np.array([[6.0, 3.0], [2.0, 2.0]])
    drawn = splat((30, 40), centres, radii, np.zeros(2), np.array([0.5, 0.8]))
    assert (drawn >= 0.25).sum() == pytest.approx(np.pi * 6 * 3, rel=0.1)
    assert drawn[15, 20] == pytest.approx(0.8)
    assert drawn[15, 24] == pytest.approx(0.5)
    assert drawn[19, 20] == 0


def test_table_reads_back_and_a_second_run_gives_the_same_bytes(tmp_path):
    table = synthetic_table(out=tmp_path / "a", count=20, seed=2, height=64, width=80).table
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    assert list(rows[0]) == ["image", "label", "mask", "split", "group", "mpp", "drawn_scene"]
    counts = {(label, split): 0 for label in CLASSES for split in ("train", "valid", "test")}
    for index, row in enumerate(rows):
        counts[row["label"], row["split"]] += 1
        assert row["label"] == CLASSES[index % 2]
        sample = render(CLASSES[index % 2], seed=2, index=index, height=64, width=80)
        assert np.array_equal(np.asarray(Image.open(table.parent / row["image"])), sample.image)
        assert np.array_equal(np.asarray(Image.open(table.parent / row["mask"])), sample.instances)
        assert (row["group"], float(row["mpp"]), row["drawn_scene"]) == ("", 1.0, "glands")
    assert counts == {(c, s): n for c in CLASSES for s, n in (("train", 6), ("valid", 2), ("test", 2))}
    again = synthetic_table(out=tmp_path / "b", count=20, seed=2, height=64, width=80).table
    files = sorted(p.relative_to(table.parent) for p in table.parent.rglob("*") if p.is_file())
    assert len(files) == 41
    assert all((table.parent / f).read_bytes() == (again.parent / f).read_bytes() for f in files)


def test_fewer_images_are_the_beginning_of_more(tmp_path):
    small = synthetic_table(out=tmp_path / "s", count=10, height=64, width=64).table.read_text().splitlines()
    large = synthetic_table(out=tmp_path / "l", count=13, height=64, width=64).table.read_text().splitlines()
    assert large[: len(small)] == small


def test_bad_input_is_named(tmp_path):
    with pytest.raises(InputError, match="count 9"):
        synthetic_table(out=tmp_path, count=9)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        synthetic_table(out=tmp_path / "file", count=10)
    with pytest.raises(InputError, match="'odd'"):
        render("odd", seed=0, index=0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="seed -1"):
        render("benign", seed=-1, index=0)
    with pytest.raises(InputError, match="32 x 256"):
        render("benign", seed=0, index=0, width=32)


def test_an_interrupted_run_leaves_no_table(tmp_path: Path, monkeypatch):
    synthetic_table(out=tmp_path, count=10, height=64, width=64)
    real = render

    def fail(*args, index: int, **options):
        if index == 7:
            raise KeyboardInterrupt
        return real(*args, index=index, **options)

    monkeypatch.setattr("histoloc.datasets.synthetic.dataset.render", fail)
    with pytest.raises(KeyboardInterrupt):
        synthetic_table(out=tmp_path, count=10, seed=1, height=64, width=64)
    assert not (tmp_path / "table.csv").exists()
