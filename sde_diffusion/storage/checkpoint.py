"""A trained model on disk with its own description.

Three things can be loaded: a run (`runs/<name>`, its newest whole checkpoint), one checkpoint
(`runs/<name>/checkpoints/step-000240`), and a single exported `.safetensors` file, whose header
carries the description. The description names process, network and parametrization with their
settings, so that loading needs no other argument; only a custom network has to be passed
again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sde_diffusion.data.normalization import Normalization
from sde_diffusion.files.reading import parse_json, require_regular
from sde_diffusion.files.writing import require_writable
from sde_diffusion.models.autoencoder import LATENT, AutoencoderModel
from sde_diffusion.models.noisy_classifier import CLASS, NoisyClassifier
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.networks import DESCRIBED, build, known_network
from sde_diffusion.sde import SDE, SDES, make_sde, sde_name
from sde_diffusion.storage import solver_json
from sde_diffusion.storage.atomic_folder import (
    FORMAT,
    STATE,
    CheckpointError,
    checked_format,
    pack,
    read_state,
    sha256,
    to_json,
    unpack,
    write_file,
)
from sde_diffusion.storage.latent_file import beside, decoder_beside, latent_entry
from sde_diffusion.storage.record_types import CheckpointState, DataEntry, ExportHeader, ModelDescription
from sde_diffusion.storage.run_folder import CASCADE, newest_checkpoint
from sde_diffusion.storage.typed_json import checked, checked_arguments
from solvers.errors import InputError, NotFoundError, choose

_KEY = "sdediff"
BUNDLED = Path(__file__).parent.parent / "pretrained" / "digits.safetensors"
BUNDLED_NAME = "bundled"
LABELLED = BUNDLED.with_name("digits-labelled.safetensors")
LABELLED_NAME = "bundled-labelled"


@dataclass(frozen=True)
class StoredModel:
    """A model found on disk, not loaded yet.

    Attributes:
        path: the checkpoint folder or the exported file.
        weights: the safetensors file with the averaged weights.
        model: the description of the model.
        data: name and fingerprint of the data it was trained on; empty if unknown.
        step: number of updates of its training; None if unknown.
        sha256: hash of ``weights``.
        given: makes the model, where the user named it on the command line instead of a place on disk.
        source_sha256: hash of the Python file that it comes from then.
    """

    path: Path
    weights: Path
    model: ModelDescription
    data: DataEntry
    step: int | None
    sha256: str
    given: Callable[[], ScoreModel] | None = None
    source_sha256: str | None = None

    @property
    def argument(self) -> str:
        """The words of a command line that name it."""
        return str(self.path) if self.given is None else f"--model {self.path}"

    @property
    def sample_shape(self) -> tuple[int, ...] | None:
        """The shape of a sample, of a decoded one for a latent model; None if unknown."""
        latent = self.model.get("latent")
        shape = self.model["shape"] if latent is None else latent["shape"]
        return None if shape is None else tuple(shape)


def describe_model(model: ScoreModel) -> ModelDescription:
    """The description of a model in JSON, from which it can be rebuilt.

    A network that is not in ``NETWORKS`` is described by its class alone.

    Raises:
        ValueError: a process that is not in ``SDES``.

    >>> from sde_diffusion.sde import VPSDE
    >>> entry = describe_model(ScoreModel(build("mlp", shape=(2,)), VPSDE(), shape=(2,)))
    >>> entry["sde"], entry["predicts"], entry["network"]["name"]
    ({'name': 'vp', 'settings': {'beta_min': 0.1, 'beta_max': 20.0}}, 'noise', 'mlp')
    """
    network = model.network
    kind = type(network)
    name = next((n for n, known in DESCRIBED.items() if known is kind), None)
    entry: ModelDescription = {
        "sde": {"name": sde_name(model.sde), "settings": json.loads(json.dumps(asdict(model.sde)))},
        "network": {
            "name": name,
            "class": f"{kind.__module__}.{kind.__qualname__}",
            "settings": network.settings if name else None,
        },
        "predicts": model.predicts,
        "sigma_data": model.sigma_data,
        "shape": None if model.shape is None else list(model.shape),
        "normalization": None if model.units.is_identity else model.units.entry(),
    }
    if model.sampler is not None:
        entry["sampler"] = solver_json.describe_solver(model.sampler)
    if isinstance(model.decoder, AutoencoderModel):
        entry["latent"] = latent_entry(model.decoder)
    return entry


def rebuild(description: ModelDescription, network: nn.Module | None = None) -> ScoreModel:
    """The model of a description, with untrained weights.

    Args:
        description: from ``describe``.
        network: needed where the description names no network of ``NETWORKS``.

    Raises:
        CheckpointError: the description is incomplete or names something unknown.
        ValueError: the model has a custom network and none is passed.
    """
    where = "the description of the model"
    checked(description, ModelDescription, where)
    shape = None if description["shape"] is None else tuple(description["shape"])
    units = Normalization.from_entry(description.get("normalization"))
    built = _network(description) if network is None else network
    if description["predicts"] == CLASS:
        return NoisyClassifier(built, _process(description), shape, units)
    if description["predicts"] == LATENT:
        return AutoencoderModel(built, _process(description), shape, units)
    return ScoreModel(
        built,
        _process(description),
        predicts=description["predicts"],
        shape=shape,
        sigma_data=description["sigma_data"],
        normalization=units,
        sampler=None if (solver := description.get("sampler")) is None else solver_json.restore_solver(solver),
    )


def _process(description: ModelDescription) -> SDE:
    name, settings = description["sde"]["name"], description["sde"]["settings"]
    checked_arguments(settings, choose(name, SDES, "SDE"), "sde.settings", "the description of the model")
    return make_sde(name, **settings)


def _network(description: ModelDescription) -> nn.Module:
    entry = description["network"]
    if entry["name"] is None:
        raise InputError(f"this model has a network of your own, {entry['class']}; pass it: load(path, network=...)")
    settings, known = entry["settings"] or {}, known_network(entry["name"])
    checked_arguments(settings, known, "network.settings", "the description of the model")
    return build(entry["name"], **settings)


def skeleton(description: ModelDescription) -> nn.Module:
    """The network of a description without memory for its weights, on the device "meta".

    Raises:
        CheckpointError, ValueError: as ``rebuild``.
    """
    checked(description, ModelDescription, "the description of the model")
    _process(description)
    with torch.device("meta"):
        return _network(description)


def check_described(description: ModelDescription, file: Path) -> None:
    """Compare the network of a description with the header of a file of weights; neither is read or built.

    Raises:
        CheckpointError: the file has other weights; the message names the first.
    """
    try:
        with safe_open(file, "pt") as content:
            found = {name: tuple(content.get_slice(name).get_shape()) for name in content.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{file} is torn, or no safetensors file: {error}") from None
    own = {name: tuple(value.shape) for name, value in skeleton(description).state_dict().items()}
    for name in sorted({*own, *found}):
        if own.get(name) != found.get(name):
            what = f"has shape {found[name]}" if name in found else "is missing"
            expected = f"one of shape {own[name]}" if name in own else "none of this name"
            raise CheckpointError(f"the weights in {file} do not fit this network: {name} {what}; expected {expected}")


def checkpoint_at(path: str | os.PathLike[str]) -> StoredModel:
    """Find the model in a run, a checkpoint or an exported file, and check that it is whole; "bundled" is one too.

    Raises:
        FileNotFoundError: nothing exists at the path.
        CheckpointError: an incomplete or foreign file, or one of another version.
    """
    path = Path(path)
    if str(path) in (BUNDLED_NAME, LABELLED_NAME) and not path.exists():
        path = BUNDLED if str(path) == BUNDLED_NAME else LABELLED
    if not path.exists():
        raise NotFoundError(
            f"no model at {path}: expected a run folder, a checkpoint folder, a .safetensors file or the word bundled"
        )
    if not path.is_dir():
        require_regular(path)
        return _find_export(path)
    if (path / "checkpoints").is_dir():
        path = newest_checkpoint(path)
    elif (path / CASCADE).exists():
        raise InputError(
            f"{path} is a cascade of several models; sample and tune take it whole, other commands take the run of a "
            f"stage, such as {next(iter(sorted(path.glob('stage-*'))), path / 'stage-1')}"
        )
    elif not (path / STATE).exists():
        inside = sorted(str(folder) for folder in path.iterdir() if (folder / "checkpoints").is_dir())
        runs = f"; it holds the runs {', '.join(inside[:8])}: name one of them" if inside else ""
        raise CheckpointError(f"{path} is neither a run (no checkpoints/) nor a checkpoint (no {STATE}){runs}")
    state = checked(read_state(path), CheckpointState, str(path / STATE))
    if "ema.safetensors" not in state["files"]:
        raise CheckpointError(f"{path} has no averaged weights, ema.safetensors; expected a checkpoint of a training")
    digest = state["files"]["ema.safetensors"]["sha256"]
    return StoredModel(path, path / "ema.safetensors", state["model"], state["data"], state["step"], digest)


def _find_export(path: Path) -> StoredModel:
    try:
        with safe_open(path, "pt") as file:
            header = (file.metadata() or {}).get(_KEY)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is torn, or no safetensors file: {error}") from None
    if header is None:
        raise CheckpointError(
            f"{path} holds tensors, but not what model they belong to: it was not exported by sdediff"
        )
    entry = checked_format(parse_json(header, f"the header of {path}"), path)
    content = checked(entry, ExportHeader, str(path))
    return StoredModel(path, path, content["model"], content.get("data", {}), content.get("step"), sha256(path))


def load(
    path: str | os.PathLike[str] | StoredModel,
    *,
    network: nn.Module | None = None,
    weights: str = "ema",
    device: str = "cpu",
) -> ScoreModel:
    """A trained model, in evaluation mode.

    Args:
        path: a run, a checkpoint, an exported file, "bundled", or what ``find`` found.
        network: an untrained network of the same kind, for a custom network.
        weights: "ema", the average, "model", the last weights, or another average of the run by the name of its
            file, such as "ema-0.9999" or "power-0.1" (checkpoints only).
        device: device of the result.

    Returns:
        The model in evaluation mode.

    Raises:
        FileNotFoundError: nothing exists at the path.
        CheckpointError: an incomplete or foreign file, or one of another version or network.
        ValueError: the model has a custom network and none is passed; unknown weights.

    >>> load("bundled").shape
    (1, 8, 8)
    """
    stored = path if isinstance(path, StoredModel) else checkpoint_at(path)
    if stored.given is not None:
        return stored.given().to(device).eval()
    file = stored.weights
    if stored.path == file:
        choose(weights, {"ema": file}, "weights of an exported file")
    else:
        kept = {p.stem: p for p in stored.path.glob("*.safetensors")}
        file = choose(weights, {n: p for n, p in kept.items() if n.startswith(("model", "ema", "power"))}, "weights")
    if network is None and stored.model["network"]["name"] is not None:
        check_described(stored.model, file)  # before memory is allocated by a description
    model = rebuild(stored.model, network)
    if (latent := stored.model.get("latent")) is not None:
        model.__dict__["_decoder"] = decoder_beside(stored.path, latent, load)
    tensors = unpack(file)
    try:
        check_weights(model.network, tensors)
        model.network.load_state_dict(tensors)
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"the weights in {file} do not fit this network: {error}") from None
    return model.to(device).eval()


def exported(model: ScoreModel) -> bytes:
    """A model as the bytes of an exported file, without its data."""
    entry: ExportHeader = {"format": FORMAT, "model": describe_model(model), "data": {}, "step": None}
    return pack(model.network.state_dict(), {_KEY: json.dumps(entry)})


def check_weights(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Compare weights with a network before it takes them.

    Raises:
        ValueError: a weight is missing, foreign, of another shape, not of a kind that the network could have, or has
            values that are not finite; the message names it.
    """
    own = network.state_dict()
    for name, value in own.items():
        if name not in tensors:
            raise InputError(f"{name} is missing")
        found = tensors[name]
        if found.shape != value.shape:
            raise InputError(f"{name} has shape {tuple(found.shape)}; the network has {tuple(value.shape)}")
        if found.is_floating_point() != value.is_floating_point() or found.is_complex() != value.is_complex():
            raise InputError(f"{name} is of {found.dtype}; the network has {value.dtype}")
        if found.is_floating_point() and not bool(found.isfinite().all()):
            raise InputError(f"{name} has values that are not finite")
    if foreign := sorted(set(tensors) - set(own)):
        raise InputError(f"the network has no {foreign[0]}")


def export(
    model: ScoreModel,
    path: str | os.PathLike[str],
    *,
    data: DataEntry | None = None,
    step: int | None = None,
    provenance: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Path:
    """Write a model as one safetensors file that ``load`` reads.

    Args:
        model: with the weights to write, such as ``load("runs/digits")``.
        path: ends in .safetensors.
        data: name and fingerprint of its data, as in ``StoredModel.data``.
        step: number of updates of its training.
        provenance: origin of the model; written beside it as .json together with its hash.
        force: whether existing files are replaced.

    Raises:
        FileExistsError: a file of this name exists.
        ValueError: another ending, or a process that a file cannot name.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"an exported model ends in .safetensors; got {path}")
    entry: ExportHeader = {"format": FORMAT, "model": describe_model(model), "data": data or {}, "step": step}
    if provenance is not None:
        require_writable(path.with_suffix(".json"), ".json", force)
    if isinstance(model.decoder, AutoencoderModel):
        write_file(beside(path), exported(model.decoder), replace=force)
    write_file(path, pack(model.network.state_dict(), {_KEY: json.dumps(entry)}), replace=force)
    if provenance is not None:
        note = {"file": path.name, "sha256": sha256(path), **entry, **provenance}
        write_file(path.with_suffix(".json"), to_json(note))
    return path
