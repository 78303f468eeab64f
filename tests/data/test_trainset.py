from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from histoloc.data.table import Table, read_table
from histoloc.data.trainset import EpochBatches, Item, Key, TrainSet, collate, make_loader, seed_of
from histoloc.data.transforms import InputConfig
from histoloc.datasets.synthetic.dataset import synthetic_table
from histoloc.errors import InputError

SMALL = InputConfig(small_side=0, crop=48)
PLAIN = InputConfig(
    0, crop=48, brightness=0, contrast=0, saturation=0, hue=0, horizontal_flip=0, vertical_flip=0, quarter_turns=False
)


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Table:
    return read_table(synthetic_table(out=tmp_path_factory.mktemp("glands"), count=10, height=64, width=80).table)


def training_set(table: Table, **options: object) -> TrainSet:
    return TrainSet(table, table.split("train"), SMALL, 7, **options)  # pyright: ignore[reportArgumentType]


def test_seed_depends_on_every_part():
    seeds = {seed_of(a, b, c) for a in range(5) for b in range(5) for c in range(5)}
    assert len(seeds) == 125
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(1, 2, 3) == seed_of(1, 2, 3)


def test_item(table):
    item, sample = training_set(table)[Key(0, 1)], table.split("train")[1]
    assert item.image.shape == (3, 48, 48)
    assert item.image.dtype == torch.float32
    assert item.labels == (table.classes.index(sample.label),)
    assert item.name == sample.name
    assert item.mask is None  # a mask never reaches a method that learns from labels
    assert item.target is None


def test_masks_of_a_class_without_roi_are_empty_where_there_is_no_file(table):
    name, other = table.classes
    samples = [replace(s, mask=None) if s.label == name else s for s in table.split("train")]
    data = TrainSet(table, samples, SMALL, 7, with_masks=True, empty_class=name)
    for index, sample in enumerate(samples):
        mask = data[Key(0, index)].mask
        assert mask is not None
        assert (mask.shape, mask.dtype) == ((1, 48, 48), torch.float32)
        assert bool(mask.any()) == (sample.label == other)
    halved = TrainSet(table, samples, InputConfig(small_side=32, crop=32), 7, with_masks=True, empty_class=name)
    masks = [mask for index in range(len(samples)) if (mask := halved[Key(0, index)].mask) is not None]
    assert [mask.shape for mask in masks] == [(1, 32, 32)] * len(samples)
    with pytest.raises(InputError, match=r"has no mask, and this method learns from masks; .* by --empty-class"):
        TrainSet(table, samples, SMALL, 7, with_masks=True, empty_class=other)
    assert TrainSet(table, samples, SMALL, 7, empty_class=name)[Key(0, 0)].mask is None


def test_epochs_and_samples_differ(table):
    data = training_set(table)
    assert not torch.equal(data[Key(0, 0)].image, data[Key(1, 0)].image)
    assert torch.equal(data[Key(1, 0)].image, data[Key(1, 0)].image)
    other = TrainSet(table, table.split("train"), SMALL, 8)
    assert not torch.equal(data[Key(0, 0)].image, other[Key(0, 0)].image)


def test_cache_changes_nothing(table):
    cached, fresh = training_set(table), training_set(table, cache_bytes=0)
    assert cached.cache is not None
    assert fresh.cache is None
    for index in range(len(cached)):
        assert torch.equal(cached[Key(2, index)].image, fresh[Key(2, index)].image)


def test_image_and_mask_of_the_file(table):
    sample = table.split("train")[0]
    item = TrainSet(table, [sample], replace(PLAIN, small_side=48), 0, with_masks=True)[Key(0, 0)]
    image, mask = item.image, item.mask
    assert mask is not None
    assert mask.shape == (1, 48, 48)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    # The same crop of image and mask: found by the image, compared in the mask.
    assert sample.mask is not None
    pixels = np.array(Image.open(sample.image).resize((60, 48), Image.Resampling.BILINEAR), dtype=np.float32)
    truth = np.array(Image.open(sample.mask)).astype(bool)
    values = (image.permute(1, 2, 0).numpy() / 2 + 0.5) * 255
    left = int(np.argmin([np.abs(pixels[:, x : x + 48] - values).mean() for x in range(13)]))
    assert np.abs(pixels[:, left : left + 48] - values).mean() < 3
    columns, rows = ((np.arange(60) + 0.5) * 80 / 60).astype(int), ((np.arange(48) + 0.5) * 64 / 48).astype(int)
    nearest = truth[rows][:, columns][:, left : left + 48]
    assert (nearest == mask[0].numpy().astype(bool)).mean() > 0.99


def test_order_and_workers_change_nothing(table):
    data = training_set(table, with_masks=True)
    expected = {index: data[Key(3, index)] for index in reversed(range(len(data)))}
    for workers in (0, 2):
        batches = EpochBatches(len(data), 4, seed=1)
        batches.epoch = 3
        seen = []
        for batch in make_loader(data, batches, workers, pin_memory=False):
            assert batch.mask is not None
            for image, label, mask, name in zip(*batch[:2], batch.mask, batch.names, strict=True):
                index = next(i for i, s in enumerate(data.samples) if s.name == name)
                assert torch.equal(image, expected[index].image)
                truth = expected[index].mask
                assert truth is not None
                assert torch.equal(mask, truth)
                assert (int(label),) == expected[index].labels
                seen.append(index)
        assert sorted(seen) == list(range(len(data)))


def test_loading_leaves_global_randomness_alone(table):
    data, state = training_set(table), torch.get_rng_state()
    data[Key(0, 0)]
    assert torch.equal(torch.get_rng_state(), state)


def test_collate(table):
    data = training_set(table)
    batch = collate([data[Key(0, 0)], data[Key(0, 1)]], 2)
    assert batch.image.shape == (2, 3, 48, 48)
    assert batch.label.dtype == torch.int64
    assert [(label,) for label in batch.label.tolist()] == [data[Key(0, index)].labels for index in (0, 1)]
    assert batch.names == tuple(sample.name for sample in data.samples[:2])
    assert batch.mask is batch.labels is batch.target is None
    with_masks = training_set(table, with_masks=True)
    assert collate([with_masks[Key(0, 0)]], 2).mask is not None


def test_collate_of_images_of_several_classes():
    items = [Item(torch.zeros(3, 4, 4), labels, None, None, "a.png") for labels in ((2,), (1, 0), (0,))]
    batch = collate(items, 3)
    assert batch.label.tolist() == [2, 1, 0], "the first one of each"
    assert batch.labels is not None
    assert batch.labels.tolist() == [[False, False, True], [True, True, False], [True, False, False]]
    assert collate([items[0], items[2]], 3).labels is None


@pytest.mark.parametrize("with_masks", [False, True])
def test_targets_move_with_their_image(table, with_masks):
    config = replace(PLAIN, horizontal_flip=0.5, vertical_flip=0.5, quarter_turns=True)
    data = TrainSet(table, table.split("train"), config, 7, with_masks=with_masks)
    alone = data[Key(0, 1)]
    data.targets = [data.whole(index)[0][:1] for index in range(len(data))]  # the red channel
    for key in (Key(0, 1), Key(1, 0), Key(2, 2)):
        item = data[key]
        assert item.target is not None
        torch.testing.assert_close(item.target, item.image[:1] / 2 + 0.5)
        assert (item.mask is not None) == with_masks
    again = data[Key(0, 1)]
    assert torch.equal(again.image, alone.image)
    if again.mask is not None and alone.mask is not None:
        assert torch.equal(again.mask, alone.mask)
    batch = collate([data[Key(0, 0)], data[Key(0, 1)]], 2)
    assert batch.target is not None
    assert batch.target.shape == (2, 1, 48, 48)


def test_each_sample_has_a_drawn_image_beside_it(table):
    drawn = TrainSet(table, table.samples, SMALL, 7, with_masks=True)
    data, alone = training_set(table, drawn=drawn), training_set(table)
    items = [data[Key(epoch, index)] for epoch in range(4) for index in range(len(data))]
    for item, again in zip(items, (data[Key(e, i)] for e in range(4) for i in range(len(data))), strict=True):
        assert item.drawn is not None
        assert again.drawn is not None
        assert torch.equal(item.drawn[0], again.drawn[0])
        assert item.mask is None
    assert torch.equal(items[0].image, alone[Key(0, 0)].image)
    known = [drawn[Key(0, index)] for index in range(len(drawn))]
    batch = collate(items, 2)
    assert batch.drawn is not None
    (source,) = (one for one in known if torch.equal(one.image, batch.drawn.image[0]))
    assert source.mask is not None
    assert torch.equal(source.mask, batch.drawn.mask[0])
    assert len({float(image.sum()) for image in batch.drawn.image}) > len(drawn), "others in every epoch"
    assert batch.drawn.mask.shape == (len(items), 1, 48, 48)
    assert collate([alone[Key(0, 0)]], 2).drawn is None


def test_masks_must_be_there_for_methods_that_learn_from_them(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    path = tmp_path / "table.csv"
    path.write_text("image,label,mask,split,group\na.png,benign,,train,\n")
    result = read_table(path)
    with pytest.raises(InputError, match=r"a\.png has no mask, and this method learns from masks"):
        TrainSet(result, result.split("train"), SMALL, 0, with_masks=True)
    assert len(TrainSet(result, result.split("train"), SMALL, 0)) == 1


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
def test_image_smaller_than_the_crop(tmp_path, cache_bytes):
    for name, size in (("a", (64, 64)), ("b", (100, 40))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    path: Path = tmp_path / "table.csv"
    path.write_text("image,label,mask,split,group\na.png,benign,,train,\nb.png,benign,,train,\n")
    result = read_table(path)
    with pytest.raises(InputError, match=r"b\.png: 100x40 px are smaller than the crop of 48 px; give a smaller"):
        TrainSet(result, result.split("train"), SMALL, 0, cache_bytes=cache_bytes)[Key(0, 1)]


shapes = given(count=st.integers(6, 40), batch=st.integers(6, 12), world=st.integers(1, 6), seed=st.integers(0, 99))
quick = settings(max_examples=60, deadline=None)


def epoch_of(count: int, batch: int, seed: int, world: int, epoch: int = 0) -> list[list[list[Key]]]:
    """Batches by process and step."""
    processes = [EpochBatches(count, batch, seed, rank=rank, world=world) for rank in range(world)]
    for process in processes:
        process.epoch = epoch
    return [list(process) for process in processes]


@quick
@shapes
def test_every_sample_is_seen_once(count, batch, world, seed):
    whole = epoch_of(count, batch, seed, 1)[0]
    parts = epoch_of(count, batch, seed, world)
    assert sorted(key.index for step in whole for key in step) == list(range(count))
    sampler = EpochBatches(count, batch, seed, world=world)
    assert {len(part) for part in parts} == {len(sampler)} <= {len(whole), len(whole) - 1}
    for step, sizes in enumerate(zip(*([len(keys) for keys in part] for part in parts), strict=True)):
        assert min(sizes) >= 1, "no process is left without a sample"
        assert sum(sizes) == sampler.size(step)
        if step < len(sampler) - 1:
            seen = sorted(key.index for part in parts for key in part[step])
            assert seen == sorted(key.index for key in whole[step])
    assert sorted(key.index for part in parts for step in part for key in step) == list(range(count))


@quick
@shapes
def test_weighted_mean_over_processes_is_the_global_mean(count, batch, world, seed):
    losses = np.random.default_rng(seed).normal(size=count)
    parts = epoch_of(count, batch, seed, world)
    for step in range(len(parts[0])):
        local = [
            EpochBatches(count, batch, seed, rank=rank, world=world).weight(step)
            * np.mean([losses[key.index] for key in part[step]])
            for rank, part in enumerate(parts)
        ]
        expected = np.mean([losses[key.index] for part in parts for key in part[step]])
        assert np.mean(local) == pytest.approx(expected, abs=1e-9)


def test_order_is_a_function_of_seed_and_epoch():
    first, second = epoch_of(20, 4, 0, 1, epoch=0), epoch_of(20, 4, 0, 1, epoch=1)
    indices = [[key.index for step in epoch[0] for key in step] for epoch in (first, second)]
    assert indices[0] != indices[1]
    assert first == epoch_of(20, 4, 0, 1, epoch=0)
    assert first != epoch_of(20, 4, 1, 1, epoch=0)
    assert {key.epoch for step in second[0] for key in step} == {1}
