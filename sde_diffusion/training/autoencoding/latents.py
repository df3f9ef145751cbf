"""The latents of a data set, encoded once into a folder from which training maps them.

    latents-AUTOENCODER-DATA/     as ``sdediff prepare`` writes it, named after the hashes of both

The folder lies beside the run, so that later runs on the same data find it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sde_diffusion.data import Data
from sde_diffusion.data.prepared import load_prepared, read_note, write_prepared
from sde_diffusion.models.autoencoder import AutoencoderModel
from sde_diffusion.storage.checkpoint import load
from sde_diffusion.storage.latent_file import AUTOENCODER, latent_entry
from sde_diffusion.storage.locate import find_autoencoder
from sde_diffusion.storage.record_types import ModelDescription
from solvers.errors import InputError

BATCH = 256


def check_data(model: AutoencoderModel, data: Data) -> None:
    """Refuse data of another shape than an autoencoder's.

    Raises:
        ValueError: with both shapes.
    """
    if data.shape != model.shape:
        raise InputError(
            f"the autoencoder is for samples of shape {model.shape}; those of {data.name} are {data.shape}: give the "
            "data that it was trained on, or others of that shape (--data, --size)"
        )


def latents_of(model: AutoencoderModel, data: Data, most: int | None = None) -> Data:
    """The latents of up to ``most`` samples, spaced evenly, in memory; labels and conditions stay.

    Raises:
        ValueError: samples of another shape.

    >>> from sde_diffusion.data import load_data
    >>> from sde_diffusion.models.autoencoder import principal_components
    >>> digits = load_data("digits")
    >>> latents_of(principal_components(digits, 5), digits, most=100)
    Data('digits': 100 vectors (5,), 10 classes)
    """
    check_data(model, data)
    count = len(data) if most is None else min(most, len(data))
    index = torch.linspace(0, len(data) - 1, count, dtype=torch.float64, device="cpu").round().long()
    x = torch.cat([model.encode(data.batch(part).to(model.device)).cpu() for part in torch.split(index, BATCH)])
    given = data.condition
    return replace(
        data,
        x=x.float(),
        labels=None if data.labels is None else data.labels[index],
        kind=_kind(model),
        file=None,
        source=data.fingerprint,
        condition=None if given is None else replace(given, values=given.values[index]),
    )


def encoded(
    model: AutoencoderModel, data: Data, parent: Path, progress: Callable[[int, int], None] | None = None
) -> Data:
    """The latents of a data set, mapped from a folder in ``parent`` that is written at the first call.

    Args:
        model: the autoencoder, in evaluation mode.
        data: the samples.
        parent: where the folder lies.
        progress: called with the number of encoded samples, and that of all.

    Raises:
        ValueError: samples of another shape, or a folder with the latents of another autoencoder.
        OSError: it could not be written; nothing is left behind.
    """
    check_data(model, data)
    about = {"autoencoder": latent_entry(model)["autoencoder"], "source": data.fingerprint}
    folder = parent / f"latents-{about['autoencoder'][:8]}-{about['source'][:8]}"
    if not folder.exists():
        write_prepared(folder, _samples(model, data, progress), _kind(model), about)
    note = read_note(folder)
    for key, expected in about.items():
        if note.get(key) != expected:
            what = "autoencoder" if key == "autoencoder" else "data set"
            raise InputError(
                f"{folder} holds the latents of another {what}: its hash is {str(note.get(key))[:12]}, that of this "
                f"one is {expected[:12]}; remove the folder, and it is written anew"
            )
    found = load_prepared(folder)
    result = replace(found, name=data.name, labels=data.labels, class_names=data.class_names, source=about["source"])
    result = replace(result, condition=data.condition)
    result.__dict__["fingerprint"] = found.fingerprint
    return result


def _kind(model: AutoencoderModel) -> str:
    return "vector" if len(model.latent_shape) == 1 else "signal"


def _samples(
    model: AutoencoderModel, data: Data, progress: Callable[[int, int], None] | None
) -> Iterator[tuple[np.ndarray[Any, Any], int | None]]:
    for start in range(0, len(data), BATCH):
        part = data.batch(slice(start, start + BATCH)).to(model.device)
        yield from ((z, None) for z in model.encode(part).float().cpu().numpy())
        if progress is not None:
            progress(min(start + BATCH, len(data)), len(data))


def autoencoder_for(
    place: str | None, run: Path | None, like: ModelDescription | None, device: str
) -> AutoencoderModel | None:
    """The autoencoder of a training: the one at a place, or that of the run to resume; None for neither.

    Raises:
        ValueError: a resumed run is given another one.
    """
    stored = None if like is None else like.get("latent")
    if place is None and (stored is None or run is None):
        return None
    model = load(find_autoencoder(place), device=device) if place is not None else load(_own(run), device=device)
    assert isinstance(model, AutoencoderModel)
    if like is not None and (stored is None or latent_entry(model) != stored):
        was = "data, not latents" if stored is None else f"the latents of the autoencoder {stored['autoencoder'][:12]}"
        raise InputError(
            f"the run was trained on {was}, and {place or _own(run)} is the autoencoder "
            f"{latent_entry(model)['autoencoder'][:12]}; leave --latent out, or start a new run"
        )
    return model


def _own(run: Path | None) -> Path:
    assert run is not None
    return run / AUTOENCODER
