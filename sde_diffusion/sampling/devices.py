"""Devices by name."""

from __future__ import annotations

import torch

from solvers.errors import InputError, choose

DEVICES = ("auto", "cpu", "cuda")


def device_for(name: str) -> torch.device:
    """The device of a name in ``DEVICES``; auto is cuda if it is available.

    Raises:
        ValueError: an unknown name, or cuda without a CUDA device.
    """
    choose(name, dict.fromkeys(DEVICES), "device")
    cuda = torch.cuda.is_available()
    if name == "cuda" and not cuda:
        raise InputError("device 'cuda': torch sees no CUDA device here; use 'cpu' or 'auto'")
    return torch.device("cuda" if cuda and name != "cpu" else "cpu")
