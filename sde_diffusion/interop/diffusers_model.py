"""Models of diffusers as score models: a network, a pipeline, or a folder that ``save_pretrained`` wrote."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sde_diffusion.interop.autoencoder import Autoencoder
from sde_diffusion.interop.diffusers_network import DiffusersNetwork, shape_of
from sde_diffusion.interop.diffusers_schedule import Schedule, config_of, read_schedule
from sde_diffusion.interop.foreign import ForeignModel
from solvers.errors import InputError, InputTypeError, MissingPackageError, NotFoundError

INDEX = "model_index.json"
CONFIG = "config.json"
EXPORTED = "ExportedNetwork"  # of export_diffusers
_PARTS = ("unet", "transformer", "prior")


class DiffusersModel(ForeignModel):
    """A network of diffusers as a score model.

    Attributes:
        schedule: settings of its scheduler.
        autoencoder: autoencoder of a latent model, with ``encode`` and ``decode``; None for models of pixels.
    """

    def __init__(
        self, network: nn.Module, schedule: Schedule, autoencoder: Autoencoder | None = None, **settings: Any
    ) -> None:
        shape = settings.get("shape") or shape_of(network)
        super().__init__(
            DiffusersNetwork(network, schedule), schedule.sde, schedule.predicts, shape, schedule.sigma_data
        )
        self.schedule = schedule
        self.autoencoder = autoencoder

    def decode(self, latents: Tensor) -> Tensor:
        """Images of latents; of a model of pixels, what it is given."""
        return latents if self.autoencoder is None else self.autoencoder.decode(latents)


def from_diffusers(source: Any, scheduler: Any = None, shape: tuple[int, ...] | None = None) -> DiffusersModel:
    """The score model of a network, pipeline or local folder of diffusers.

    Args:
        source: a network, such as a UNet2DModel or a transformer; a pipeline; or a folder that ``save_pretrained``
            wrote for either. A folder is read from this disk alone, as safetensors alone.
        scheduler: a scheduler, its config, or a folder with scheduler_config.json; by default the pipeline's own.
        shape: shape of one sample; that of the network's config by default.

    Raises:
        FileNotFoundError: a folder without a model, or a network without a scheduler's file.
        TypeError: a network that is called in another way, or nothing of these.
        ValueError: a scheduler that is missing or unknown.
        ModuleNotFoundError: a folder, and diffusers is not installed.
    """
    autoencoder = None
    if isinstance(source, str | os.PathLike):
        network, autoencoder, found = _read_folder(Path(source), scheduler is None)
    else:
        network, autoencoder, found = _parts_of(source)
    scheduler = found if scheduler is None else scheduler
    if scheduler is None:
        raise InputError(
            f"{type(network).__name__} does not say on which process it was trained; pass its scheduler: "
            "from_diffusers(network, scheduler)"
        )
    return DiffusersModel(network.eval(), read_schedule(scheduler), autoencoder, shape=shape)


def _parts_of(source: Any) -> tuple[nn.Module, Autoencoder | None, Any]:
    """Network, autoencoder and scheduler of a pipeline; of a network the network alone."""
    if isinstance(source, nn.Module):
        return source, None, None
    network = next((part for name in _PARTS if isinstance(part := getattr(source, name, None), nn.Module)), None)
    if network is None:
        raise InputTypeError(
            f"expected a network, a pipeline with a unet or transformer, or a folder; got {type(source).__name__}"
        )
    vae = getattr(source, "vae", None)
    return network, None if vae is None else Autoencoder(vae), getattr(source, "scheduler", None)


def _read_folder(folder: Path, with_scheduler: bool) -> tuple[nn.Module, Autoencoder | None, Any]:
    """Network, autoencoder and the scheduler's config of a folder of a pipeline or of a network."""
    if not folder.is_dir():
        raise NotFoundError(f"no folder {folder}: expected what save_pretrained of diffusers wrote")
    if (folder / CONFIG).is_file() and not (folder / INDEX).is_file():
        beside = folder.parent / "scheduler"
        scheduler = next((p for p in (folder / "scheduler", beside) if p.is_dir()), None) if with_scheduler else None
        return _load(folder), None, None if scheduler is None else config_of(scheduler)
    part = next((folder / name for name in _PARTS if (folder / name / CONFIG).is_file()), None)
    if part is None:
        raise NotFoundError(
            f"no model in {folder}: expected {CONFIG}, or {' or '.join(f'{n}/{CONFIG}' for n in _PARTS[:2])}"
        )
    autoencoder = folder / "vae"
    return (
        _load(part),
        Autoencoder(_load(autoencoder)) if (autoencoder / CONFIG).is_file() else None,
        config_of(folder) if with_scheduler else None,
    )


def _load(folder: Path) -> nn.Module:
    """A network of diffusers from its folder: a class of diffusers alone, safetensors alone, this disk alone."""
    try:
        import diffusers
    except ImportError:
        raise MissingPackageError(
            f"reading {folder} needs diffusers; install it: pip install 'sdediff[diffusers]'"
        ) from None
    try:
        name = json.loads((folder / CONFIG).read_text()).get("_class_name")
    except (ValueError, AttributeError) as error:
        raise InputError(f"{folder / CONFIG} is not the config of a network: {error}") from None
    kind = getattr(diffusers, str(name), None)
    if name == EXPORTED:
        from sde_diffusion.interop.diffusers_export import ExportedNetwork

        kind = ExportedNetwork
    if not (isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin)):
        raise InputError(f"{folder / CONFIG} names the class {name!r}, which is no network of diffusers")
    try:
        network = kind.from_pretrained(  # type: ignore[attr-defined]
            str(folder), local_files_only=True, use_safetensors=True
        )
    except OSError as error:
        raise NotFoundError(f"no weights of {name} in {folder}: {error}") from None
    assert isinstance(network, nn.Module)
    return network
