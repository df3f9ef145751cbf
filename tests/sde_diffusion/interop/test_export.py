"""Models of this package in diffusers' pipelines and on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sde_diffusion import DDPM, EDM, VPSDE, CosineVPSDE, DiscreteModel, Flow, ScoreModel, SubVPSDE, sample
from sde_diffusion.networks import build
from solvers import solve
from solvers.errors import InputError, NotFoundError

pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("DeprecationWarning", "FutureWarning", "UserWarning")
]


def network(**settings: Any) -> Any:
    torch.manual_seed(0)
    net = build("unet", shape=(1, 8, 8), channels=8, multipliers=(1,), blocks=1, attention=(), **settings)
    for parameter in net.parameters():
        parameter.data.add_(0.05 * torch.randn(parameter.shape))
    return net.eval()


@pytest.mark.parametrize(
    ("sde", "predicts"),
    [
        (VPSDE(), "noise"), (VPSDE(), "velocity"), (CosineVPSDE(), "velocity"), (DDPM(steps=200), "data"),
        (Flow(), "velocity"),
    ],
)  # fmt: skip
def test_a_pipeline_of_diffusers_gives_our_samples(tmp_path: Path, sde: Any, predicts: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    from sde_diffusion.interop import export_diffusers, from_diffusers

    model = ScoreModel(network(), sde, predicts, (1, 8, 8))
    pipe = diffusers.DDPMPipeline.from_pretrained(export_diffusers(model, tmp_path / "p"))
    x = y = torch.randn(2, 1, 8, 8)
    pipe.scheduler.set_timesteps(10)
    with torch.no_grad():
        for t in pipe.scheduler.timesteps:
            y = pipe.scheduler.step(pipe.unet(y, t).sample, t, y).prev_sample
        if isinstance(sde, Flow):
            times = pipe.scheduler.sigmas.double().tolist()
        else:
            times = [(t + 1) / pipe.scheduler.config.num_train_timesteps for t in pipe.scheduler.timesteps.tolist()]
            times.append(0.0)
        expected = solve(sde.probability_flow(model), x, solver="ddim", grid=times).x
        assert float((y - expected).abs().max() / expected.abs().max()) < 1e-5
        again = from_diffusers(tmp_path / "p")
        t = torch.tensor([0.005, 0.5], dtype=torch.float64)
        torch.testing.assert_close(again.denoise(x, t), model.denoise(x, t), rtol=1e-4, atol=1e-5)
        assert again.shape == (1, 8, 8)


def test_a_network_of_indices_and_labels(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    from sde_diffusion.interop import export_diffusers

    model = DiscreteModel(network(classes=3), DDPM(steps=50, schedule="cosine"), shape=(1, 8, 8))
    pipe = diffusers.DDPMPipeline.from_pretrained(export_diffusers(model, tmp_path / "p"))
    x, label = torch.randn(2, 1, 8, 8), torch.tensor([0, 2])
    with torch.no_grad():
        found = pipe.unet(x, torch.tensor(29), class_labels=label).sample
        expected = model.noise(x, torch.full((2,), 0.6, dtype=torch.float64), label=label)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ScoreModel(network(), EDM(), "data", (1, 8, 8)), "not variance-preserving"),
        (lambda: ScoreModel(network(), SubVPSDE(), "noise", (1, 8, 8)), "not variance-preserving"),
        (lambda: ScoreModel(network(), VPSDE(), "score", (1, 8, 8)), "prediction in diffusers"),
        (lambda: ScoreModel(network(), Flow(), "noise", (1, 8, 8)), "prediction of a flow"),
        (lambda: ScoreModel(build("mlp", shape=(2,)), VPSDE(), shape=(2,)), "images of one size"),
        (lambda: ScoreModel(lambda x, t: x, VPSDE(), shape=(1, 8, 8)), "images of one size"),
    ],
)
def test_what_diffusers_cannot_hold_is_refused(tmp_path: Path, make: Any, message: str) -> None:
    pytest.importorskip("diffusers")
    from sde_diffusion.interop import export_diffusers

    with pytest.raises(InputError, match=message):
        export_diffusers(make(), tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_the_hub_keeps_a_model_whole(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    from sde_diffusion.interop import HubModel

    model = ScoreModel(network(), CosineVPSDE(), "velocity", (1, 8, 8))
    HubModel(model).save_pretrained(tmp_path / "h")
    again = HubModel.from_pretrained(str(tmp_path / "h")).model
    assert (again.sde, again.predicts, again.shape) == (model.sde, "velocity", (1, 8, 8))
    assert torch.equal(sample(again, 2, nfe=4), sample(model, 2, nfe=4))
    assert (tmp_path / "h" / "model.safetensors").is_file()
    assert not list((tmp_path / "h").glob("*.bin")) and not list((tmp_path / "h").glob("*.pt"))


def test_push_to_hub_uploads_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    from sde_diffusion.interop import HubModel

    sent: list[set[str]] = []

    class Api:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def create_repo(self, repo_id: str, **_: Any) -> Any:
            return type("Url", (), {"repo_id": repo_id})()

        def upload_folder(self, folder_path: Any, **_: Any) -> str:
            sent.append({p.name for p in Path(folder_path).iterdir()})
            return "done"

    monkeypatch.setattr(hub.hub_mixin, "HfApi", Api)
    model = ScoreModel(network(), VPSDE(), shape=(1, 8, 8))
    assert HubModel(model).push_to_hub("you/digits") == "done"
    assert "model.safetensors" in sent[0]


def test_what_the_hub_cannot_hold_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    from sde_diffusion.interop import HubModel

    with pytest.raises(InputError, match="network of your own"):
        HubModel(ScoreModel(torch.nn.Linear(2, 2), VPSDE()))
    with pytest.raises(NotFoundError, match=r"no model.safetensors in"):
        HubModel.from_pretrained(str(tmp_path))
