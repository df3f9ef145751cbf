from __future__ import annotations

import pytest
import torch

from sde_diffusion.data import as_data, load_data
from sde_diffusion.sde import SDES, VPSDE, make_sde
from sde_diffusion.storage.checkpoint import describe_model
from sde_diffusion.training.config import TrainConfig
from sde_diffusion.training.defaults import default_model, default_options, set_up

POINTS = as_data(torch.tensor([[3.0, -3.0], [3.0, 1.0], [-1.0, -3.0], [-1.0, 1.0]]), name="four")


@pytest.mark.parametrize("name", list(SDES))
def test_every_process_gets_a_parametrization_that_can_be_sampled(name: str) -> None:
    model = default_model(POINTS, sde=name)
    assert model.sde == make_sde(name)
    model.sde.reverse(model)  # refuses noise where alpha(1) = 0
    assert model.predicts == ("edm" if name in ("ve", "edm") else "velocity")
    assert model.sigma_data == 1.0 and not model.units.is_identity  # of standardised data
    TrainConfig().with_options(default_options(model.predicts))


@pytest.mark.parametrize(("data", "times"), [("moons", "log-normal"), ("digits", "log-normal-wide")])
def test_samples_of_many_values_have_wider_times(data: str, times: str) -> None:
    assert set_up({"data": data}).config.time_sampling == times
    assert set_up({"data": data, "time_sampling": "stratified"}).config.time_sampling == "stratified"


def test_settings_reach_what_they_are_of() -> None:
    model = default_model(POINTS, sde_settings={"beta_max": 7.0}, network_settings={"width": 6, "depth": 1})
    assert model.sde == VPSDE(beta_max=7.0)
    assert model.network.settings["width"] == 6 and len(model.network.blocks) == 1


def test_the_time_embedding_is_logarithmic_unless_the_input_is_log_rho() -> None:
    embeddings = [default_model(POINTS, sde=name).network.settings["embedding"] for name in ("vp", "cosine", "ve")]
    assert embeddings == ["log", "log", "sinusoidal"]
    given = default_model(POINTS, network_settings={"embedding": "fourier"})
    assert given.network.settings["embedding"] == "fourier"


def test_sigma_data_is_the_root_mean_square_of_what_the_network_sees() -> None:
    x = POINTS.x.double() + 300
    far = as_data(x.float())
    rms = round(float(x.square().mean().sqrt()), 4)
    assert default_model(far, predicts="edm", normalize="none").sigma_data == rms > 299
    assert default_model(far, predicts="edm", normalize="range").sigma_data == 1.0  # all at the ends of the range
    assert default_model(far, predicts="edm").sigma_data == default_model(far).sigma_data == 1.0


def test_the_seed_fixes_the_weights_and_leaves_torch_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = (default_model(POINTS, seed=s).state_dict() for s in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


def test_like_takes_the_place_of_the_defaults() -> None:
    like = describe_model(
        default_model(
            POINTS, sde="ve", predicts="edm", sde_settings={"sigma_max": 9.0},
            network_settings={"width": 8},
        )
    )  # fmt: skip
    assert describe_model(default_model(POINTS, like=like)) == like
    assert describe_model(default_model(POINTS, like=like, sde="ve", predicts="edm")) == like
    other = describe_model(default_model(POINTS, like=like, sde="vp"))
    assert (other["sde"]["name"], other["predicts"]) == ("vp", "velocity")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sde": "cosin"}, "unknown SDE 'cosin'; did you mean 'cosine'"),
        ({"predicts": "nose"}, "unknown parametrization 'nose'; did you mean 'noise'"),
        (
            {"sde": "flow", "sde_settings": {"beta_max": 1.0}},
            "the process flow has no .*'beta_max'",
        ),
        ({"network_settings": {"channels": 8}}, "the network mlp has no setting 'channels'.*width"),
        ({"sde_settings": {"beta_min": 30.0}}, "0 <= beta_min <= beta_max"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        default_model(POINTS, **options)  # type: ignore[arg-type]


def test_images_get_a_unet_of_their_size() -> None:
    model = default_model(load_data("digits"), network_settings={"channels": 8})
    assert model.network.name == "unet" and model.shape == (1, 8, 8)
