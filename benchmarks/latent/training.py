"""Train the models of the benchmark, each for a number of CPU seconds of one core.

    pixel         a U-Net of 28 x 28 pixels, BUDGET seconds
    autoencoder   28 x 28 to 4 x 7 x 7 by KL, 0.4 BUDGET
    latent        a U-Net of its latents, 0.6 BUDGET
    cascade       7, 14, 28 pixels, 0.2, 0.3 and 0.5 BUDGET
    superres      7 to 28 pixels by one network (SR3), 0.5 BUDGET

The number of updates is found from the CPU time of a few of them, since the learning rate falls to 0 at the last.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from sde_diffusion.cascade.stages import stage_data, stage_folder
from sde_diffusion.data import Data, load_data
from sde_diffusion.models.autoencoder import AutoencoderModel
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.storage.checkpoint import load
from sde_diffusion.training.autoencoding.latents import encoded
from sde_diffusion.training.config import TrainConfig
from sde_diffusion.training.defaults import set_up
from sde_diffusion.training.trainer import Trainer
from sde_diffusion.training.training_run import train

BUDGET = 240.0  # CPU seconds of each way
SIZES = [7, 14, 28]
SHARES = [0.2, 0.3, 0.5]
QUIET: dict[str, Any] = {"sample_every": 0, "log_every": 20, "checkpoint_every": 100_000, "device": "cpu"}
PARTS = ("autoencoder", "latent", "pixel", "cascade", "superres")


def mnist(split: str = "train") -> Data:
    """The images, without labels."""
    return replace(load_data("mnist", os.environ["SDEDIFF_DATA_DIR"], split=split), labels=None, class_names=None)


def train_for(options: dict[str, Any], data: Data, folder: Path, seconds: float) -> ScoreModel:
    """Train with options for CPU seconds, and write how long it took beside the run."""
    if (folder / "seconds.json").is_file():
        return load(folder)
    made = set_up({**QUIET, **options, "out": str(folder)}, given_data=data)
    model = made.model
    model.__dict__["_decoder"] = options.get("decoder")
    per_update = cpu_of_update(model, data, made.config)
    steps = max(20, int(seconds / per_update))
    start = time.process_time()
    config = made.config.with_options({"steps": steps})
    trained = train(model, data, config, out=folder, progress=True)
    spent = {"seconds": time.process_time() - start, "steps": steps, "batch_size": config.batch_size}
    (folder / "seconds.json").write_text(json.dumps(spent))
    print(folder, spent, flush=True)
    return trained


def cpu_of_update(model: ScoreModel, data: Data, config: TrainConfig) -> float:
    """CPU seconds of an update, from five of a copy."""
    trainer = Trainer(copy.deepcopy(model), data, replace(config, steps=6))
    marks = [time.process_time() for _ in trainer]
    return (marks[-1] - marks[0]) / (len(marks) - 1)


def train_part(part: str, runs: Path, budget: float = BUDGET) -> None:
    """Train one of ``PARTS`` in a folder of runs; what is finished is kept."""
    data = mnist()
    small = {"network": {"size": "small"}, "batch_size": 32, "ema": 0.995}
    if part == "autoencoder":
        train_for({"autoencoder": "kl", **small}, data, runs / "autoencoder", 0.4 * budget)
    elif part == "latent":
        model = load(runs / "autoencoder")
        assert isinstance(model, AutoencoderModel)
        begin = time.process_time()
        latents = encoded(model, data, runs)
        print("encoded in", time.process_time() - begin, "CPU seconds", flush=True)
        train_for({"batch_size": 64, "decoder": model}, latents, runs / "latent", 0.6 * budget)
    elif part == "pixel":
        train_for(small, data, runs / "pixel", budget)
    elif part == "superres":
        made = replace(data, condition=stage_data(data, [7, 28])[1].condition)
        train_for({**small, "condition_noise": 0.5}, made, runs / "superres", 0.5 * budget)
    else:
        for number, (size, share, stage) in enumerate(zip(SIZES, SHARES, stage_data(data, SIZES), strict=True), 1):
            own = {"batch_size": 64} if size == 7 else {**small, "condition_noise": 0.5}
            train_for(own, stage, stage_folder(runs / "cascade", number, size), share * budget)


if __name__ == "__main__":
    place = Path(os.environ.get("LATENT_RUNS", "runs/latent-benchmark"))
    for name in sys.argv[1:] or PARTS:
        train_part(name, place)
