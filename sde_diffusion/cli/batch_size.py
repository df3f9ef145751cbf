"""The option --batch-size: a number, or what fits into memory."""

from __future__ import annotations

import torch

from sde_diffusion.parallel.batch_size import largest_batch
from sde_diffusion.sampling.devices import device_for
from sde_diffusion.storage.checkpoint import StoredModel, load
from solvers.errors import InputError

AUTO = "auto"
USUAL, MOST = 256, 8192


def whole_or_auto(text: str) -> int | str:
    """The batch size that a text means.

    Raises:
        ValueError: neither a whole number nor auto.

    >>> whole_or_auto("64"), whole_or_auto("auto")
    (64, 'auto')
    """
    if text == AUTO:
        return AUTO
    try:
        return int(text)
    except ValueError:
        raise InputError(f"--batch-size takes a whole number or auto; got '{text}'") from None


@torch.no_grad()
def fitting_batch(stored: StoredModel, device: str) -> int:
    """The batch size for a model on a device; the usual one on the CPU, whose memory has no firm end.

    Raises:
        ValueError: not even one sample fits.
    """
    place = device_for(device)
    if place.type == "cpu":
        return USUAL
    model = load(stored, device=str(place))
    if model.shape is None:
        raise InputError(f"{stored.path} does not say the shape of a sample; give --batch-size a number")
    shape = model.shape

    def run(size: int) -> None:
        x = torch.zeros(size, *shape, device=place)
        model.denoise(x, torch.full((size,), 0.5, dtype=torch.float64, device=place))

    return largest_batch(run, MOST)
