"""Whose maps of which images are learned from, and who must not teach."""

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from histoloc.data.fingerprint import image_marks
from histoloc.data.images import read_image
from histoloc.data.table import read_table
from histoloc.data.trainset import TrainSet
from histoloc.data.transforms import InputConfig, bring_to_scale
from histoloc.errors import InputError
from histoloc.methods.student import Student
from histoloc.model_folder import images_seen, load_model, save_images, save_model
from histoloc.prediction import load
from histoloc.teachers import check_held_out, check_sources, images_behind, lessons, open_teachers, targets, taught
from histoloc.training import train
from histoloc.training_setup import describe
from histoloc.types import Batch

SEEN_AS_THEY_ARE = InputConfig(small_side=0, crop=32)


@pytest.fixture(scope="module")
def table(tiny_table):
    return read_table(tiny_table)


@pytest.fixture
def teacher(gap_run, maxmin_run, table, tmp_path):
    """A model folder that learned from some of the table's images: teacher("gap", split="train", count=3)."""

    def make(name: str = "gap", split: str = "train", count: int | None = None) -> Path:
        folder = tmp_path / f"{name}-{split}-{count}"
        shutil.copytree({"gap": gap_run, "maxmin": maxmin_run}[name] / "model", folder)
        save_images(folder, image_marks(table.split(split)[:count]))
        return folder

    return make


def test_a_mark_is_of_the_pixels_and_not_of_their_place(table, tmp_path):
    first, second, *_ = table.samples
    marks = image_marks([first, second, first])
    assert marks[0] == marks[2] != marks[1]
    assert all(len(mark) == 16 for mark in marks)
    moved = dataclasses.replace(first, image=Path(shutil.copy(first.image, tmp_path / "x.png")), name="x", label="y")
    regions = [dataclasses.replace(first, x=x, y=0, width=9, height=9, mpp=mpp) for x in (0, 9) for mpp in (1.0, 0.5)]
    assert image_marks([moved]) == marks[:1]
    assert len({*marks, *image_marks(regions)}) == 6


def test_what_a_model_saw_stands_in_its_folder(teacher, table, tmp_path):
    folder = teacher(count=3)
    assert images_seen(folder) == set(image_marks(table.split("train")[:3]))
    assert images_seen(Path("prior:glands")) == frozenset(), "shipped priors saw drawn images alone"
    (folder / "images.txt").unlink()
    with pytest.raises(InputError, match=r"images.txt: cannot be read, .* --resume` writes it"):
        images_seen(folder)


def test_the_target_is_the_mean_of_the_calibrated_maps_of_the_images_own_class(teacher, table):
    folders = [teacher("gap"), teacher("maxmin")]
    teachers, differ = open_teachers(folders, table, "cpu"), 0.0
    for sample in table.split("train")[:4]:
        target = taught(teachers, sample, SEEN_AS_THEY_ARE, None)
        own = [load(folder).predict(sample.image, map_class=sample.label) for folder in folders]
        mean = np.mean([each.roi for each in own], axis=0)
        assert target.dtype == torch.uint8
        assert target.shape == (1, *mean.shape)
        np.testing.assert_allclose(target[0] / 255, mean, rtol=0, atol=0.51 / 255)
        differ += np.abs(own[0].roi - own[1].roi).mean()
        smaller = InputConfig(small_side=32, crop=32)
        expected = bring_to_scale(torch.from_numpy(mean)[None], smaller, None)
        assert expected.shape == (1, 32, 48)
        torch.testing.assert_close(taught(teachers, sample, smaller, None) / 255, expected, rtol=0, atol=0.51 / 255)
    assert differ > 0.01


def test_of_several_classes_the_largest_map_and_of_an_unknown_one_that_of_the_predicted_class(teacher, table):
    folder = teacher("gap")
    teachers, sample = open_teachers([folder], table, "cpu"), table.samples[0]
    model, pixels = load(folder), read_image(sample.image)
    each = [model.predict(pixels, map_class=name).roi for name in table.classes]
    both = taught(teachers, dataclasses.replace(sample, label="|".join(table.classes)), SEEN_AS_THEY_ARE, None)
    np.testing.assert_allclose(both[0] / 255, np.maximum(*each), rtol=0, atol=0.51 / 255)
    other = taught(teachers, dataclasses.replace(sample, label="never seen"), SEEN_AS_THEY_ARE, None)
    np.testing.assert_allclose(other[0] / 255, model.predict(pixels).roi, rtol=0, atol=0.51 / 255)


def test_an_image_of_the_class_without_roi_has_an_empty_target(teacher, table):
    teachers, sample = open_teachers([teacher("gap")], table, "cpu"), table.samples[0]
    assert not taught(teachers, sample, SEEN_AS_THEY_ARE, sample.label).any()
    assert taught(teachers, sample, SEEN_AS_THEY_ARE, "other").any()


def test_a_known_label_says_that_there_is_roi(teacher, table):
    folder = teacher("gap")
    method, config = load_model(folder)
    save_model(folder, method.state_dict(), dataclasses.replace(config, empty_class=table.classes[0]))
    (gated,) = open_teachers([folder], table, "cpu")
    (free,) = open_teachers([teacher("gap", count=1)], table, "cpu")
    sample = next(s for s in table.samples if s.label == table.classes[1])
    assert torch.equal(
        taught([gated], sample, SEEN_AS_THEY_ARE, None),
        taught([free], sample, SEEN_AS_THEY_ARE, None),
    )


def test_who_learned_from_an_image_teaches_it_only_where_all_did(teacher, table):
    train = table.split("train")
    folders = [teacher(count=4), teacher(count=6)]
    teachers = open_teachers(folders, table, "cpu")
    chosen, notes = lessons(teachers, train)
    names = [[teacher.folder for teacher in several] for several in chosen]
    assert names == 4 * [folders] + 2 * [folders[:1]] + 6 * [folders]
    assert notes == [
        f"{folders[0]} teaches 12 of 12 images, of which it learned from 4 itself",
        f"{folders[1]} teaches 10 of 12 images, of which it learned from 4 itself",
    ]
    assert lessons(teachers[:1], train[4:]) == (8 * [teachers[:1]], [f"{folders[0]} teaches 8 of 8 images"])


def test_a_prior_that_was_adapted_teaches_every_image_and_is_refused_where_it_saw_a_held_out_one(teacher, table):
    adapted, other = teacher(), teacher(count=4)
    method, config = load_model(adapted)
    save_model(adapted, method.state_dict(), dataclasses.replace(config, supervision=("synthetic",)))
    _, notes = lessons(open_teachers([adapted, other], table, "cpu"), table.split("train"))
    assert notes == [f"{adapted} teaches 12 of 12 images", f"{other} teaches 8 of 12 images"]
    save_images(adapted, image_marks(table.split("valid")))
    with pytest.raises(InputError, match="which this run holds out"):
        open_teachers([adapted], table, "cpu")


@pytest.mark.parametrize("split", ["valid", "test"])
def test_a_teacher_that_learned_from_a_held_out_image_is_refused(teacher, table, split):
    folder, held_out = teacher(split=split, count=1), table.split(split)[0].name
    with pytest.raises(InputError, match=f"--teachers .*{split}-1: it learned from {held_out}, which this run holds"):
        open_teachers([teacher(), folder], table, "cpu")
    with pytest.raises(InputError, match="--prior"):
        check_held_out([folder], table, "--prior")
    check_held_out([teacher(count=2)], table, "--prior")


def test_a_teacher_without_a_range_is_refused(teacher, table):
    folder = teacher()
    method, config = load_model(folder)
    save_model(folder, method.state_dict(), dataclasses.replace(config, learned=None))
    with pytest.raises(InputError, match=f"--teachers {folder}: the model has no learned range"):
        open_teachers([folder], table, "cpu")


# --- a training under teachers ---


@pytest.fixture
def of_a_fold(tiny_table, tmp_path):
    """The table with two folds: half of the training images each."""
    cells = pd.read_csv(tiny_table)
    for column in ("image", "mask"):
        cells[column] = [str(tiny_table.parent / cell) for cell in cells[column]]
    cells["fold"] = [i % 4 // 2 if split == "train" else "" for i, split in enumerate(cells["split"])]
    cells.loc[cells["split"] == "valid", "split"] = ""
    cells.to_csv(tmp_path / "folds.csv", index=False)
    return tmp_path / "folds.csv"


def student(tiny, *teachers: Path, **changes):
    return dataclasses.replace(tiny("student", epochs=1, backbone="test_efficientnet", **changes), teachers=teachers)


def test_a_student_learns_the_mean_of_its_teachers_and_says_whose(
    gap_run, maxmin_run, tiny, table, tmp_path, monkeypatch, capsys
):
    seen: list[Batch] = []
    loss = Student.loss

    def watch(self, output, batch, epoch):
        seen.append(batch)
        return loss(self, output, batch, epoch)

    monkeypatch.setattr(Student, "loss", watch)
    whole = {"small_side": 64, "crop": 64, "horizontal_flip": 0.0, "vertical_flip": 0.0}
    run = train(student(tiny, gap_run, maxmin_run, input=whole), tmp_path / "run", progress=False)
    said = capsys.readouterr().err
    assert f"{gap_run} teaches 12 of 12 images, of which it learned from 12 itself\n" in said
    teachers, by_name = open_teachers([gap_run, maxmin_run], table, "cpu"), {s.name: s for s in table.samples}
    targets = {
        name: taught(teachers, by_name[name], InputConfig(small_side=64, crop=64), None)[0].float() / 255
        for batch in seen
        for name in batch.names
    }
    assert len(targets) == 12
    for batch in seen:
        assert batch.target is not None
        for name, target in zip(batch.names, batch.target[:, 0], strict=True):
            crops = targets[name].unfold(1, 64, 1).permute(1, 0, 2)
            assert (crops == target).all(dim=(1, 2)).any()
    _, config = load_model(run)
    assert config.supervision == ("image",)
    assert images_seen(run) == images_seen(gap_run) == set(image_marks(table.split("train")))
    result = load(run).predict(table.split("test")[0].image)
    assert result.range == "probability"
    assert result.label in table.classes


def test_a_student_of_masks_says_so_and_two_processes_make_the_targets_of_one(gap_run, tiny, table, tmp_path):
    masked = train(tiny("unet", epochs=1, backbone="test_efficientnet"), tmp_path / "unet", progress=False)
    config = student(tiny, gap_run, masked)
    assert describe(config, table)[0].supervision == ("image", "pixel")
    training = TrainSet(table, table.split("train"), config.input, 0)
    alone = targets(config, table, training, config.input, as_fabric(0, 1))
    parts: list[list[torch.Tensor]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("histoloc.teachers.gather", lambda _, part: parts.append(part) or [part, part])
        for rank in (0, 1):
            targets(config, table, training, config.input, as_fabric(rank, 2))
    for index, expected in enumerate(alone):
        assert torch.equal(parts[index % 2][index // 2], expected)


def as_fabric(rank: int, world: int) -> Any:
    return SimpleNamespace(global_rank=rank, world_size=world, device=torch.device("cpu"))


def test_leaks_are_refused_before_anything_is_written(of_a_fold, tiny, tmp_path):
    other = dataclasses.replace(tiny("gap", data=of_a_fold, epochs=1), fold=1)
    teacher = train(other, tmp_path / "teacher", progress=False)
    config = dataclasses.replace(student(tiny, teacher, data=of_a_fold), fold=0)
    with pytest.raises(InputError, match=r"--teachers .*teacher: it learned from .*, which this run holds out"):
        train(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    second = dataclasses.replace(config, fold=1)
    pupil = train(second, tmp_path / "pupil", progress=False)
    config = dataclasses.replace(config, teachers=(), prior=str(pupil))
    with pytest.raises(InputError, match=r"--prior .*pupil: it learned from .*, which this run holds out"):
        train(config, tmp_path / "run", progress=False)


def test_what_teachers_learned_from_is_passed_on(gap_run, maxmin_run, tiny, table, tmp_path):
    folder = tmp_path / "elsewhere"
    shutil.copytree(gap_run / "model", folder)
    save_images(folder, ["0" * 16])
    own = set(image_marks(table.split("train")))
    assert images_behind(student(tiny, folder, maxmin_run), table) == own | {"0" * 16}
    assert images_behind(dataclasses.replace(tiny("student"), prior="prior:glands"), table) == own


def test_a_run_goes_on_under_the_same_teachers_alone(gap_run, maxmin_run, tiny, tmp_path):
    folder, config = tmp_path / "teacher", student(tiny, tmp_path / "teacher")
    shutil.copytree(gap_run / "model", folder)
    train(config, tmp_path / "run", progress=False)
    shutil.rmtree(folder)
    shutil.copytree(maxmin_run / "model", folder)
    longer = dataclasses.replace(config, training=dataclasses.replace(config.training, epochs=2))
    with pytest.raises(InputError, match=rf"was begun with other settings \({folder} was \w+ and is \w+\)"):
        train(longer, tmp_path / "run", resume=True, progress=False)


def test_a_method_that_does_not_learn_from_them_refuses_teachers_and_drawn_images(gap_run, tiny, tiny_table, tmp_path):
    config = dataclasses.replace(tiny("gap"), drawn=tiny_table)
    with pytest.raises(InputError, match="--drawn: gap does not learn from drawn images; leave it out"):
        train(config, tmp_path / "run", progress=False)
    config = dataclasses.replace(tiny("gap"), teachers=(gap_run,))
    with pytest.raises(InputError, match="--teachers: gap does not learn from maps of others; use `histoloc train stu"):
        train(config, tmp_path / "run", progress=False)


def test_a_run_of_an_earlier_version_gets_the_list_of_its_images_by_resuming(tiny, table, tmp_path):
    config = tiny("gap", epochs=1)
    run = train(config, tmp_path / "run", progress=False)
    (run / "model" / "images.txt").unlink()
    train(config, run, resume=True, progress=False)
    assert images_seen(run) == set(image_marks(table.split("train")))


def test_a_student_without_anybody_to_learn_from_is_refused_before_anything_is_written(tiny, tmp_path):
    with pytest.raises(InputError, match="student: its map learns from other models or drawn images; give --teach"):
        train(tiny("student"), tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "run.yaml").exists()


def test_drawn_images_that_are_held_out_are_refused_and_the_others_remembered(tiny, tiny_table, tmp_path):
    table = read_table(tiny_table)
    rows = pd.read_csv(tiny_table)
    rows[["image", "mask"]] = rows[["image", "mask"]].map(lambda cell: str(tiny_table.parent / cell))
    rows.assign(split="train").to_csv(tmp_path / "all.csv", index=False)
    config = dataclasses.replace(tiny("student"), drawn=tmp_path / "all.csv")
    with pytest.raises(InputError, match=r"--drawn .*all\.csv: has .*, which this run holds out; leave its rows out"):
        check_sources(config, table)
    assert images_behind(config, table) == set(image_marks(table.samples))
    same = dataclasses.replace(config, drawn=tiny_table)
    check_sources(same, table)  # of its rows, those of split train
    assert images_behind(same, table) == set(image_marks(table.split("train")))
