"""Guidance on exact models: two classes whose conditional, unconditional and classifier scores are all known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sde_diffusion.guidance.classifier import ClassifierGuided
from sde_diffusion.guidance.classifier_free import Guided, drop, null_of
from sde_diffusion.models.analytic import GaussianMixture
from sde_diffusion.models.score_model import PREDICTS, ScoreModel
from sde_diffusion.networks import build
from sde_diffusion.sampling.sampler import sample
from sde_diffusion.sde import SDE, VESDE, VPSDE, CosineVPSDE, Flow
from solvers import solve

MEANS = torch.tensor([[-1.0, 0.3], [0.7, 0.9]], dtype=torch.float64)
NONE = 2


class Exact:
    """The exact models of class 0, class 1 and both, behind one network of any parametrization."""

    def __init__(self, sde: SDE, predicts: str = "noise") -> None:
        self.sde, self.predicts = sde, predicts
        self.both = GaussianMixture(MEANS, 0.3, sde=sde)
        self.alone = [GaussianMixture(MEANS[k : k + 1], 0.3, sde=sde) for k in range(2)]
        self.calls: list[int] = []

    def denoise(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        each = torch.stack([m.denoise(x, t) for m in (*self.alone, self.both)])
        return each[label, torch.arange(len(x))]

    def network(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        self.calls.append(len(x))
        label = torch.full((len(x),), NONE) if label is None else label
        if self.predicts == "edm":
            t = self.sde.time(-4 * t)
            alpha, sigma = (c[:, None] for c in self.sde.marginal(t))
            x = x * torch.sqrt(sigma**2 + alpha**2)
        p, q = (c[:, None] for c in ScoreModel(None, self.sde, self.predicts)._affine(t))
        return (self.denoise(x, t, label) - p * x) / q

    def model(self) -> ScoreModel:
        return ScoreModel(self.network, self.sde, self.predicts, shape=(2,))


def points(sde: SDE) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    t = torch.tensor([0.05, 0.2, 0.4, 0.6, 0.8, 0.95], dtype=torch.float64)
    x0, eps = torch.randn(2, len(t), 2, generator=generator, dtype=torch.float64)
    return sde.perturb(x0, t, eps), t, torch.tensor([0, 1, 0, 1, 0, 1])


@pytest.mark.parametrize("predicts", PREDICTS)
@pytest.mark.parametrize("sde", [VPSDE(), VESDE(sigma_max=5.0), Flow(), CosineVPSDE()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("scale", [0.0, 0.4, 1.0, 3.5, -1.0])
def test_eps_is_the_stated_line_in_every_parametrization(sde: SDE, predicts: str, scale: float) -> None:
    exact = Exact(sde, predicts)
    x, t, label = points(sde)
    guided = Guided(exact.model(), scale, {"label": NONE})
    free = exact.both.noise(x, t)
    conditional = torch.stack([exact.alone[int(k)].noise(x[i : i + 1], t[i : i + 1])[0] for i, k in enumerate(label)])
    expected = free + scale * (conditional - free)
    torch.testing.assert_close(guided.noise(x, t, label=label), expected, rtol=1e-8, atol=1e-8)


def test_scales_one_and_zero_are_the_two_models_bit_for_bit() -> None:
    exact = Exact(VPSDE())
    x, t, label = points(exact.sde)
    model = exact.model()
    assert torch.equal(Guided(model, 1.0, {"label": NONE}).score(x, t, label=label), model.score(x, t, label=label))
    assert torch.equal(Guided(model, 0.0, {"label": NONE}).score(x, t, label=label), model.score(x, t))


def test_one_call_of_twice_the_batch_and_a_pair_counts_two() -> None:
    exact = Exact(VPSDE())
    guided = Guided(exact.model(), 2.0, {"label": NONE})
    label = torch.tensor([0, 1, 1])
    x1 = exact.sde.prior((3, 2), dtype=torch.float64)
    out = solve(exact.sde.probability_flow(guided, label=label), x1, solver="ddim", nfe=21)
    assert exact.calls == [6] * 10
    assert out.nfe.tolist() == [20] * 3


def test_a_learned_variance_is_that_of_the_conditional_model() -> None:
    def network(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return torch.cat([x, label[:, None].to(x.dtype).expand_as(x)], 1)

    model = ScoreModel(network, VPSDE(), shape=(2,))
    guided = Guided(model, 3.0, null={"label": 9})
    x, t, label = torch.randn(2, 2), torch.tensor([0.3, 0.6]), torch.tensor([1, 2])
    assert torch.equal(guided.outputs(x, t, label=label)[1], model.outputs(x, t, label=label)[1])


def test_the_cost_of_a_guide_is_its_own() -> None:
    plain = ScoreModel(lambda x, t: x, VPSDE(), shape=(2,), cost=2)
    assert Guided(plain, 2.0, guide=ScoreModel(lambda x, t: x, VPSDE(), shape=(2,), cost=5)).cost == 7
    assert Guided(plain, 2.0).cost == 4


def test_guided_samples_of_a_class_lie_in_it_and_beyond_its_mean() -> None:
    exact = Exact(VPSDE())
    label = torch.arange(2).repeat(200)
    apart = (MEANS[1] - MEANS[0]) / (MEANS[1] - MEANS[0]).norm()
    reach = {}
    for scale in (1.0, 4.0):
        guided = Guided(exact.model(), scale, {"label": NONE})
        x = sample(guided, 400, nfe=60, label=label).double()
        along = (x - MEANS.mean(0)) @ apart * (2 * label - 1)
        reach[scale] = float(along.mean())
    distance = float((MEANS[1] - MEANS[0]).norm()) / 2
    assert abs(reach[1.0] - distance) < 4 * 0.3 / 20
    assert reach[4.0] > reach[1.0] + 0.1


def test_outside_the_interval_it_is_the_conditional_model() -> None:
    exact = Exact(VPSDE())
    x, t, label = points(exact.sde)
    alpha, sigma = exact.sde.marginal(t)
    rho = sigma / alpha
    low, high = float(rho[1]), float(rho[3])  # rho[1] is outside, rho[3] inside
    one, free, all_, some = (
        Guided(exact.model(), scale, {"label": NONE}, interval).score(x, t, label=label)
        for scale, interval in ((1.0, None), (0.0, None), (3.0, None), (3.0, (low, high)))
    )
    inside = torch.tensor([False, False, True, True, False, False])
    assert not torch.allclose(one, free)
    torch.testing.assert_close(some[inside], all_[inside], rtol=1e-12, atol=0)
    assert torch.equal(some[~inside], one[~inside])


def test_the_interval_works_where_alpha_is_zero() -> None:
    exact = Exact(CosineVPSDE(), "data")
    guided = Guided(exact.model(), 3.0, {"label": NONE}, (0.0, 2.0))
    assert guided.weight(torch.tensor([0.1, 1.0], dtype=torch.float64)).tolist() == [3.0, 1.0]
    upwards = Guided(exact.model(), 3.0, {"label": NONE}, (2.0, math.inf))
    assert upwards.weight(torch.tensor([0.1, 1.0], dtype=torch.float64)).tolist() == [1.0, 3.0]


@pytest.mark.parametrize("predicts", ["data", "velocity"])
@pytest.mark.parametrize("sde", [CosineVPSDE(), Flow()], ids=lambda s: type(s).__name__)
def test_an_exact_classifier_guides_from_pure_noise_on(sde: SDE, predicts: str) -> None:
    exact = Exact(sde, predicts)

    def log_prob(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        each = torch.stack([m.log_prob(x, t) for m in exact.alone], dim=1)
        return each.log_softmax(1)[torch.arange(len(x)), label]

    pushed = ClassifierGuided(exact.model(), log_prob, 1.0)
    x, t = torch.randn(4, 2, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    label = torch.tensor([0, 1, 0, 1])
    # At t = 1 nothing is known but the class: the denoised sample is its mean.
    torch.testing.assert_close(pushed.denoise(x, t, label=label), MEANS[label], rtol=0, atol=5e-3)
    with torch.no_grad():
        out = sample(pushed, 4, shape=(2,), nfe=20, label=label)
        expected = sample(exact.model(), 4, shape=(2,), nfe=20, label=label)
    torch.testing.assert_close(out, expected, rtol=0, atol=2e-2)


@pytest.mark.parametrize("predicts", PREDICTS)
@pytest.mark.parametrize("sde", [VPSDE(), VESDE(sigma_max=5.0), Flow()], ids=lambda s: type(s).__name__)
def test_the_exact_classifier_turns_the_unconditional_model_into_the_conditional(sde: SDE, predicts: str) -> None:
    exact = Exact(sde, predicts)

    def log_prob(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        each = torch.stack([m.log_prob(x, t) for m in exact.alone], dim=1)
        return each.log_softmax(1)[torch.arange(len(x)), label]

    x, t, label = points(sde)
    expected = exact.denoise(x, t, label)
    with torch.no_grad():
        pushed = ClassifierGuided(exact.model(), log_prob, 1.0)
        torch.testing.assert_close(pushed.denoise(x, t, label=label), expected, rtol=1e-7, atol=1e-8)
        # and with w it is Bayes' rule with the likelihood to the power w: the line of classifier-free guidance
        twice = ClassifierGuided(exact.model(), log_prob, 2.5).score(x, t, label=label)
        free = Guided(exact.model(), 2.5, {"label": NONE}).score(x, t, label=label)
        torch.testing.assert_close(twice, free, rtol=1e-7, atol=1e-7)


def test_dropped_conditions_are_those_of_no_condition_in_a_network() -> None:
    network = build("mlp", shape=(2,), width=16, classes=3, context=4).double()
    for parameter in network.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, dtype=torch.float64)
    x, t = torch.randn(5, 2, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    label, context = torch.tensor([0, 1, 2, 0, 1]), torch.randn(5, 4, dtype=torch.float64)
    dropped = torch.tensor([True, False, True, False, False])
    out = network(
        x,
        t,
        drop(label, null_of(network, "label"), dropped),
        drop(context, null_of(network, "context"), dropped),
    )
    assert torch.equal(out[dropped], network(x, t)[dropped])
    torch.testing.assert_close(out[~dropped], network(x, t, label, context)[~dropped], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(out[dropped], network(x, t, label, context)[dropped])
    assert not torch.allclose(network(x, t, label), network(x, t, label, context))
    guided = Guided(ScoreModel(network, VPSDE()), 0.0)
    torch.testing.assert_close(guided.noise(x, t, label=label, context=context), network(x, t), rtol=1e-12, atol=1e-12)


class Own(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 2)

    def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        return self.layer(torch.cat([x, t[:, None].float(), c.float()], 1))


@pytest.mark.parametrize("c", [torch.rand(4, 1), torch.arange(4)[:, None]], ids=["real", "whole"])
@pytest.mark.parametrize("null", [-1.0, -1, 0.5])
def test_a_network_of_ones_own_is_asked_for_its_null_and_takes_any_kind_of_condition(c: Tensor, null: float) -> None:
    model = ScoreModel(Own(), VPSDE(), shape=(2,))
    with pytest.raises(ValueError, match=r"which value of 'c' means 'no condition' .* null=\{'c': 0.0\}"):
        sample(Guided(model, 2.0), 4, nfe=4, c=c)
    with torch.no_grad():
        x, t = torch.randn(4, 2), torch.full((4,), 0.5)
        free = model.noise(x, t, c=torch.full((4, 1), float(null)))
        expected = free + 2.0 * (model.noise(x, t, c=c) - free)
        torch.testing.assert_close(Guided(model, 2.0, {"c": null}).noise(x, t, c=c), expected)
    assert bool(sample(Guided(model, 2.0, {"c": null}), 4, nfe=4, c=c).isfinite().all())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Guided(Exact(VPSDE()).model(), float("nan")), "finite number; got nan"),
        (lambda: Guided(Exact(VPSDE()).model(), 2.0, interval=(2.0, 1.0)), "0 <= low < high"),
        (lambda: Guided(Exact(VPSDE()).model(), 2.0).score(*points(VPSDE())[:2]), "needs a condition"),
        (
            lambda: Guided(Exact(VPSDE()).model(), 2.0).score(*points(VPSDE())[:2], label=points(VPSDE())[2]),
            r"'label' means 'no condition' is known only of networks built with .* null=\{'label': 10\}",
        ),
        (
            lambda: ClassifierGuided(Exact(VPSDE()).model(), lambda x, t, y: x[:, 0], 1.0).score(*points(VPSDE())[:2]),
            "label=",
        ),
        (
            lambda: Guided(ScoreModel(build("mlp", shape=(2,), classes=3), VPSDE()), 2.0).score(
                torch.zeros(1, 2), torch.tensor([0.5]), label=torch.tensor([7])
            ),
            "classes 0 to 2, and 3 for no class",
        ),
        (
            lambda: build("mlp", shape=(2,), context=3)(torch.zeros(1, 2), torch.zeros(1), context=torch.zeros(1, 4)),
            r"context has shape \(1, 4\); expected \(1, 3\)",
        ),
        (
            lambda: build("mlp", shape=(2,))(torch.zeros(1, 2), torch.zeros(1), context=torch.zeros(1, 4)),
            "built without a context",
        ),
        (lambda: build("mlp", shape=(2,), context=0), "context is 0"),
    ],
)
def test_bad_input_is_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
