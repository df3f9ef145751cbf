"""One training step, and everything that evolves from step to step.

The figures of a step stay on the device until somebody reads them: a GPU is not made to wait.
Reading them (``read``) also looks for values that are not finite, and because what a step drew is a
function of its number, the step, its samples and its times can be named then.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sde_diffusion.config import TrainConfig
from sde_diffusion.data import Data
from sde_diffusion.draws import Draws
from sde_diffusion.ema import EMA
from sde_diffusion.losses import denoising_loss
from sde_diffusion.score import ScoreModel
from sde_diffusion.storage import CheckpointError


class _Figures(NamedTuple):
    losses: Tensor
    loss: Tensor
    norm: Tensor


class Trainer:
    """A model in training.

    Args:
        model: the score model; its network is moved to the device and trained in place.
        data: the samples.
        config: the options.
        device: where to train.

    Attributes:
        step: how many updates were made.
        losses: mean loss of each step since the last line of the log.
        norms: norm of the gradient of the same steps, before clipping.
        waited: seconds spent on getting data, ever.

    Raises:
        ValueError: the network has nothing to train, or its output is not shaped like its input.
    """

    def __init__(self, model: ScoreModel, data: Data, config: TrainConfig, device: torch.device) -> None:
        self.model = model.to(device)
        self.data = data
        self.config = config
        self.device = device
        self.network: nn.Module = model.network
        self.draws = Draws(config.seed, len(data), config.batch_size, config.t_min)
        self.parameters = {n: p for n, p in self.network.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise ValueError("the network has no parameters that require a gradient")
        self.ema = EMA(self.network, config.ema)
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.step = 0
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.waited = 0.0
        self._unread: list[_Figures] = []
        self._try()

    @torch.no_grad()
    def _try(self) -> None:
        """Evaluate one sample, so that a network that does not fit fails before a run is made."""
        training = self.network.training
        self.network.eval()
        x0 = self.data.batch([0]).to(self.device)
        self.model.output(x0, torch.full((1,), 0.5, dtype=torch.float64, device=self.device))
        self.network.train(training)

    def advance(self) -> None:
        """Make one update of the weights and of their average."""
        k = self.step + 1
        start = time.perf_counter()
        x0 = self.data.batch(self.draws.index(k)).to(self.device, non_blocking=True)
        self.waited += time.perf_counter() - start
        t = self.draws.times(k).to(self.device, non_blocking=True)
        eps = self.draws.noise(k, x0)
        self._seed_network(k)
        losses = denoising_loss(self.model, x0, t, eps, self.config.weight)
        loss = losses.mean()
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.config.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate_at(k)
        self.optimizer.step()
        self.ema.update(k)
        self._unread.append(_Figures(losses.detach(), loss.detach(), norm))
        self.step = k

    def _seed_network(self, step: int) -> None:
        # torch.manual_seed asks every kind of device: 0.14 ms, noticeable beside a small network.
        seed = self.draws.network_seed(step)
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def read(self) -> None:
        """Take the figures of the last steps off the device, into ``losses`` and ``norms``.

        Raises:
            FloatingPointError: a loss or gradient was not finite; the message names step, samples
                and times.
        """
        if not self._unread:
            return
        loss = torch.stack([figures.loss for figures in self._unread]).tolist()
        norm = torch.stack([figures.norm for figures in self._unread]).tolist()
        for k, total in enumerate(torch.tensor(loss) + torch.tensor(norm)):
            if not total.isfinite():
                self._report(self.step - len(self._unread) + k + 1, self._unread[k])
        self.losses += loss
        self.norms += norm
        self._unread.clear()

    def _report(self, step: int, figures: _Figures) -> None:
        bad = (~figures.losses.isfinite()).cpu()
        what = "loss" if bool(bad.any()) else "gradient"
        rows = bad if bool(bad.any()) else torch.ones_like(bad)
        t = self.draws.times(step)[rows]
        index = self.draws.index(step)[rows].tolist()
        shown = ", ".join(map(str, index[:8])) + (", ..." if len(index) > 8 else "")
        raise FloatingPointError(
            f"the {what} of step {step} is not finite: {len(index)} of {len(bad)} samples of "
            f"the batch, number {shown}; t from {float(t.min()):.3g} to {float(t.max()):.3g}. "
            "Checkpoints saved before are intact. The usual causes are a learning rate that is too "
            f"high (learning_rate={self.config.learning_rate:g}) and data far from unit scale"
        )

    def groups(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of a checkpoint, by file."""
        state = self.optimizer.state_dict()["state"]
        names = list(self.parameters)
        moments = {f"{names[i]}.{n}": v for i, entry in state.items() for n, v in entry.items()}
        return {
            "model": self.network.state_dict(),
            "ema": self.ema.state(),
            "optimizer": moments,
        }

    def state(self) -> dict[str, Any]:
        """The numbers of a checkpoint. Call ``read`` first."""
        return {"step": self.step, "unlogged": {"loss": self.losses, "grad_norm": self.norms}}

    def restore(self, groups: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint, bit for bit.

        Raises:
            CheckpointError: it belongs to another network.
        """
        try:
            self.network.load_state_dict(groups["model"])
            self.ema.restore(groups["ema"])
            moments: dict[int, dict[str, Tensor]] = {}
            numbers = {name: i for i, name in enumerate(self.parameters)}
            for key, value in groups["optimizer"].items():
                name, entry = key.rsplit(".", 1)
                moments.setdefault(numbers[name], {})[entry] = value
            self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
            self.step = state["step"]
            self.losses = list(state["unlogged"]["loss"])
            self.norms = list(state["unlogged"]["grad_norm"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(f"the checkpoint is not of this network: {error}") from None
