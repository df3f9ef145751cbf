"""Options of the training of an autoencoder alone, and the classifier of its perceptual distance.

The classifier is the one that was asked for, or the one that a run keeps:

    runs/<name>/features.safetensors     beside the autoencoder, so that a resumed run needs nothing else

config.json has the hash of its weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sde_diffusion.models.noisy_classifier import NoisyClassifier
from sde_diffusion.storage.checkpoint import load
from sde_diffusion.storage.locate import find_classifier
from sde_diffusion.training.config import TrainConfig
from solvers.errors import InputError

FEATURES = "features.safetensors"
OWN = ("kl_weight", "commitment", "perceptual", "adversarial", "adversarial_after")
"""Options of ``TrainConfig`` that only the training of an autoencoder uses."""


def reader_for(place: str | None, run: Path | None, device: str) -> NoisyClassifier | None:
    """The classifier at a place, or that of the run to resume; None for neither.

    Args:
        place: run of a classifier of noisy samples, or its exported file.
        run: the run that is resumed.
        device: where it is loaded.

    Raises:
        FileNotFoundError: nothing exists at the place.
        ValueError: it is no classifier.
    """
    own = None if run is None else run / FEATURES
    if place is None and (own is None or not own.is_file()):
        return None
    model = load(find_classifier(place or str(own)), device=device)
    assert isinstance(model, NoisyClassifier)
    return model.eval()


def check_options(options: Mapping[str, Any], autoencoder: bool) -> None:
    """Refuse options that the training of an autoencoder does not take, and those that it alone takes.

    Raises:
        ValueError: the message names the option.

    >>> check_options({"adversarial": 0.5}, autoencoder=False)
    Traceback (most recent call last):
    ...
    solvers.errors.InputError: adversarial (--adversarial) is of the training of an autoencoder: --autoencoder kl or vq
    """
    for name in ("sde", "predicts", "condition", "labels", "augment", "latent", "task"):
        if autoencoder and options.get(name):
            raise InputError(
                f"{name} (--{name}) is not of the training of an autoencoder, which sees samples alone; leave it out"
            )
    usual = {"features": None, **{name: getattr(TrainConfig(), name) for name in OWN}}
    for name, default in usual.items():
        if not autoencoder and options.get(name, default) != default:
            flag = f"--{name.replace('_', '-')}"
            raise InputError(f"{name} ({flag}) is of the training of an autoencoder: --autoencoder kl or vq")
