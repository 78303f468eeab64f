"""Max-min: its loss by hand, its mask, and whom its terms train."""

import math

import numpy as np
import pytest
import torch
from small import VIT, answer, maxmin, noise, noise_batch, terms
from torch import Tensor

from histoloc.errors import InputError
from histoloc.losses import barrier_at
from histoloc.maps import normalise_batch, normalise_per_image, place
from histoloc.methods.maxmin import MaxMin
from histoloc.types import Output

AUTHORS = {"slope": 5.0, "sigma_start": 0.15, "sigma_step": 0.001, "sigma_cap": 0.2}


def gradients(method: MaxMin, term: Tensor) -> dict[str, Tensor]:
    """Zeros where a parameter has no part in the term."""
    names, parameters = zip(*method.named_parameters(), strict=True)
    result = torch.autograd.grad(term, parameters, allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for n, p, g in zip(names, parameters, result, strict=True)}


def log_softmax(scores: np.ndarray) -> np.ndarray:
    return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))


def equation_one(
    out: Output, labels: list[int], *, r: str, weight: float, t: float, localizer_weight: float
) -> dict[str, float]:
    """Eq. 1 with the localizer's cross-entropy, image by image, in float64."""
    rows = range(len(labels))
    inside = log_softmax(out.logits.detach().double().numpy())
    outside = log_softmax(out.terms["background"].detach().double().numpy())
    localizer = log_softmax(out.terms["localizer"].detach().double().numpy())
    mask = out.terms["mask"].detach().double().numpy()
    sums = {"foreground": 0.0, "localizer": 0.0, "background": 0.0, "size": 0.0}
    for i in rows:
        sums["foreground"] -= inside[i, labels[i]]
        sums["localizer"] -= localizer_weight * localizer[i, labels[i]]
        p = np.exp(outside[i])
        uncertainty = sum(p[k] * outside[i, k] for k in range(2)) if r == "eem" else -outside[i].sum() / 2
        sums["background"] += weight * uncertainty
        share = mask[i].sum() / mask[i].size
        sums["size"] -= (math.log(share) + math.log(1 - share)) / t
    return {name: value / len(labels) for name, value in sums.items()}


@pytest.mark.parametrize("r", ["eem", "sem"])
def test_loss_is_equation_one(r):
    method = maxmin(background=r, background_weight=0.3, localizer_weight=0.7)
    batch = noise_batch([1, 0], 64, 96)
    out = method(batch.image)
    got = method.loss(out, batch, 4)
    expected = equation_one(out, [1, 0], r=r, weight=0.3, t=5 * 1.01**4, localizer_weight=0.7)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].item() == pytest.approx(value, rel=1e-5), name


def test_switches_choose_the_terms():
    batch = noise_batch([0, 1])
    assert set(terms(maxmin(), batch)) == {"foreground", "localizer", "background", "size"}
    assert set(terms(maxmin(background="none"), batch)) == {"foreground", "localizer", "size"}
    assert set(terms(maxmin(size="none", localizer_weight=0.0), batch)) == {"foreground", "background"}
    assert set(terms(maxmin(background="none", size="none", localizer_weight=0.0), batch)) == {"foreground"}


def test_background_changes_only_its_own_term():
    batch = noise_batch([0, 1])
    result = {r: terms(maxmin(background=r), batch) for r in ("none", "eem", "sem")}
    for name in ("foreground", "localizer", "size"):
        torch.testing.assert_close(result["none"][name], result["sem"][name])
        torch.testing.assert_close(result["eem"][name], result["sem"][name])
    assert -math.log(2) <= result["eem"]["background"].item() < 0
    assert result["sem"]["background"].item() >= math.log(2) - 1e-6


@pytest.mark.parametrize("r", ["eem", "sem"])
def test_background_weight_scales_term_and_gradient(r):
    batch, values, slopes = noise_batch([0, 1]), [], []
    for weight in (1.0, 3.0, 0.0):
        method = maxmin(background=r, background_weight=weight)
        term = terms(method, batch)["background"]
        values.append(term.item())
        slopes.append(gradients(method, term))
    assert values[1] == pytest.approx(3 * values[0], rel=1e-5)
    assert values[2] == 0
    assert any(g.any() for g in slopes[0].values())
    for name, slope in slopes[0].items():
        torch.testing.assert_close(slopes[1][name], 3 * slope, rtol=1e-4, atol=1e-6)
        assert not slopes[2][name].any()


def test_weight_zero_trains_as_no_background():
    batch = noise_batch([0, 1])
    off, zero = maxmin(background="none"), maxmin(background_weight=0.0)
    first = gradients(off, torch.stack(list(terms(off, batch).values())).sum())
    second = gradients(zero, torch.stack(list(terms(zero, batch).values())).sum())
    for name, slope in first.items():
        torch.testing.assert_close(second[name], slope, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("networks", ["shared", "two"])
def test_background_trains_the_localizer_only(networks):
    batch = noise_batch([0, 1])
    both = maxmin(background_trains="both", networks=networks, joint=False)
    only = maxmin(background_trains="localizer", networks=networks)
    term_both, term_only = terms(both, batch)["background"], terms(only, batch)["background"]
    assert term_both.item() == pytest.approx(term_only.item(), rel=1e-6)
    slopes_both, slopes_only = gradients(both, term_both), gradients(only, term_only)
    head = [name for name in slopes_only if name.startswith("classifier_head.")]
    assert head
    assert all(slopes_both[name].any() for name in head)
    assert not any(slopes_only[name].any() for name in head)
    localizer = [name for name in slopes_only if name.startswith("localizer")]
    assert all(slopes_only[name].any() for name in localizer)
    if networks == "two":
        classifier = [name for name in slopes_only if name.startswith("classifier")]
        assert len(classifier) > len(head)
        assert not any(slopes_only[name].any() for name in classifier)
        for name in localizer:  # what the mask is told about the background is the same
            torch.testing.assert_close(slopes_only[name], slopes_both[name])


def test_background_that_trains_the_localizer_leaves_the_classifier_a_foreground_gradient():
    method, batch = maxmin(background_trains="localizer", networks="two"), noise_batch([0, 1])
    slopes = gradients(method, torch.stack(list(terms(method, batch).values())).sum())
    assert all(slope.any() for slope in slopes.values())


@pytest.mark.parametrize(
    "options",
    [
        {"background": "none", "size": "none", "localizer_weight": 0.0},
        {"background": "eem", "networks": "two", "joint": False},
        {"background_trains": "localizer", "kmin": 0.2, "fill": "black"},
        {"empty_class": "benign", "normalisation": "none", "background": "none"},
        {"empty_class": "benign", "normalisation": "none", "networks": "two", "fill": "mean"},
    ],
)
def test_gradients_reach_every_parameter_with_any_switch(options):
    method, batch = maxmin(**options).train(), noise_batch([0, 1])
    for name, slope in gradients(method, torch.stack(list(terms(method, batch).values())).sum()).items():
        assert torch.isfinite(slope).all(), name
        assert slope.any(), name


def test_who_is_trained_does_not_change_the_statistics():
    batch, states = noise_batch([0, 1]), []
    for trains in ("both", "localizer"):
        method = maxmin(background_trains=trains, networks="two", joint=False, dropout=0.0).train()
        method(batch.image)
        states.append(method.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    counted = [name for name in states[0] if name.startswith("classifier.") and name.endswith("num_batches_tracked")]
    assert counted
    assert all(states[0][name] == 2 for name in counted)


def test_two_networks_have_one_encoder_more():
    shared, two = maxmin(networks="shared"), maxmin(networks="two")
    count = {m: sum(p.numel() for p in m.parameters()) for m in (shared, two, shared.localizer)}
    assert count[two] == count[shared] + count[shared.localizer]
    assert shared.classifier is None
    assert two.classifier is not None
    assert two.classifier is not two.localizer


def test_class_is_read_from_the_inside_of_the_mask():
    method, image = maxmin(), noise(2, 64, 96)
    with torch.no_grad():
        out, evidence = method(image), method.evidence(image)
        logits, maps, combined, mask = method.locate(image)
        inside = method.classify(method.cut(image, mask))
        outside = method.classify(method.cut(image, 1 - mask))
    for made in (out, evidence):
        torch.testing.assert_close(made.logits, inside)
        torch.testing.assert_close(made.evidence, maps)
    torch.testing.assert_close(out.terms["background"], outside)
    torch.testing.assert_close(out.terms["localizer"], logits)
    torch.testing.assert_close(out.terms["combined"], combined)
    torch.testing.assert_close(out.terms["mask"], mask)


def test_the_rule_per_image_is_the_mask_of_a_class_map():
    method = maxmin(slope=5.0, sigma_start=0.15, sigma_step=0.01, sigma_cap=0.3)
    method.epoch.fill_(5)
    values = torch.tensor([1.0, 2.0, 3.0]).view(1, 1, 1, 3)
    # The first class is predicted: its map is M⁺, what the classifier sees; another's is made of its own evidence.
    output = Output(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2, 1, 3), {"combined": values})
    expected = [1 / (1 + math.exp(-5 * (u - 0.2))) for u in (0.0, 0.5, 1.0)]
    assert method.image_map(output, values - 9, torch.tensor([0])).flatten().tolist() == pytest.approx(expected)
    got = method.image_map(output, values.flip(-1), torch.tensor([1]))
    assert got.flatten().tolist() == pytest.approx(expected[::-1])


def test_the_papers_map_is_the_mask_that_the_classifier_sees():
    method, image = maxmin(), noise(2, 64, 96)
    with torch.no_grad():
        output, (_, _, combined, mask) = method.evidence(image), method.locate(image)
        made = method.image_map(output, output.evidence[:, :1], output.logits.argmax(dim=1))
    expected = (10 * (normalise_per_image(combined) - 0.5)).sigmoid()
    torch.testing.assert_close(made, expected)
    # M⁺ is squashed after it is resized, the map before: both are cut at the same evidence.
    at_pixels = (10 * (normalise_per_image(place(combined, method.stride, (64, 96))) - 0.5)).sigmoid()
    torch.testing.assert_close(at_pixels, mask)


def test_without_the_localizers_own_loss_its_maps_belong_to_no_class():
    method, image = maxmin(localizer_weight=0.0), noise(2, 64, 96)
    with torch.no_grad():
        output = method.evidence(image)
        combined = method.locate(image)[2]
    assert torch.equal(output.evidence, combined)


def test_the_mask_weighs_the_class_maps_by_predicted_probabilities():
    method, image = maxmin(), noise(2, 64, 96)
    weight = method.localizer_head.maps.weight
    combined = method.locate(image)[2]
    logits, maps = method.localizer_head(method.localizer(image))
    p = logits.softmax(dim=1)
    expected = torch.stack([p[i, 0] * maps[i, 0] + p[i, 1] * maps[i, 1] for i in range(2)])[:, None]
    torch.testing.assert_close(combined, expected)
    # The gradient flows through the maps and through the probabilities.
    (got,), (whole,) = (torch.autograd.grad(e.square().sum(), weight) for e in (combined, expected))
    torch.testing.assert_close(got, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("normalisation", ["image", "batch", "none"])
def test_normalisation_and_neighbours(normalisation):
    method, image = maxmin(normalisation=normalisation), noise(3, 64, 96)
    image[2] *= 20  # an image whose evidence has another range
    with torch.no_grad():
        alone, at_rest = method.locate(image[:1])[3], method.locate(image)[3][:1]
        method.training = True  # the flag alone: statistics and dropout as at rest
        together = method.locate(image)[3][:1]
    torch.testing.assert_close(at_rest, alone, rtol=1e-4, atol=1e-5)
    if normalisation == "batch":
        assert (together - alone).abs().max() > 0.01
    else:
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("normalisation", ["image", "batch", "none"])
def test_mask_by_hand(normalisation):
    method, image = maxmin(normalisation=normalisation, **AUTHORS), noise(2, 60, 90)
    method.epoch.fill_(30)
    method.training = True
    with torch.no_grad():
        _, _, combined, mask = method.locate(image)
    u = place(combined, 32, (60, 90))
    if normalisation == "none":
        expected, inside = 1 / (1 + (-5 * u).exp()), u >= 0
    else:
        u = normalise_per_image(u) if normalisation == "image" else normalise_batch(u)
        expected, inside = 1 / (1 + (-5 * (u - 0.18)).exp()), u >= method.sigma()
    torch.testing.assert_close(mask, expected)
    assert torch.equal(mask >= 0.5, inside)
    if normalisation != "none":
        assert inside.any()
        assert not inside.all()


def test_without_normalisation_the_map_is_the_mask_and_needs_no_range():
    method, image = maxmin(normalisation="none"), noise(2, 64, 96)
    assert (method.unit, maxmin().unit) == ("logit", "score")
    with torch.no_grad():
        evidence, (_, _, combined, mask) = method.evidence(image).evidence, method.locate(image)
    torch.testing.assert_close(evidence, 10 * combined)
    torch.testing.assert_close(answer(method, image)[1].logit(), place(evidence, 32, (64, 96)), rtol=0, atol=0.1)
    assert torch.equal(place(evidence, 32, (64, 96)) >= 0, mask >= 0.5)


def test_sigma_follows_the_authors_schedule():
    method = maxmin(**AUTHORS)
    for epoch, sigma in ((0, 0.15), (10, 0.16), (50, 0.2), (79, 0.2)):
        method.epoch.fill_(epoch)
        assert method.sigma().item() == pytest.approx(sigma)


def test_sigma_is_constant_without_a_step():
    method = maxmin(sigma_start=0.5, sigma_step=0.0, sigma_cap=0.2)  # the cap never moves the start
    method.epoch.fill_(60)
    assert method.sigma().item() == 0.5


def test_sigma_travels_with_the_weights():
    trained, loaded, image = maxmin(**AUTHORS), maxmin(**AUTHORS), noise(1, 64, 64)
    trained.epoch.fill_(30)
    assert loaded.sigma().item() == pytest.approx(0.15)
    loaded.load_state_dict(trained.state_dict())
    assert loaded.sigma().item() == pytest.approx(0.18)
    with torch.no_grad():
        assert torch.equal(loaded.locate(image)[3], trained.locate(image)[3])


def test_barrier_grows_to_its_cap():
    method = maxmin()
    assert barrier_at(method.options, 0) == 5
    assert barrier_at(method.options, 1) == pytest.approx(5.05)
    assert barrier_at(method.options, 69) == pytest.approx(5 * 1.01**69)
    assert barrier_at(method.options, 70) == barrier_at(method.options, 500) == 10
    out, batch = method(noise(2, 64, 64)), noise_batch([0, 1])
    first, last = (method.loss(out, batch, epoch)["size"].item() for epoch in (0, 200))
    assert first == pytest.approx(2 * last, rel=1e-5)  # t = 5 and t = 10


@pytest.mark.parametrize("backbone", ["test_efficientnet", VIT])
def test_joint_pass_equals_separate_passes(backbone):
    batch = noise_batch([0, 1, 1])
    joint, apart = maxmin(joint=True, backbone=backbone), maxmin(joint=False, backbone=backbone)
    first, second = terms(joint, batch), terms(apart, batch)
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-4, atol=1e-6)
    slopes = gradients(apart, torch.stack(list(second.values())).sum())
    for name, slope in gradients(joint, torch.stack(list(first.values())).sum()).items():
        torch.testing.assert_close(slope, slopes[name], rtol=1e-3, atol=1e-5)


def test_foreground_weight_is_linear():
    batch = noise_batch([0, 1])
    one, three = (terms(maxmin(foreground_weight=w), batch)["foreground"].item() for w in (1.0, 3.0))
    assert three == pytest.approx(3 * one, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"foreground_weight": 0.0}, "--foreground-weight 0 leaves the classifier"),
        ({"foreground_weight": 0.0, "background": "none", "localizer_weight": 0.0}, "--localizer-weight above 0"),
        ({"foreground_weight": -1.0}, "--foreground-weight -1.0 is wrong"),
        ({"slope": 0.0}, "--slope 0.0 is wrong"),
        ({"barrier_start": 0.0}, "--barrier-start"),
        ({"scale": 1.2}, "--scale"),
        ({"kmax": 0.0}, "--kmax"),
        ({"kmin": -0.1}, "--kmin"),
        ({"modalities": 0}, "--modalities"),
        ({"dropout": 1.0}, "--dropout"),
        ({"background_weight": -1.0}, "--background-weight"),
        ({"background_weight": math.nan}, "--background-weight"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(InputError, match=message):
        maxmin(**options)
