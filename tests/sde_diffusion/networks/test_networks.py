"""Laws that every network obeys, and the choice of a default one."""

import json
import math

import pytest
import torch

from sde_diffusion.networks import NETWORKS, build, default_network

SETTINGS = {
    "unet": {
        "shape": (2, 8, 4),
        "channels": 8,
        "multipliers": (1, 2),
        "blocks": 1,
        "attention": (4,),
        "heads": 2,
    },
    "dit": {"shape": (2, 4, 6), "patch": 2, "width": 16, "depth": 2, "heads": 2},
    "mlp": {"shape": (3,), "width": 16, "depth": 2},
    "points": {"shape": (3, 5), "width": 16, "depth": 2, "heads": 2},
}
SIGNALS = {
    "unet": {**SETTINGS["unet"], "shape": (2, 8)},
    "dit": {**SETTINGS["dit"], "shape": (2, 6)},
    "mlp": {**SETTINGS["mlp"], "shape": (2, 3)},
    "points": {**SETTINGS["points"], "shape": (2, 4)},
}
CASES = [
    (name, {**settings[name], "classes": 3, "embedding": embedding})
    for name in NETWORKS
    for settings, embedding in ((SETTINGS, "sinusoidal"), (SETTINGS, "fourier"), (SETTINGS, "log"), (SIGNALS, "log"))
]


def example(name, settings, batch=5):
    """Return a network whose weights are all random, and float64 arguments for it."""
    generator = torch.Generator().manual_seed(0)
    network = build(name, **settings).double().eval()
    for parameter in network.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    x = torch.randn(batch, *settings["shape"], generator=generator, dtype=torch.float64)
    t = torch.rand(batch, generator=generator, dtype=torch.float64)
    return network, x, t, torch.arange(batch) % 4


@pytest.mark.parametrize("name, settings", CASES)
def test_a_new_network_returns_exactly_zero_and_every_parameter_learns(name, settings):
    network = build(name, **settings)
    _, x, t, label = example(name, settings)
    assert (network(x.float(), t.float(), label) == 0).all()
    trained, x, t, label = example(name, settings)
    trained(x, t, label).square().sum().backward()
    idle = [key for key, p in trained.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


@pytest.mark.parametrize("name, settings", CASES)
def test_a_sample_does_not_depend_on_its_batch(name, settings):
    network, x, t, label = example(name, settings)
    alone = torch.cat([network(x[k : k + 1], t[k : k + 1], label[k : k + 1]) for k in range(5)])
    torch.testing.assert_close(network(x, t, label), alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name, settings", CASES)
def test_time_and_class_matter_and_no_label_is_the_null_class(name, settings):
    network, x, t, label = example(name, settings)
    null = torch.full((5,), 3)
    assert torch.equal(network(x, t), network(x, t, null))
    assert (network(x, t, null) - network(x, t, label)).flatten(1).norm(dim=1)[:3].min() > 1e-3
    near = [network(x, torch.full_like(t, time)) for time in (1e-4, 2e-4)]
    assert (near[0] - near[1]).flatten(1).norm(dim=1).min() > 1e-4


@pytest.mark.parametrize("name, settings", CASES)
def test_name_settings_and_weights_rebuild_it(name, settings):
    network, x, t, label = example(name, settings)
    described = json.loads(json.dumps(network.settings))
    assert described == network.settings
    again = build(network.name, **described).double().eval()
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(x, t, label), network(x, t, label))


@pytest.mark.parametrize("name", NETWORKS)
def test_dropout_acts_in_training_only(name):
    network, x, t, _ = example(name, {**SETTINGS[name], "dropout": 0.5})
    torch.manual_seed(0)
    assert torch.equal(network(x, t), network(x, t))
    network.train()
    assert not torch.allclose(network(x, t), network(x, t))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_learned_variance_doubles_the_channels_and_nothing_else(name):
    network, x, t, _ = example(name, {**SETTINGS[name], "variance": True})
    assert network(x, t).shape == (5, 2 * x.shape[1], *x.shape[2:])
    without, *_ = example(name, SETTINGS[name])
    kept = {key: value for key, value in network.state_dict().items() if not key.startswith("leave")}
    without.load_state_dict(kept, strict=False)
    half = len(network.leave.weight) // 2
    if name != "dit":  # whose channels are spread over a patch
        without.leave.weight.data, without.leave.bias.data = network.leave.weight[:half], network.leave.bias[:half]
        torch.testing.assert_close(network(x, t)[:, : x.shape[1]], without(x, t))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_context_acts_and_rows_of_nan_are_none_given(name):
    network, x, t, _ = example(name, {**SETTINGS[name], "context": 3})
    context = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    given, none = network(x, t, context=context), network(x, t)
    assert (given - none).flatten(1).norm(dim=1).min() > 1e-3
    context[[1, 3]] = torch.nan
    mixed = network(x, t, context=context)
    assert torch.equal(mixed[[1, 3]], none[[1, 3]])
    torch.testing.assert_close(mixed[[0, 2, 4]], given[[0, 2, 4]], rtol=1e-12, atol=1e-12)
    mixed.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name, settings", [case for case in CASES if case[1]["embedding"] == "sinusoidal"])
def test_it_compiles_without_graph_breaks(name, settings):
    network, x, t, label = example(name, {**settings, "context": 3})
    context = torch.randn(5, 3, dtype=torch.float64)
    context[2] = torch.nan
    explained = torch._dynamo.explain(network)(x, t, label, context)
    assert (explained.graph_count, explained.graph_break_count) == (1, 0), explained.break_reasons
    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, t, label, context), network(x, t, label, context))


@pytest.mark.parametrize("name", NETWORKS)
def test_arguments_of_other_shapes_are_refused(name):
    network, x, t, _ = example(name, SETTINGS[name])
    with pytest.raises(ValueError, match="this network takes"):
        network(x[:, :1], t)
    with pytest.raises(ValueError, match=r"one time per sample, \(5,\)"):
        network(x, t[:1])
    if name != "points":  # the number of points is free
        with pytest.raises(ValueError, match="this network takes"):
            network(x[..., :1], t)
    with pytest.raises(ValueError, match=r"one time per sample, \(5,\)"):
        network(x, t[:, None])


@pytest.mark.parametrize(
    "shape, name, least, most",
    [
        ((1, 8, 8), "unet", 200_000, 480_000),  # a checkpoint of float32 weights stays below 2 MB
        ((1, 28, 28), "unet", 1_000_000, 2_000_000),
        ((3, 32, 32), "unet", 20_000_000, 40_000_000),
        ((1, 9, 9), "unet", 50_000, 480_000),
        ((3, 20, 12), "unet", 500_000, 2_000_000),
        ((3, 64, 96), "unet", 20_000_000, 60_000_000),
        ((2,), "mlp", 100_000, 500_000),
        ((2, 16), "mlp", 100_000, 500_000),
        ((2, 100), "unet", 200_000, 2_000_000),
        ((3, 36, 31), "unet", 20_000_000, 40_000_000),
        ((1, 8, 8, 6), "unet", 100_000, 2_000_000),
        ((1, 32, 32, 32), "unet", 500_000, 5_000_000),
        ((3, 1, 40), "unet", 100_000, 3_000_000),
    ],
)
def test_the_default_network_fits_the_data(shape, name, least, most):
    with torch.device("meta"):
        network = default_network(shape, classes=10)
        x = torch.empty(2, *shape)
        assert network(x, torch.empty(2)).shape == x.shape
    assert (network.name, network.shape, network.settings["classes"]) == (name, shape, 10)
    assert least < sum(math.prod(p.shape) for p in network.parameters()) < most


def test_an_unknown_network_or_setting_is_refused():
    with pytest.raises(ValueError, match="did you mean 'unet'"):
        build("u-net", shape=(1, 8, 8))
    with pytest.raises(TypeError, match="widht"):
        build("mlp", shape=(2,), widht=3)
