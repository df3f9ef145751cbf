"""Training within a given time: data on the device, no synchronisation within a hundred updates, a power average."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from benchmarks.cifar10.images import batch_of
from benchmarks.cifar10.settings import Settings
from sde_diffusion import VPSDE, ScoreModel
from sde_diffusion.models.speed import Speed
from sde_diffusion.networks import build
from sde_diffusion.training.ema import EMA, power_decay
from sde_diffusion.training.losses import LossModule

LOOK = 100  # updates between two looks at the clock and the loss


def build_model(settings: Settings, device: torch.device) -> ScoreModel:
    """The VP model that predicts the velocity, untrained."""
    network = build("unet", shape=settings.shape, **settings.network)
    return ScoreModel(network, VPSDE(), "velocity", settings.shape).to(device)


def trained(settings: Settings, x: Tensor, seed: int = 0) -> tuple[ScoreModel, dict[str, float]]:
    """A model with averaged weights, and what its training was.

    Args:
        settings: the sizes.
        x: images in bytes (n, C, H, W), on the device.
        seed: of weights, order, times and noise.
    """
    torch.manual_seed(seed)
    device = x.device
    model = build_model(settings, device)
    raw = model.network
    network = Speed(settings.precision, settings.compiled).apply(raw)
    objective = LossModule(model, network, "velocity").to(device)
    parameters = [p for p in raw.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.rate, weight_decay=0.0, betas=(0.9, 0.99), fused=True)
    average = EMA(raw, power_decay(settings.width))
    raw.train()
    steps, total, share, losses = 0, torch.zeros((), device=device), 0.0, []
    start = time.perf_counter()
    while share < 1:
        for _ in range(LOOK if device.type == "cuda" else 5):
            steps += 1
            # Decay by the share of the time: the number of updates is not known beforehand.
            rate = settings.rate * min(steps / settings.warmup, 1.0) * max(1 - share, 0.01) ** 0.5
            for group in optimizer.param_groups:
                group["lr"] = rate
            x0 = batch_of(x, settings.batch)
            # Stratified: one time in each of B equal intervals, in random order.
            cells = torch.randperm(settings.batch, device=device).double()
            t = 1e-4 + (1 - 1e-4) * (cells + torch.rand(settings.batch, device=device).double()) / settings.batch
            eps = torch.randn_like(x0)
            _, minimised = objective(x0, model.sde.to_step(t), eps, torch.ones_like(t))
            optimizer.zero_grad(set_to_none=True)
            loss = minimised.mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            average.update(steps)
            total += loss.detach()
        losses.append(float(total))  # waits for the device
        total.zero_()
        share = (time.perf_counter() - start) / (60 * settings.minutes)
    took = time.perf_counter() - start
    raw.load_state_dict(average.state())
    model.eval().requires_grad_(False)
    return model, {
        "parameters": float(sum(p.numel() for p in parameters)),
        "updates": float(steps),
        "seconds": took,
        "images/s": steps * settings.batch / took,
        "last loss": losses[-1] / (LOOK if device.type == "cuda" else 5),
    }
