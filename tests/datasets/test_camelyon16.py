"""Camelyon16-P512 on slides of the factory: here and not in tests/data, because the factory lies here."""

import csv
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw

import camelyon_root
from asap import write_asap
from factory import Region, blob, box, make_slide
from histoloc.cli.main import main
from histoloc.data.images import read_image, read_mask
from histoloc.data.pixels import read_pixels, read_truth
from histoloc.data.table import read_table
from histoloc.datasets.camelyon16.folder import find_slides
from histoloc.datasets.camelyon16.names import parse_patch_name
from histoloc.datasets.camelyon16.protocol import draw_slide, scan_slide
from histoloc.datasets.camelyon16.table import camelyon16_table
from histoloc.datasets.options import CamelyonOptions, Sampling
from histoloc.datasets.patches import calibration_size
from histoloc.errors import InputError
from histoloc.runner import JobOptions
from histoloc.slides.reader import open_slide
from histoloc.slides.tissue import protocol_tissue

SIZE, WIDTH, HEIGHT, MPP = 64, 768, 640, 0.25
SAMPLING = Sampling(size=SIZE, coarse=3)
TISSUE = box("tissue", 40, 40, 600, 560)


def tumour_regions(seed: int) -> list[Region]:
    """A large one with a hole, one that leaves the tissue, one within the large one's box, a small one."""
    return [
        TISSUE,
        blob("metastasis", 230, 240, 140, seed),
        box("metastasis", 200, 210, 30, 30),
        box("hole", 250, 230, 60, 50),
        blob("metastasis", 610, 450, 70, seed + 1),
        box("metastasis", 420.4, 101.6, 45, 40),
    ]


def make_root(root: Path, training: int = 3, testing: int = 2) -> Path:
    """An official folder with `training` slides of each class and `testing` of each class."""
    return camelyon_root.make_root(
        root, (WIDTH, HEIGHT), MPP, [TISSUE], tumour_regions, training=training, testing=testing
    )


def build(root: Path, out: Path, sampling: Sampling = SAMPLING, **options):
    jobs = JobOptions(workers=1, progress=False)
    return camelyon16_table(root, out=out, sampling=sampling, options=CamelyonOptions(**options), jobs=jobs)


def provenance(out: Path) -> dict:
    return json.loads((out / "provenance.json").read_text())


def listed(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "patches.csv", keep_default_na=False, dtype={"region": str, "row": str})


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Do not write into it."""
    return make_root(tmp_path_factory.mktemp("camelyon16"))


@pytest.fixture(scope="module")
def made(root, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("p64")
    assert build(root, out).warnings == []
    return out


def published_mask(regions) -> np.ndarray:
    """The tumour of the whole slide: one picture for each polygon, filled and outlined, holes ignored."""
    masks = []
    for region in regions:
        picture = Image.new("1", (WIDTH, HEIGHT))
        points = [(round(x), round(y)) for x, y in region.vertices]
        ImageDraw.Draw(picture).polygon(points, fill=1, outline=1)
        masks.append(np.asarray(picture))
    return np.logical_or.reduce(masks)


def brute_force(path: Path, regions) -> list[list[float]]:
    """The scan, one window at a time."""
    positive = [r for r in regions if r.kind == "metastasis"]
    tumour, result = published_mask(positive), []
    with open_slide(path) as slide:
        pixels = slide.read(0, 0, WIDTH, HEIGHT, MPP)
    boxes = []
    for region in positive:
        xs, ys = zip(*[(round(x), round(y)) for x, y in region.vertices], strict=True)
        boxes.append((min(xs), min(ys), max(xs), max(ys)))
    nested = [any(i != j and a[0] >= b[0] and a[1] >= b[1] and a[2] <= b[2] and a[3] <= b[3]
                  for j, b in enumerate(boxes)) for i, a in enumerate(boxes)]  # fmt: skip
    boxes = [b for b, inside in zip(boxes, nested, strict=True) if not inside]
    seen = set()
    for region, (left, top, right, bottom) in enumerate(boxes):
        left, right = max(left - SIZE, 0), min(right + SIZE, WIDTH)
        top, bottom = max(top - SIZE // 2, 0), min(bottom + SIZE, HEIGHT)
        for row in range((bottom - top) // SIZE):
            y = top + row * SIZE
            tissue = protocol_tissue(pixels[y : y + SIZE, left:right])
            columns = np.flatnonzero(tumour[y : y + SIZE, left:right].any(axis=0))
            if not len(columns):
                continue
            x, patch, first = max(columns[0] + left - SIZE, left), 0, False
            while x + SIZE <= right:
                shares = tissue[:, x - left : x - left + SIZE].mean(), tumour[y : y + SIZE, x : x + SIZE].mean()
                if shares[0] >= 0.1 and shares[1] >= 0.2:
                    if (x, y) not in seen:
                        result.append([region, row, patch, x, y, *shares])
                    seen.add((x, y))
                    patch, first = patch + 1, True
                x += SIZE if first else 1
    return result


@pytest.mark.parametrize("seed", [3, 4, 11])
def test_scan_equals_brute_force(tmp_path, seed):
    regions = tumour_regions(seed)
    make_slide(tmp_path / "a.tif", (WIDTH, HEIGHT), MPP, regions, downsamples=(1, 8))
    xml = write_asap(tmp_path / "a.xml", regions)
    got = scan_slide({"slide": str(tmp_path / "a.tif"), "annotations": str(xml)}, vars(SAMPLING))
    wanted = brute_force(tmp_path / "a.tif", regions)
    assert len(wanted) > 15
    assert {patch[0] for patch in wanted} == {0, 1, 2}
    assert np.array_equal(np.array(got["patches"]), np.array(wanted))
    assert got["mpp"] == MPP


def test_every_patch_obeys_every_rule(root, made):
    table, patches = read_table(made / "table.csv"), listed(made)
    assert len(table.samples) == len(patches)
    for sample, row in zip(table.samples, patches.to_dict("records"), strict=True):
        name = parse_patch_name(row["name"])
        assert (name.x, name.y, name.width, name.height) == (sample.x, sample.y, sample.width, sample.height)
        assert name.slide == row["slide"].replace("/", "-")
        assert sample.image == (root / row["slide"]).resolve()
        assert (sample.group, sample.split, sample.label) == (row["slide"], row["split"], row["label"])
        assert (row["split"] == "test") == row["slide"].startswith("testing/")
        assert float(name.tissue) >= 0.1
        if sample.label == "tumor":
            truth = read_truth(sample)
            assert truth is not None
            assert truth.mean() == float(name.metastatic or 0) >= 0.2
            assert sample.mask is not None
            assert sample.mask == (made / "masks" / f"mask_{row['name']}").resolve()
            assert set(np.unique(np.asarray(Image.open(sample.mask)))) <= {0, 255}
        else:
            assert sample.mask is None
            assert protocol_tissue(read_pixels(sample)).mean() == float(name.tissue)
            assert name.x % SIZE == name.y % SIZE == 0
    labels = Counter((sample.split, sample.label) for sample in table.samples)
    for split in ("train", "valid", "test"):
        assert labels[split, "normal"] == labels[split, "tumor"] > 0
        of_split = patches[patches["split"] == split]
        numbers = of_split[of_split["label"] == "normal"].groupby("slide").size()
        slides = 1 if split == "valid" else 2
        rest = labels[split, "normal"] % slides
        assert numbers.tolist() == [labels[split, "normal"] // slides + (i < rest) for i in range(slides)]


def test_calibration_keeps_all_small_shares_and_counts(root, made):
    record, patches = provenance(made), listed(made)
    tumours = patches[patches["label"] == "tumor"]
    for part in ("train", "test"):
        slides = [slide for slide in find_slides(root).slides if slide.part == part and slide.label == "tumor"]
        scans = [scan_slide({"slide": str(s.path), "annotations": str(s.annotations)}, vars(SAMPLING)) for s in slides]
        shares = np.array([patch[6] for scan in scans for patch in scan["patches"]])
        rest = int((shares <= 0.5).sum())
        drawn = min(calibration_size(rest, part), len(shares) - rest)
        assert 0 < drawn < len(shares) - rest
        assert record["counts"][part] == {
            "before": len(shares), "up_to_p1": rest, "above_p1": len(shares) - rest, "drawn_above_p1": drawn,
            "after": rest + drawn,
        }  # fmt: skip
        mine = tumours[(tumours["split"] == "test") == (part == "test")]["metastatic"].astype(float)
        assert sorted(mine[mine <= 0.5]) == sorted(shares[shares <= 0.5])
        assert len(mine) == rest + drawn
    assert record["failed"] == record["left_out"] == {}
    assert sum(slide["patches"] for slide in record["slides"]) == len(patches)
    assert record["seed"] == record["fold"] == 0
    assert record["parameters"] == {**vars(SAMPLING), "stride": SIZE}


def test_seed_decides_and_nothing_else(root, made, tmp_path):
    build(root, tmp_path / "again")
    assert listed(tmp_path / "again").equals(listed(made))
    build(root, tmp_path / "again", seed=1)
    other = listed(tmp_path / "again")
    assert set(other["name"]) != set(listed(made)["name"])
    assert len(other) == len(listed(made))
    build(root, tmp_path / "again", fold=1)
    assert set(listed(tmp_path / "again").query("split == 'valid'")["slide"]).isdisjoint(
        listed(made).query("split == 'valid'")["slide"]
    )


def test_a_second_call_scans_nothing_again(root, made, monkeypatch):
    before = (made / "table.csv").read_bytes()
    monkeypatch.setattr("histoloc.datasets.camelyon16.protocol.open_slide", None)
    assert build(root, made).warnings == []
    assert (made / "table.csv").read_bytes() == before
    with pytest.raises(InputError, match="begun with other settings"):
        build(root, made, Sampling(size=SIZE, coarse=3, p0=0.3))


def write_list(path: Path, patches: pd.DataFrame, prefix: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        for row in patches.to_dict("records"):
            name = row["name"].replace("Patch_file_", f"Patch_file_{prefix}")
            mask = f"some/mask_{name}" if row["label"] == "tumor" else ""
            csv.writer(file).writerow([f"some/folder/{name}", mask, row["label"]])
    return path


def test_a_list_of_names_gives_the_same_table(root, made, tmp_path):
    patches = listed(made)
    write_list(tmp_path / "list.csv", patches.sample(frac=1, random_state=0))
    for split, rows in patches.groupby("split"):
        write_list(tmp_path / f"folder/split_0/{split}_s_0.csv", rows)
    for source in (tmp_path / "list.csv", tmp_path / "folder", made / "patches.csv"):
        out = tmp_path / f"from-{source.stem}"
        assert build(root, out, patches_from=source).warnings == []
        assert listed(out).equals(patches)
        wanted, got = read_table(made / "table.csv"), read_table(out / "table.csv")
        for a, b in zip(wanted.samples, got.samples, strict=True):
            assert (a.image, a.x, a.y, a.split, a.mpp) == (b.image, b.x, b.y, b.split, b.mpp)
            assert (a.mask is None) == (b.mask is None)
            if a.mask is not None and b.mask is not None:
                assert a.mask.read_bytes() == b.mask.read_bytes()


def test_lists_of_other_roots_and_unknown_slides(root, made, tmp_path):
    patches = listed(made)
    source = write_list(tmp_path / "list.csv", patches, prefix="CAMELYON16-")
    with source.open("a") as file:
        file.write("Patch_file_training-normal-normal_900.tif_patch_0_x_0_y_0_tissue_1.0_w_64_h_64.png,,normal\n")
    result = build(root, tmp_path / "out", patches_from=source)
    assert len(listed(tmp_path / "out")) == len(patches)
    assert provenance(tmp_path / "out")["counts"]["of_unknown_slides"] == {"training-normal-normal_900.tif": 1}
    assert "1 of its slides are not there: training-normal-normal_900.tif (1)" in result.warnings[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Patch_file_a.tif_patch_0_x_0_y_0_tissue_1.0_w_64_h_64.png,,tumor\n", "named .normal.; correct it"),
        ("Patch_file_a.tif_patch_0_x_0_y_0_tissue_1.0_w_64_h_64.png,,normal\n", "are not there"),
        ("image_1.png,,normal\n", "no name of a published patch"),
        ("", "it is empty"),
    ],
)
def test_lists_that_cannot_be_used(root, tmp_path, text, message):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        build(root, tmp_path / "out", patches_from=tmp_path / "list.csv")
    with pytest.raises(InputError, match="no list of patches"):
        build(root, tmp_path / "out", patches_from=tmp_path / "none.csv")


def test_a_listed_patch_outside_its_slide_fails_the_slide(root, made, tmp_path):
    patches = listed(made)
    first = next(n for n in patches["name"] if parse_patch_name(n).label == "normal" and "training" in n)
    wrong = first.replace(f"_x_{parse_patch_name(first).x}_", "_x_5000_")
    source = write_list(tmp_path / "list.csv", patches.assign(name=patches["name"].replace(first, wrong)))
    result = build(root, tmp_path / "out", patches_from=source)
    (reason,) = result.failed.values()
    assert "but the slide at 768, 640" in reason


def test_failures_are_told_and_repaired(root, made, tmp_path):
    broken = tmp_path / "root"
    shutil.copytree(root, broken)
    xml, slide = broken / "training/lesion_annotations/tumor_001.xml", broken / "testing/images/test_001.tif"
    missing = broken / "training/lesion_annotations/tumor_002.xml"
    whole = {path: path.read_bytes() for path in (xml, slide, missing)}
    xml.write_bytes(whole[xml][: len(whole[xml]) // 2])
    slide.write_bytes(whole[slide][:3000])
    missing.unlink()
    record = provenance(made)
    fold = next(s["fold"] for s in record["slides"] if s["slide"].endswith("tumor_001.tif"))
    result = build(broken, tmp_path / "out", fold=fold)
    failed = result.failed
    assert set(failed) == {
        "training/tumor/tumor_001.tif",
        "training/tumor/tumor_002.tif",
        "testing/images/test_001.tif",
    }
    assert "cut off" in failed["training/tumor/tumor_001.tif"]
    assert "no tumor_002.xml" in failed["training/tumor/tumor_002.tif"]
    assert any("3 slide(s) failed" in warning and "without them" in warning for warning in result.warnings)
    before = {slide["slide"]: slide["fold"] for slide in record["slides"]}
    assert all(slide["fold"] == before[slide["slide"]] for slide in provenance(tmp_path / "out")["slides"])
    rows = listed(tmp_path / "out")
    assert not set(failed) & set(rows["slide"])
    for _, of_split in rows.groupby("split"):
        assert set(Counter(of_split["label"]).values()) == {len(of_split) // 2}
    for path, content in whole.items():
        path.write_bytes(content)
    assert build(broken, tmp_path / "out").warnings == []
    assert listed(tmp_path / "out").equals(listed(made))


def test_what_a_slide_lacks_others_give(root, tmp_path):
    copy = tmp_path / "root"
    shutil.copytree(root, copy)
    slides = sorted(s.name for s in find_slides(copy).slides if s.part == "test" and s.label == "normal")
    make_slide(copy / slides[0], (160, 160), MPP, [box("tissue", 0, 0, 100, 150)], downsamples=(1, 8))
    build(copy, tmp_path / "out")
    rows = listed(tmp_path / "out").query("split == 'test' and label == 'normal'")
    total = provenance(tmp_path / "out")["patches"]["test"]["tumor"]
    limit = draw_slide(
        {"slide": str(copy / slides[0]), "name": slides[0], "seed": 0, "wanted": 99}, vars(SAMPLING)
    )["patches"]  # fmt: skip
    assert 0 < len(limit) <= 4
    assert rows.groupby("slide").size().to_dict() == {slides[0]: len(limit), slides[1]: total - len(limit)}
    make_slide(copy / slides[1], (160, 160), MPP, [box("tissue", 0, 0, 100, 150)], downsamples=(1, 8))
    assert "add normal slides" in build(copy, tmp_path / "out").warnings[-1]


def test_all_normal_draws_of_fewer_are_the_first_of_more(root):
    item = {"slide": str(root / "training/normal/normal_001.tif"), "name": "a", "seed": 2}
    few, many = (draw_slide(item | {"wanted": n}, vars(SAMPLING))["patches"] for n in (5, 20))
    assert len(many) == 20
    assert many[:5] == few
    assert draw_slide(item | {"wanted": 5, "seed": 3}, vars(SAMPLING))["patches"] != few


@pytest.mark.parametrize(("write", "suffix"), [("png", ".png"), ("jpeg", ".jpg")])
def test_patches_as_files(root, made, tmp_path, write, suffix):
    build(root, tmp_path, write=write)
    regions = read_table(made / "table.csv").samples
    files = read_table(tmp_path / "table.csv").samples
    for region, file, name in zip(regions, files, listed(made)["name"], strict=True):
        assert file.image == (tmp_path / "patches" / name).with_suffix(suffix).resolve()
        difference = read_image(file.image).astype(float) - read_pixels(region)
        assert np.abs(difference).mean() <= (0 if write == "png" else 6)
        if region.mask is not None:
            assert file.mask is not None
            assert np.array_equal(read_mask(file.mask), read_mask(region.mask))
    files[0].image.unlink()
    build(root, tmp_path, write=write)
    assert files[0].image.is_file()


def test_own_protocol_cuts_holes_out_and_takes_any_scale(root, tmp_path):
    for mpp in (None, 0.5):
        out = tmp_path / str(mpp)
        build(root, out, Sampling("own", size=48, stride=40, mpp=mpp, coarse=2, p0=0.1))
        samples, rows = read_table(out / "table.csv").samples, listed(out)
        scale = 1 if mpp is None else 2
        assert set(rows["mpp"]) == {mpp or MPP}
        for sample, text in zip(samples, rows["name"], strict=True):
            name = parse_patch_name(text)
            assert (sample.width, name.width) == (48, 48 * scale)
            assert read_pixels(sample).shape == (48, 48, 3)
            if sample.label == "tumor":
                assert sample.mask is not None
                assert sample.mask.suffix == ".xml"
                truth = read_truth(sample)
                assert truth is not None
                assert truth.mean() == float(name.metastatic or 0) >= 0.1
        build(root, tmp_path / f"{mpp}-list", Sampling("own", mpp=mpp), patches_from=out / "patches.csv")
        assert listed(tmp_path / f"{mpp}-list").equals(rows)


@pytest.mark.parametrize(
    "options",
    [{"protocol": "other"}, {"size": 8}, {"stride": 0}, {"mpp": -1.0}, {"p0": 0.6}, {"tissue": 2.0}, {"coarse": -1}],
)
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        Sampling(**options)


def test_command(root, tmp_path, capsys):
    main(["data", "camelyon16", str(root), "--out", str(tmp_path), "--size", "64", "--coarse", "3", "--workers", "1"])
    printed = capsys.readouterr().out
    assert "slides: 10, 0 left out, 0 failed" in printed
    assert "train: before" in printed
    assert str(tmp_path / "table.csv") in printed
