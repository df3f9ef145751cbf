"""Samples and held-out loss during training, in the run folder, and the page that shows them.

    samples/step-000250.png    samples of the averaged weights after 250 updates
    watch.json                 the updates with samples, their held-out loss and that of training data
    index.html                 loss curves and samples; it reloads itself while the run goes on

Everything is drawn with generators of its own and a copy of the network, so that training is bit-equal with and
without it.
"""

from __future__ import annotations

import copy
import io
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sde_diffusion.data import Data
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.report.page_of_training import EXPECTED, Preview, training_page
from sde_diffusion.report.sample_figure import sample_image
from sde_diffusion.storage.atomic_folder import to_json
from sde_diffusion.training.trainer import Trainer
from sde_diffusion.training.watching.held_out import loss_on
from solvers import solve

NFE = 20
COUNT = {"image": 25, "vector": 400, "signal": 8}  # samples of a preview; points are cheap
FILE, PAGE = "watch.json", "index.html"
SEED = 2**40  # of the samples of a preview, far from those of ``sample``


def shown_kind(model: ScoreModel, data: Data) -> str:
    """The kind of the samples of a run, that of decoded latents being "image"; "latent" or "class" where it has none.

    >>> from sde_diffusion.data import load_data
    >>> from sde_diffusion.training.defaults import default_model
    >>> data = load_data("digits")
    >>> [shown_kind(default_model(data, **options), data) for options in ({}, {"network": "autoencoder", \
"predicts": "latent"})]
    ['image', 'latent']
    """
    if model.predicts in EXPECTED:
        return model.predicts
    return data.kind if model.decoder is None else "image"


class Watcher:
    """Draws samples on the way and keeps the page of the run.

    Args:
        trainer: the trainer.
        folder: folder of the run.
        write: writes a file of the run by its name.
        held_out: data that training does not see, by its own positions; None for none.
        track: passes metrics and an image of an update to the tracker.
    """

    def __init__(
        self,
        trainer: Trainer,
        folder: Path,
        write: Callable[[str, bytes], None],
        held_out: tuple[Data, Tensor] | None,
        track: Callable[[Mapping[str, float], np.ndarray[Any, Any] | None, int], None],
    ) -> None:
        self.trainer, self.folder, self.write, self.held_out, self.track = trainer, folder, write, held_out, track
        self.losses = _lines(folder / "metrics.jsonl")
        self.previews = [entry for entry in _entries(folder / FILE) if entry["step"] <= trainer.step]
        self.failed, self.samples = False, True

    def due(self, step: int) -> bool:
        """Whether samples are to be drawn after an update."""
        every = self.trainer.config.sample_every
        return self.samples and bool(every) and step % every == 0

    def logged(self, record: Mapping[str, Any]) -> None:
        """Take a line of the log, and bring the page up to date."""
        self.losses.append((record["step"], record["loss"]))
        self.page("running")

    def preview(self, step: int) -> Path | None:
        """Draw samples and measure the held-out loss of the averaged weights; a failure is a warning."""
        if self.failed or not self.samples or any(entry["step"] == step for entry in self.previews):
            return None
        try:
            entry, image = self._preview(step)
        except Exception as error:  # a network of one's own may need more than (x, t); training goes on
            self.failed = True
            warnings.warn(f"no samples are drawn during training: {error}", stacklevel=2)
            return None
        self.previews.append(entry)
        self.write(FILE, to_json({"previews": self.previews}))
        self.track({name: entry[name] for name in ("held_out_loss", "train_loss") if name in entry}, image, step)
        return None if entry["picture"] is None else self.folder / entry["picture"]

    def _preview(self, step: int) -> tuple[dict[str, Any], np.ndarray[Any, Any] | None]:
        trainer = self.trainer
        devices = [trainer.device] if trainer.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            model = copy.deepcopy(trainer.model)
            model.network.load_state_dict(trainer.averages["ema"].state())
            model.eval()
            entry: dict[str, Any] = {"step": step}
            if self.held_out is not None:
                entry["held_out_loss"] = loss_on(model, *self.held_out, trainer.config)
                entry["train_loss"] = loss_on(model, trainer.data, trainer.kept, trainer.config)
            x, classes = self._samples(model)
        data = trainer.data
        reference = data.batch(slice(0, 4000)) if data.shape == (2,) else None
        image = sample_image(x, shown_kind(model, data), reference, classes, data.class_names)
        entry["picture"] = None if image is None else f"samples/step-{step:06d}.png"
        if image is not None:
            self.write(entry["picture"], image)
        return entry, None if image is None else _pixels(image)

    def _samples(self, model: ScoreModel) -> tuple[Tensor, list[int] | None]:
        data = self.trainer.data
        count = COUNT[shown_kind(model, data)]
        condition: dict[str, Tensor] = {}
        classes: list[int] | None = None
        if self.trainer.config.labels and data.classes:
            known = min(data.classes, 10)
            classes = [k % known for k in range(max(count // known, 4) * known)]
            count = len(classes)
            condition["label"] = torch.tensor(classes, device=model.device)
        if data.condition is not None:
            places = torch.linspace(0, len(data) - 1, count, dtype=torch.float64, device="cpu").long()
            condition[data.condition.kind] = data.condition.batch(places).to(model.device)
        seeds = SEED + torch.arange(count, device="cpu")
        x1 = model.sde.prior((count, *data.shape), seeds=seeds, device=model.device, dtype=model.state_dtype)
        process = model.sde.probability_flow(model, **model.bind(condition))
        return model.to_samples(solve(process, x1, solver="pf-ode", nfe=NFE).x).float().cpu(), classes

    def page(self, state: str) -> None:
        """Write the page: "running" reloads itself, "done" and "stopped" do not."""
        previews = [
            Preview(
                entry["step"],
                None if entry["picture"] is None else self.folder / entry["picture"],
                entry.get("held_out_loss"),
                entry.get("train_loss"),
            )
            for entry in self.previews
        ]
        data, config = self.trainer.data, self.trainer.config
        model = self.trainer.model
        kind, about = shown_kind(model, data), f"{len(data):,} {data.kind}s"
        if kind != "latent":
            about += f"; {model.sde}"
        resume = f"sdediff train --resume --out {self.folder}"
        name = f"Training on {data.name}"
        text = training_page(name, about, config.steps, self.losses, previews, state, kind, resume)
        self.write(PAGE, text.encode())


def _lines(metrics: Path) -> list[tuple[int, float]]:
    if not metrics.is_file():
        return []
    lines = map(json.loads, metrics.read_text(encoding="utf-8").splitlines())
    return [(line["step"], line["loss"]) for line in lines]


def _entries(file: Path) -> list[dict[str, Any]]:
    """The previews of a run so far; none where the file is missing, torn or foreign: they are no part of training."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["previews"]
        return [
            {name: entry[name] for name in ("step", "held_out_loss", "train_loss", "picture") if name in entry}
            for entry in found
            if isinstance(entry["step"], int) and entry["picture"] in (None, f"samples/step-{entry['step']:06d}.png")
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _pixels(image: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))
