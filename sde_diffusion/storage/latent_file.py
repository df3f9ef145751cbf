"""The autoencoder of a latent model on disk: a file of its own, known by the hash of its weights.

    runs/<name>/autoencoder.safetensors     in the run of a latent model
    NAME.autoencoder.safetensors            beside the exported file NAME.safetensors

The description of the latent model holds the hash, so that latents are never decoded by another autoencoder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from sde_diffusion.models.autoencoder import AutoencoderModel
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.storage.atomic_folder import CheckpointError
from sde_diffusion.storage.record_types import LatentEntry

AUTOENCODER = "autoencoder.safetensors"


def latent_entry(model: AutoencoderModel) -> LatentEntry:
    """The entry of a latent model for its autoencoder: a hash over names and values of the weights, and the shape.

    >>> from sde_diffusion.networks.principal_components import PrincipalComponents
    >>> from sde_diffusion.sde import VPSDE
    >>> entry = latent_entry(AutoencoderModel(PrincipalComponents((3,), 2), VPSDE(), (3,)))
    >>> entry["shape"], len(entry["autoencoder"])
    ([3], 64)
    """
    assert model.shape is not None
    return {"autoencoder": hash_of(model), "shape": list(model.shape)}


def hash_of(model: ScoreModel) -> str:
    """The SHA-256 over names and values of the weights of a model, and over its units."""
    units = model.units
    digest = hashlib.sha256(repr(None if units.is_identity else units.entry()).encode())
    for name, value in sorted(model.network.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def beside(path: Path) -> Path:
    """The file with the autoencoder of a latent model: in its run, or beside its exported file.

    >>> beside(Path("runs/a/checkpoints/step-000001")).parts[-2:], beside(Path("a.safetensors")).name
    (('a', 'autoencoder.safetensors'), 'a.autoencoder.safetensors')
    """
    if path.suffix == ".safetensors":
        return path.with_suffix(f".{AUTOENCODER}")
    return (path.parent.parent if path.parent.name == "checkpoints" else path) / AUTOENCODER


def decoder_beside(path: Path, latent: LatentEntry, load: Callable[[Path], ScoreModel]) -> AutoencoderModel:
    """The autoencoder of a latent model in a checkpoint or an exported file.

    Raises:
        CheckpointError: the file is missing, damaged, or another autoencoder's.
    """
    file = beside(path)
    if not file.is_file():
        raise CheckpointError(
            f"{path} is a model of latents, and its autoencoder {file} is missing; put back the one whose weights "
            f"have the hash {latent['autoencoder'][:12]}"
        )
    model = load(file)
    if not isinstance(model, AutoencoderModel):
        raise CheckpointError(f"{file} is no autoencoder: it predicts {model.predicts}")
    found = latent_entry(model)
    if found != latent:
        raise CheckpointError(
            f"{file} is another autoencoder than that of the latents of {path}: the hash of its weights is "
            f"{found['autoencoder'][:12]}, that of training was {latent['autoencoder'][:12]}"
        )
    return model
