"""Training throughput: our loop relative to the bare step and to the trainers of other libraries.

    python -m benchmarks.training [--data digits] [--batch 128] [--steps 20] [--rounds 9] [--device cpu]
                                  [--peers] [--json FILE]

All trainers train the same network from the same initial weights on the same data, with the same batch size and AdamW
or Adam. In every round each makes ``--steps`` updates, in rotating order. A result is the median over the rounds of
the ratio of images/s of two trainers in the same round, with quartiles.

    bare        forward, mean squared error, backward, optimizer: no data, no noise, no averages, no clipping
    ours        ``sde_diffusion.training.training_run`` with its defaults: draws, weights, clipping, average, log
    diffusers   the loop of its training example: data loader, DDPMScheduler, accelerate, clipping, EMAModel
    ddpm        denoising_diffusion_pytorch.Trainer, from a folder of images

The last two need ``pip install diffusers accelerate`` and ``pip install --no-deps denoising-diffusion-pytorch
ema-pytorch einops pytorch-fid torchvision``. Only Python files of torchvision are used, so any build of it works.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.util
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from sde_diffusion.data import Data, load_data
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.networks import default_network
from sde_diffusion.sde import VPSDE
from sde_diffusion.training.config import TrainConfig
from sde_diffusion.training.trainer import Trainer

Advance = Callable[[int], None]


def bare(network: nn.Module, data: Data, batch: int, device: str) -> Advance:
    """Steps of the network and its optimizer only."""
    network.to(device).train()
    x = data.batch(slice(0, batch)).to(device)
    t = torch.linspace(0.01, 0.99, batch, device=device)
    target = torch.randn_like(x)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)

    def advance(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            torch.autograd.backward(F.mse_loss(network(x, t), target))
            optimizer.step()

    return advance


def ours(network: nn.Module, data: Data, batch: int, device: str) -> Advance:
    """The loop of ``train``, without a folder."""
    config = TrainConfig(steps=10**9, batch_size=batch, device=device, schedule="constant", learning_rate=1e-4)
    trainer = Trainer(ScoreModel(network, VPSDE()), data, config)
    updates = iter(trainer)

    def advance(steps: int) -> None:
        for step in itertools.islice(updates, steps):
            if step.number % config.log_every == 0:
                trainer.take_record()
        trainer.read()  # like the last step of a training run

    return advance


def diffusers(network: nn.Module, data: Data, batch: int, device: str) -> Advance:
    """The loop of the unconditional training example of diffusers."""
    from accelerate import Accelerator
    from diffusers import DDPMScheduler
    from diffusers.training_utils import EMAModel

    accelerator = Accelerator(cpu=device == "cpu")
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    set_ = torch.utils.data.TensorDataset(data.batch(slice(None)))
    loader = torch.utils.data.DataLoader(set_, batch_size=batch, shuffle=True, drop_last=True)
    network, optimizer, loader = accelerator.prepare(network, optimizer, loader)
    average = EMAModel(network.parameters(), use_ema_warmup=True)
    average.to(accelerator.device)
    network.train()

    def advance(steps: int) -> None:
        done = 0
        while done < steps:
            for (x0,) in loader:
                noise = torch.randn_like(x0)
                t = torch.randint(0, 1000, (len(x0),), device=x0.device)
                noisy = scheduler.add_noise(x0, noise, t)
                with accelerator.accumulate(network):
                    loss = F.mse_loss(network(noisy, t / 1000), noise)
                    accelerator.backward(loss)
                    accelerator.clip_grad_norm_(network.parameters(), 1.0)
                    optimizer.step()
                    optimizer.zero_grad()
                average.step(network.parameters())
                loss.detach().item()  # the example logs it at every step
                done += 1
                if done == steps:
                    break

    return advance


def _torchvision_without_its_binary() -> None:
    """Make torchvision's transforms importable with any torch, without its compiled operators."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or "torchvision" in sys.modules:
        return
    package = ModuleType("torchvision")
    package.__path__ = list(spec.submodule_search_locations or ())
    package.__spec__ = spec
    package.__version__ = metadata.version("torchvision")  # type: ignore[attr-defined]
    sys.modules["torchvision"] = package


class _Dressed(nn.Module):
    """A network with the interface of denoising_diffusion_pytorch."""

    def __init__(self, network: nn.Module, channels: int) -> None:
        super().__init__()
        self.network = network
        self.channels = self.out_dim = channels
        self.self_condition = False

    def forward(self, x: Tensor, t: Tensor, *_: Any) -> Tensor:
        out: Tensor = self.network(x, t / 1000)
        return out


def ddpm(network: nn.Module, data: Data, batch: int, device: str, folder: Path) -> Advance:
    """The Trainer of denoising_diffusion_pytorch on the same images as files."""
    from denoising_diffusion_pytorch import GaussianDiffusion
    from denoising_diffusion_pytorch import Trainer as Theirs
    from PIL import Image

    for k, x in enumerate(data.x.numpy()[:2000]):
        Image.fromarray(x[0] if len(x) == 1 else x.transpose(1, 2, 0)).save(folder / f"{k}.png")
    diffusion = GaussianDiffusion(
        _Dressed(network, data.shape[0]), image_size=data.shape[1:], timesteps=1000, objective="pred_noise"
    )
    trainer = Theirs(
        diffusion.to(device), str(folder), train_batch_size=batch, train_num_steps=0, calculate_fid=False,
        save_and_sample_every=10**9, results_folder=str(folder / "results"),
    )  # fmt: skip

    def advance(steps: int) -> None:
        trainer.train_num_steps = trainer.step + steps
        with open(os.devnull, "w") as nothing, contextlib.redirect_stderr(nothing), contextlib.redirect_stdout(nothing):
            trainer.train()

    return advance


def measure(advances: dict[str, Advance], batch: int, steps: int, rounds: int, device: str) -> dict[str, list[float]]:
    """Images/s of each trainer in every round; the first round is a warm-up."""
    rates: dict[str, list[float]] = {name: [] for name in advances}
    names = list(advances)
    for number in range(rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            if device == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            advances[name](steps)
            if device == "cuda":
                torch.cuda.synchronize()
            if number:
                rates[name].append(steps * batch / (time.perf_counter() - start))
    return rates


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    data, batch, device = load_data(arguments.data, arguments.data_dir), arguments.batch, arguments.device
    torch.manual_seed(0)
    network = default_network(data.shape)
    with tempfile.TemporaryDirectory() as folder:
        advances = {
            "bare": bare(copy.deepcopy(network), data, batch, device),
            "ours": ours(copy.deepcopy(network), data, batch, device),
        }
        if arguments.peers:
            _torchvision_without_its_binary()
            advances["diffusers"] = diffusers(copy.deepcopy(network), data, batch, device)
            advances["ddpm"] = ddpm(copy.deepcopy(network), data, batch, device, Path(folder))
        rates = measure(advances, batch, arguments.steps, arguments.rounds, device)
    table = Table("loop", "images/s", "ours over it", "quartiles")
    rows = {}
    for name, values in rates.items():
        low, ratio, high = statistics.quantiles([a / b for a, b in zip(rates["ours"], values, strict=True)], n=4)
        rows[name] = {"images_per_second": statistics.median(values), "ours_over_it": ratio, "quartiles": [low, high]}
        table.add_row(name, f"{statistics.median(values):,.0f}", f"{ratio:.3f}", f"{low:.3f} to {high:.3f}")
    Console(width=100).print(table)
    if arguments.json:
        size = sum(p.numel() for p in network.parameters())
        about: dict[str, Any] = {"data": data.name, "batch": batch, "parameters": size, "device": device}
        about |= {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine()}
        arguments.json.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
