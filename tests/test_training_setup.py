"""What a training begins with: the weights of a prior, drawn images, and what it says it learned from."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from histoloc.config import RunConfig, read_run, run_config, write_run
from histoloc.data.table import read_table
from histoloc.data.trainset import Key
from histoloc.errors import InputError
from histoloc.model_folder import ModelConfig, build_method, load_model, read_model_config
from histoloc.training import train
from histoloc.training_setup import begin_with_prior, describe, supervision, training_set


@pytest.fixture(scope="module")
def prior_run(tiny, tmp_path_factory):
    """A finished prior; do not write into it."""
    return train(tiny("prior", epochs=1), tmp_path_factory.mktemp("runs") / "prior", progress=False)


def test_a_prior_has_no_classes_and_learns_from_drawn_images(prior_run):
    config = read_model_config(prior_run)
    assert (config.method, config.classes, config.supervision) == ("prior", (), ("synthetic",))
    method, _ = load_model(prior_run)
    assert method(torch.zeros(2, 3, 64, 64)).logits.shape == (2, 0)


def test_a_training_begins_with_the_weights_of_its_prior(tiny, prior_run, tmp_path):
    config = replace(tiny("prior", epochs=1, lr=1e-30, lr_floor=0, seed=5), prior=str(prior_run))
    out = train(config, tmp_path / "run", progress=False)
    given, _ = load_model(prior_run)
    begun, described = load_model(out)
    for name, value in given.named_parameters():
        assert torch.equal(begun.get_parameter(name), value), name
    assert described.provenance["prior"] == str(prior_run)
    assert read_run(out / "run.yaml").prior == str(prior_run)


def test_a_prior_that_does_not_fit_is_refused(tiny, prior_run):
    described = read_model_config(prior_run)
    gap = replace(described, method="gap", classes=("a", "b"), options=None, supervision=())
    with pytest.raises(InputError, match=r"the prior's backbone and decoder do not fit gap .* a method with a decoder"):
        begin_with_prior(build_method(gap, load_backbone=False), gap, str(prior_run))
    wider = replace(described, options=type(described.options)(channels=32))
    with pytest.raises(InputError, match=r"has 64 channels and that of prior 32; give a prior .* --channels 32"):
        begin_with_prior(build_method(wider, load_backbone=False), wider, str(prior_run))
    grey = replace(described, input=replace(described.input, mean=(0.1, 0.1, 0.1)))
    with pytest.raises(
        InputError, match=r"was trained on images normalised by mean .*; give the same --mean and --std"
    ):
        begin_with_prior(build_method(grey, load_backbone=False), grey, str(prior_run))


def test_another_scale_than_the_priors_is_said(prior_run):
    described = read_model_config(prior_run)
    for mpp, notes in ((1.2, ()), (0.5, ("the prior looks at 1 µm/px and this training at 0.5: give --mpp 1",))):
        method = build_method(described, load_backbone=False)
        assert begin_with_prior(method, replace(described, mpp=mpp), str(prior_run)) == notes


def test_supervision_names_all_that_a_run_learns_from(tiny, prior_run, gap_run, tmp_path):
    assert supervision(tiny("gap")) == ("image",)
    assert supervision(replace(tiny("gap"), prior=str(prior_run))) == ("image", "synthetic")
    assert supervision(replace(tiny("gap"), drawn=tiny("gap").data)) == ("image", "synthetic")
    people = tmp_path / "people.csv"
    pd.read_csv(tiny("gap").data).drop(columns="drawn_scene").to_csv(people, index=False)
    assert supervision(replace(tiny("gap"), drawn=people)) == ("image", "pixel", "synthetic")
    assert supervision(replace(tiny("prior"), data=people)) == ("pixel", "synthetic")
    assert supervision(replace(tiny("prior"), data=people, drawn=tiny("gap").data)) == ("synthetic",)
    assert supervision(replace(tiny("unet"), teachers=(gap_run, prior_run))) == ("image", "pixel", "synthetic")
    assert ModelConfig("unet", ()).supervision == ("pixel",)
    assert ModelConfig("allones", ("a",)).supervision == ()


def test_new_settings_replay(tmp_path):
    values = {"method": "gap", "data": "x.csv", "prior": "prior:glands", "drawn": "d.csv", "teachers": ["a", "b"]}
    values |= {"input": {"zoom": [0.97, 1.57]}, "training": {"schedule": "one-cycle"}}
    config = run_config(values, "run.yaml")
    write_run(tmp_path / "run.yaml", config)
    assert read_run(tmp_path / "run.yaml") == config
    assert RunConfig("gap", config.data).teachers == ()


def test_drawn_images_are_seen_at_the_scale_of_the_others(tiny):
    config = tiny("gap")
    table = read_table(config.data)
    config = replace(config, drawn=config.data)
    with pytest.raises(InputError, match=r"--drawn .* so the others must be seen at one; give --mpp"):
        training_set(config, describe(config, table)[0], table, 0, progress=False)
    config = replace(config, input=replace(config.input, mpp=1.0, crop=32))
    described, _ = describe(config, table)
    items = training_set(config, described, table, 0, progress=False)
    assert items.drawn is not None
    assert len(items.drawn) == len(table.split("train")), "no image that is held out"
    item = items[Key(0, 0)]
    assert item.drawn is not None
    assert item.drawn[0].shape == item.image.shape
    assert item.mask is None


def test_a_network_with_a_learned_range_gives_its_map_and_not_its_scores(tiny, tmp_path):
    run = train(tiny("crossfit", epochs=1), tmp_path / "crossfit", progress=False)
    source, config = load_model(run)
    assert config.learned is not None
    described = replace(config, method="student", options=None, learned=None)
    method = build_method(described, load_backbone=False)
    begin_with_prior(method, described, str(run))
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = config.learned.slope[0] * (source(image).evidence - config.learned.centre[0])
        torch.testing.assert_close(method.eval()(image).evidence, expected, rtol=1e-4, atol=1e-4)
