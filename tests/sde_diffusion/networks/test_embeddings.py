"""Time embeddings are stationary features that separate times near the data; a class adds a vector."""

import math

import pytest
import torch

from sde_diffusion import VPSDE
from sde_diffusion.networks.embeddings import EMBEDDINGS, Condition, TimeEmbedding
from solvers.fitted.engine import engine_grid


def at(kind, u):
    """The time whose embedding is that of u."""
    return 1e-3 * u.expm1() if kind == "log" else u


@pytest.mark.parametrize("kind", EMBEDDINGS)
def test_waves_are_stationary_and_of_constant_norm(kind):
    embedded = TimeEmbedding(32, kind)
    t, s = torch.tensor([[0.1, 0.7, 2.5], [0.35, 0.2, 0.4]], dtype=torch.float64)
    torch.testing.assert_close(embedded(t).square().sum(1), torch.full((3,), 16.0, dtype=torch.float64))
    inner = (embedded(at(kind, t)) * embedded(at(kind, s))).sum(1)
    shifted = (embedded(at(kind, t + 0.123)) * embedded(at(kind, s + 0.123))).sum(1)
    torch.testing.assert_close(inner, shifted)


def test_the_log_embedding_turns_by_less_than_half_a_period_in_a_step_of_twenty():
    times = engine_grid(VPSDE(), 20).flip(0)
    slow = torch.log1p(times / 1e-3).diff() * TimeEmbedding(32, "log").frequencies.max()
    assert slow.max() < math.pi
    # Of the others the fastest goes round more than ten times.
    assert times.diff().max() * TimeEmbedding(32).frequencies.max() > 20 * math.pi
    # The formula above is that of the features.
    inner = (TimeEmbedding(2, "log")(times)[1:] * TimeEmbedding(2, "log")(times)[:-1]).sum(1)
    torch.testing.assert_close(inner, (slow * TimeEmbedding(2, "log").frequencies[0] / 2).cos())


def test_the_logarithm_is_odd_and_finite_for_scalars_below_zero():
    embedded = TimeEmbedding(32, "log")
    t = torch.tensor([-2.5, -0.1, 0.0, 0.1])
    cos, sin = embedded(t).chunk(2, 1)
    mirrored = embedded(-t).chunk(2, 1)
    torch.testing.assert_close((cos, sin), (mirrored[0], -mirrored[1]))


@pytest.mark.parametrize("kind", EMBEDDINGS)
@pytest.mark.parametrize("t, s, least", [(1e-4, 2e-4, 0.1), (1e-3, 1.1e-3, 0.1), (0.01, 0.02, 2.0)])
def test_times_near_the_data_are_separated(kind, t, s, least):
    near, far = TimeEmbedding(64, kind)(torch.tensor([t, s]))
    assert (near - far).norm() > least


@pytest.mark.parametrize("kind", ["sinusoidal", "log"])
def test_the_slowest_wave_orders_all_times(kind):
    cosine = TimeEmbedding(64, kind)(torch.linspace(0, 1, 1001))[:, 0]
    assert (cosine.diff() < 0).all()


def test_fourier_frequencies_are_the_same_in_every_process():
    torch.manual_seed(1)
    first = TimeEmbedding(16, "fourier").frequencies
    torch.manual_seed(2)
    assert torch.equal(first, TimeEmbedding(16, "fourier").frequencies)


def test_no_class_is_one_more_class_and_classes_differ():
    condition = Condition(8, 16, classes=3)
    t = torch.tensor([0.1, 0.2])
    assert torch.equal(condition(t), condition(t, torch.tensor([3, 3])))
    assert not torch.allclose(condition(t), condition(t, torch.tensor([0, 0])))
    # a class is added to the time: the difference between two classes is the same at all times
    difference = condition(t, torch.tensor([0, 0])) - condition(t, torch.tensor([1, 1]))
    torch.testing.assert_close(difference[0], difference[1])


@pytest.mark.parametrize(
    "classes, label, message",
    [
        (None, torch.tensor([1, 1]), "without classes"),
        (3, torch.tensor([0, 4]), "0 to 2, and 3 for no class"),
        (3, torch.tensor([0, -1]), "from -1 to 0"),
        (3, torch.tensor([1]), r"expected int64 of shape \(2,\)"),
        (3, torch.tensor([1.0, 1.0]), "torch.float32"),
    ],
)
def test_labels_that_do_not_fit_are_refused(classes, label, message):
    condition = Condition(8, 16, classes=classes)
    with pytest.raises(ValueError, match=message):
        condition(torch.tensor([0.1, 0.2]), label)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"features": 7, "width": 8}, "even number"),
        ({"features": 8, "width": 8, "kind": "sinusoid"}, "did you mean 'sinusoidal'"),
        ({"features": 8, "width": 8, "classes": 0}, "classes is 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Condition(**settings)
