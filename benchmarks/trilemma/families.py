"""The families of the comparison, their training and their stored networks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.baselines import autoregressive, dcgan, flow, mar, vae, vqvae
from benchmarks.baselines.fitting import Fitted
from sde_diffusion.data import Data

SHAPE = (1, 28, 28)
VALUES = 784


@dataclass(frozen=True)
class Family:
    """A family of models, in the terms in which they are usually compared.

    Attributes:
        train: (data, seed) -> the trained model.
        new: the model before training, which stored weights fill.
        objective: what training minimises.
        likelihood: exact, bound or none.
        bottleneck: the size of the latent.
        evaluations: passes of a network for a sample.
    """

    train: Callable[[Data, int], Fitted]
    new: Callable[[], nn.Module]
    objective: str
    likelihood: str
    bottleneck: str
    evaluations: str


def _new_vae() -> vae.VAE:
    return vae.untrained(SHAPE)


def _new_stages() -> autoregressive.TwoStages:
    images = vqvae.VQVAE()
    return autoregressive.TwoStages(images, autoregressive.CausalTransformer(images.size, vqvae.PLACES))


CODES = f"{vqvae.PLACES} codes of 7 bits"
FAMILIES = {
    "vae": Family(vae.trained, _new_vae, "bound of the likelihood", "bound", "16 values", "1"),
    "flow": Family(flow.trained, lambda: flow.Couplings(SHAPE), "likelihood", "exact", "none: 784 values", "1"),
    "dcgan": Family(dcgan.trained, dcgan.Generator, "a game of two networks", "none", "64 values", "1"),
    "vq-transformer": Family(
        autoregressive.trained, _new_stages, "autoencoder, then likelihood of codes", "bound", CODES, "49 + 1"
    ),
    "mar": Family(
        mar.trained, mar.MAR, "denoising of masked tokens", "none", "none: 784 values",
        f"{mar.ROUNDS} + {mar.NFE} small ones a token",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """A trained model of a family and the record of its training."""

    family: str
    seed: int
    model: Any
    seconds: float
    losses: list[float]


def trained(name: str, seed: int, data: Data, folder: Path) -> Trained:
    """The model of a family and seed: from the folder if it is there, else trained and stored."""
    family, path = FAMILIES[name], folder / f"{name}-{seed}.safetensors"
    if path.is_file():
        model, about = family.new(), json.loads(path.with_suffix(".json").read_text())
        model.load_state_dict(load_file(path))
        return Trained(name, seed, model.eval(), about["seconds"], about["losses"])
    found = family.train(data, seed)
    folder.mkdir(parents=True, exist_ok=True)
    about = {"seconds": found.seconds, "losses": found.losses[::20]}
    path.with_suffix(".json").write_text(json.dumps(about) + "\n")
    save_file({n: v.contiguous() for n, v in found.network.state_dict().items()}, path)
    return Trained(name, seed, found.network, found.seconds, about["losses"])


def parameters(model: nn.Module) -> int:
    """The number of parameters."""
    return sum(p.numel() for p in model.parameters())


def parts(n: int, most: int = 250) -> Iterator[int]:
    """Batch sizes that add up to n."""
    yield from [most] * (n // most) + ([n % most] if n % most else [])


def draw(model: Any, n: int, seed: int) -> Tensor:
    """Samples of a baseline, batch by batch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.cat([model.sample(size) for size in parts(n)])
