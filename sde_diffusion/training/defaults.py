"""A model for given data when little is said about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from sde_diffusion.data import Data
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.networks import build, default_network
from sde_diffusion.sde import SDE, make_sde
from sde_diffusion.storage.checkpoint import rebuild
from sde_diffusion.storage.record_types import ModelDescription, NetworkEntry
from solvers.errors import InputError, InputTypeError

# What a setting may be, by what it is otherwise; None says nothing. Whole numbers are truth values to Python.
_KINDS: tuple[Any, ...] = (bool, int, (int, float), str, (list, tuple))


def default_predicts(sde: SDE) -> str:
    """What a network does well to predict.

    The preconditioned "edm" where the noise grows far beyond the data, because there x_0 is a small difference of x
    and the noise; else the velocity. Not the noise: x_0 = (x - sigma eps) / alpha, so that where alpha(1) is small
    (0.0066 for vp) an error of 0.2 in a predicted noise is one of 30 in x_0, and a sample in a thousand ends far from
    all data (benchmarks/outliers.py).

    >>> [default_predicts(make_sde(name)) for name in ("vp", "cosine", "ve")]
    ['velocity', 'velocity', 'edm']
    """
    return "edm" if float(sde.marginal(1.0)[1]) > 2 else "velocity"


def default_options(predicts: str) -> dict[str, str]:
    """The weight and the times that go with what a network predicts, as options of ``train``.

    The plain error of its output for velocity, which keeps the start of sampling at alpha = 0 in the loss; those of
    Karras et al. 2022 for "edm".

    >>> default_options("edm")
    {'weight': 'edm', 'times': 'log-normal'}
    """
    if predicts == "edm":
        return {"weight": "edm", "times": "log-normal"}
    return {"weight": "velocity" if predicts == "velocity" else "simple", "times": "stratified"}


def default_model(
    data: Data,
    *,
    sde: str | None = None,
    predicts: str | None = None,
    network: str | None = None,
    sde_settings: Mapping[str, Any] | None = None,
    network_settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    like: ModelDescription | None = None,
) -> ScoreModel:
    """An untrained model that suits the data.

    Args:
        data: what it will be trained on.
        sde: a name in ``SDES``; vp by default.
        predicts: a name in ``PREDICTS``; ``default_predicts`` of the process by default.
        network: a name in ``NETWORKS``; ``default_network`` of the shape by default.
        sde_settings: settings of the process that differ from its own defaults.
        network_settings: settings of the network that differ from ``default_network``.
        seed: of the weights.
        like: the description of a model (``checkpoint.describe``), whose choices take the place of
            the defaults.

    Raises:
        ValueError: an unknown name or setting, or one out of range.
        TypeError: a setting of the wrong type.

    >>> from sde_diffusion.data import load_data
    >>> model = default_model(load_data("moons"), network_settings={"width": 32})
    >>> model.predicts, model.shape, model.network.settings["width"]
    ('velocity', (2,), 32)
    """
    if like is not None and sde in (None, like["sde"]["name"]):
        name, settings = like["sde"]["name"], dict(like["sde"]["settings"])
        predicts = predicts or like["predicts"]
    else:
        name = sde or "vp"
        settings = asdict(make_sde(name))
    process = make_sde(name, **_changed(settings, sde_settings, f"the process {name}"))
    predicts = predicts or default_predicts(process)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if like is None:
            usual = default_network(data.shape)
            start = usual if network in (None, usual.name) else build(str(network), shape=data.shape)
            # An "edm" network receives log(rho) / 4, which is a logarithm already.
            embedding = "sinusoidal" if predicts == "edm" else "log"
            entry: NetworkEntry = {
                "name": start.name,
                "class": "",
                "settings": {**start.settings, "embedding": embedding},
            }
            sigma_data = _spread(data) if predicts == "edm" else 1.0
        else:
            entry, sigma_data = like["network"], like["sigma_data"]
            if network not in (None, entry["name"]):
                raise InputError(f"the network is {entry['name']}; it cannot become {network}")
        what = f"the network {entry['name']}"
        settings = _changed(entry["settings"] or {}, network_settings, what)
        return rebuild(
            {
                "sde": {"name": name, "settings": asdict(process)},
                "network": {"name": entry["name"], "class": entry["class"], "settings": settings},
                "predicts": predicts,
                "sigma_data": sigma_data,
                "shape": list(data.shape),
            }
        )


def _changed(settings: Mapping[str, Any], given: Mapping[str, Any] | None, what: str) -> dict[str, Any]:
    for name, value in (given or {}).items():
        if name not in settings:
            known = ", ".join(settings) or "none"
            raise InputError(f"{what} has no setting '{name}'; its settings: {known}")
        usual = settings[name]
        kinds = next((k for k in _KINDS if isinstance(usual, k)), object)
        if not isinstance(value, kinds) or (isinstance(value, bool) and not isinstance(usual, bool)):
            raise InputTypeError(f"{what}: {name} must be of the kind of {usual!r}; got {value!r}")
    return {**settings, **(given or {})}


def _spread(data: Data) -> float:
    """Standard deviation of the data, or of equally spaced samples of a large set."""
    count = min(len(data), max(1, 2**23 // data.x[0].numel()))
    index = torch.linspace(0, len(data) - 1, count, dtype=torch.float64).long()
    return round(float(data.batch(index).double().std(correction=0)), 4) or 1.0
