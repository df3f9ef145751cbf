"""Builds the model, the data and the run folder from training options, with defaults for missing ones."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from sde_diffusion.data import NAMES, Data, load_data
from sde_diffusion.data.augment import LABELS
from sde_diffusion.data.conditions import own_images
from sde_diffusion.data.normalization import AUTO, Normalization, measure_normalization
from sde_diffusion.data.preparation import prepare_once, size_of
from sde_diffusion.data.tasks.degraded import PREFIX, place_of
from sde_diffusion.models.autoencoder import LATENT, AutoencoderModel
from sde_diffusion.models.noisy_classifier import CLASS
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.networks import Autoencoder, Classifier, attended, default_settings, default_size
from sde_diffusion.sde import DDPM, SDE, make_sde
from sde_diffusion.storage.checkpoint import rebuild
from sde_diffusion.storage.locate import new_run, recorded_data, recorded_layout, run_to_resume
from sde_diffusion.storage.record_types import DataEntry, ModelDescription, NetworkEntry
from sde_diffusion.training.autoencoding.latents import autoencoder_for, encoded, latents_of
from sde_diffusion.training.autoencoding.readers import check_options, reader_for
from sde_diffusion.training.config import TrainConfig
from sde_diffusion.training.config_file import TABLES
from sde_diffusion.training.distributed import device_type
from solvers.errors import InputError, InputTypeError, NotFoundError

STAGE = "stage:"  # begins the name of the conditions of a cascade
UNCLIPPED = 1e9  # two networks: a common limit of their gradients would tie the pace of one to the other
HELD_OUT = 512  # latents of held-out samples
# Allowed types of a setting, by the type of its default. In Python a bool is an int.
_KINDS: tuple[Any, ...] = (bool, int, (int, float), str, (list, tuple))
MANY = 16
"""Values of a sample from which the default times of training reach to higher noise levels."""


def default_predicts(sde: SDE) -> str:
    """Default parametrization of a network.

    "edm" (preconditioned) if the noise grows far beyond the data, because x_0 is then a small difference of x and the
    noise; otherwise the velocity. The noise is not a default: x_0 = (x - sigma eps) / alpha, so that where alpha(1) is
    small (0.0066 for vp) an error of 0.2 in a predicted noise is an error of 30 in x_0, and one sample in a thousand
    ends far from all data (benchmarks/training/outliers.py).

    >>> [default_predicts(make_sde(name)) for name in ("vp", "cosine", "ve")]
    ['velocity', 'velocity', 'edm']
    """
    return "edm" if float(sde.marginal(1.0)[1]) > 2 else "velocity"


def default_options(predicts: str, sde: SDE | None = None, shape: Sequence[int] = ()) -> dict[str, str]:
    """The default loss weight and time sampling of a parametrization, as options of ``train``.

    For "edm", the choices of Karras et al. 2022. For velocity, the unweighted error of the output, which keeps the
    start of sampling in the loss. For data of unit scale it equals the loss of "edm", so its log-normal times suit
    points of a few values. The values of an image or a signal vary together: their common part is larger than one value
    and has its noise levels higher up (Hoogeboom et al. 2023), so samples of ``MANY`` values have log-normal times
    with a larger mean and deviation. Times stay uniform if alpha(1) = 0, because log-normal times never come near that
    end.

    Args:
        predicts: a name in ``PREDICTS``.
        sde: the process.
        shape: shape of a sample.

    >>> default_options("edm"), default_options("velocity", make_sde("flow"))
    ({'weight': 'edm', 'time_sampling': 'log-normal'}, {'weight': 'velocity', 'time_sampling': 'stratified'})
    >>> [default_options("velocity", make_sde("vp"), shape)["time_sampling"] for shape in ((2,), (1, 8, 8))]
    ['log-normal', 'log-normal-wide']
    """
    if predicts == "edm":
        return {"weight": "edm", "time_sampling": "log-normal"}
    if predicts == "velocity":
        to_the_end = sde is not None and float(sde.marginal(1.0)[0]) == 0
        log_normal = "log-normal-wide" if math.prod(shape) >= MANY else "log-normal"
        return {"weight": "velocity", "time_sampling": "stratified" if to_the_end else log_normal}
    return {"weight": "simple", "time_sampling": "stratified"}


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
    normalize: str = AUTO,
    size: str | None = None,
    decoder: AutoencoderModel | None = None,
) -> ScoreModel:
    """An untrained model with defaults for the data.

    Args:
        data: the training data.
        sde: a name in ``SDES``; vp by default.
        predicts: a name in ``PREDICTS``; ``default_predicts`` of the process by default.
        network: a name in ``NETWORKS``; ``default_network`` of the shape by default.
        sde_settings: settings of the process that differ from its own defaults.
        network_settings: settings of the network that differ from ``default_network``.
        seed: seed of the weights.
        like: the description of a model (``checkpoint.describe_model``), whose choices replace
            the defaults, including its normalization.
        normalize: units that the network sees, as in ``TrainConfig``; measured here.
        size: a name in ``SIZE_NAMES``, that of ``default_settings`` by default.
        decoder: the autoencoder whose latents the data are.

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
    for what, name_of_it in ((CLASS, Classifier.name), (LATENT, Autoencoder.name)):
        if (predicts == what) != (network == name_of_it) and like is None:
            raise InputError(
                f"the network '{name_of_it}' predicts '{what}' and no other does; leave both out, or give "
                "--classifier or --autoencoder"
            )
    if like is None:
        # An "edm" network receives log(rho) / 4, which may be negative and has no logarithm.
        embedding = "sinusoidal" if predicts == "edm" else "log"
        known, usual = default_settings(data.shape, network, size)
        if predicts != LATENT:
            usual = {**usual, "embedding": embedding}
        entry: NetworkEntry = {"name": known, "class": "", "settings": usual}
        units = measure_normalization(data, normalize)
        sigma_data = _root_mean_square(data, units) if predicts == "edm" else 1.0
    else:
        entry, sigma_data = like["network"], like["sigma_data"]
        units = Normalization.from_entry(like.get("normalization"))
        if size is not None:
            raise InputError("the run keeps the size of its network; leave --network-size out, or start a new run")
        if network not in (None, entry["name"]):
            raise InputError(f"the network is {entry['name']}; it cannot become {network}")
    settings = _changed(entry["settings"] or {}, network_settings, f"the network {entry['name']}")
    given = network_settings or {}
    if entry["name"] == "unet" and "multipliers" in given and "attention" not in given:
        # Attention stays at the same heights, since the number of levels may have changed.
        tallest = max(settings["attention"], default=0)
        settings["attention"] = attended(data.shape, len(settings["multipliers"]), tallest)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = rebuild(
            {
                "sde": {"name": name, "settings": asdict(process)},
                "network": {"name": entry["name"], "class": entry["class"], "settings": settings},
                "predicts": predicts,
                "sigma_data": sigma_data,
                "shape": list(data.shape),
                "normalization": None if units.is_identity else units.entry(),
            }
        )
    model.__dict__["_decoder"] = decoder
    return model


@dataclass(frozen=True)
class Setup:
    """The arguments of ``train``, and the name of the network's size."""

    model: ScoreModel
    data: Data
    config: TrainConfig
    out: Path
    size: str | None = None
    held_out: Data | None = None


def merged(file: Mapping[str, Any], typed: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a file, overridden by options of the command line.

    >>> merged({"steps": 3, "network": {"depth": 2}}, {"steps": 4, "network": {"width": 8}})
    {'steps': 4, 'network': {'depth': 2, 'width': 8}}
    """
    tables = {name: {**file.get(name, {}), **typed.get(name, {})} for name in TABLES}
    return {**file, **typed, **{name: table for name, table in tables.items() if table}}


def set_up(
    options: Mapping[str, Any],
    *,
    resume: bool = False,
    progress: Callable[[int, int], None] | None = None,
    given_data: Data | None = None,
) -> Setup:
    """Load the data and build the untrained model that the options describe.

    Args:
        options: as ``config_file.read_options`` returns them.
        resume: take missing options from the run in options["out"], or from the latest.
        progress: called with how many images are resized, and of how many, where options["size"] asks for it.
        given_data: the data, instead of options["data"].

    Raises:
        FileNotFoundError: no data, or no run to resume.
        ValueError: options that do not fit each other or the data; several processes and no folder.
        TypeError: an option of the wrong type.
    """
    out, name, condition = options.get("out"), options.get("data"), options.get("condition")
    if (task := options.get("task")) is not None:
        if condition is not None:
            raise InputError("--task makes the conditions of the samples, and --condition reads them; give one of them")
        condition = place_of(task, options.get("factor"))
    elif "factor" in options:
        raise InputError("factor (--factor) is of a task: --task superres --factor 4")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and out is None:
        raise InputError("several processes train together: give the folder of the run by --out")
    config = TrainConfig()
    like: ModelDescription | None = None
    stored: DataEntry = {}
    if resume:
        out, kept = run_to_resume(out)
        config, like, stored = TrainConfig.from_dict(kept["train"]), kept["model"], kept["data"]
        if given_data is None:
            name = name or recorded_data(stored.get("name", ""), "--data")
        # A set by name has its own conditions, if it has any; those of an autoencoder are the samples themselves, and
        # those of a task are made again.
        given_with = stored["condition"]["name"] if "condition" in stored else ""
        of_set = name in NAMES and not given_with.startswith(PREFIX)
        of_set = of_set or bool(given_with == stored.get("name") and (like["network"]["settings"] or {}).get("code"))
        if condition is None and given_data is None and "condition" in stored and not of_set:
            condition = recorded_data(stored["condition"]["name"], "--condition")
    given = {field.name: options[field.name] for field in fields(TrainConfig) if field.name in options}
    if like is not None and given.get("normalize", config.normalize) != config.normalize:
        raise InputError(
            f"the run has normalize={config.normalize}, and its network keeps the units that it was trained in; leave "
            f"normalize={given['normalize']} out, or start a new run"
        )
    config = config.with_options(given)
    classifier = options.get("predicts") == CLASS or (like is not None and like["predicts"] == CLASS)
    if classifier:
        config = _for_classifier(config, given, options)
    predicts, own = options.get("predicts"), Classifier.name if classifier else None
    autoencoder = "autoencoder" in options or (like is not None and like["predicts"] == LATENT)
    check_options(options, autoencoder)
    if autoencoder:
        predicts, own = LATENT, Autoencoder.name
    if "size" in options:
        name = str(prepare_once(name or "digits", size_of(options["size"]), progress=progress))
    layout = options.get("layout") or recorded_layout(stored, name or "digits")
    data = given_data
    if data is None:
        data = load_data(name or "digits", options.get("data_dir"), layout=layout, condition=condition)
    if autoencoder:
        data = replace(data, condition=None)  # that of a set by name
    of_name = given_data is None and data.condition is None
    held_out = _test_split(data, options.get("data_dir")) if of_name else None
    decoder = autoencoder_for(
        options.get("latent"), Path(out) if resume and out else None, like, device_type(config.device)
    )
    suffix = own or ("latent-" if decoder else "") + (options.get("sde") or "vp")
    folder = Path(out) if out else new_run(name or "digits", suffix)
    reader = reader_for(options.get("features"), Path(out) if resume and out else None, device_type(config.device))
    if decoder is not None:
        data = encoded(decoder, data, folder.parent, progress)
        held_out = None if held_out is None else latents_of(decoder, held_out, HELD_OUT)
    network = dict(options.get("network", {}))
    if data.condition is None and (network if like is None else like["network"]["settings"] or {}).get("code"):
        data = replace(data, condition=own_images(data))
    size = network.pop("size", None)
    if size is None and not resume:
        size = default_size(data.shape, device_type(config.device))
    if not resume:
        network = {**_for_condition(data, config, options.get("resize_condition"), network), **network}
    if "autoencoder" in options:
        network["bottleneck"] = options["autoencoder"]
    if config.labels and not resume:
        if data.classes is None:
            raise InputError(f"labels=True, but {data.name} has no labels; leave them out (labels=False)")
        network = {"classes": data.classes, **network}
    if config.augment and not resume:
        network = {"context": LABELS, **network}
    model = default_model(
        data,
        sde=options.get("sde"),
        predicts=predicts,
        network=network.pop("name", None if resume else own),
        sde_settings=options.get("process", {}),
        network_settings=network,
        seed=config.seed,
        like=like,
        normalize=config.normalize,
        size=size,
        decoder=decoder,
    )
    _check_variance(model)
    model.__dict__["_reader"] = reader
    if not resume:
        suited: dict[str, Any] = dict(default_options("noise" if own else model.predicts, model.sde, model.shape or ()))
        if config.adversarial:
            suited["clip"] = UNCLIPPED
        config = config.with_options({name: value for name, value in suited.items() if name not in given})
    return Setup(model, data, config, folder, size, held_out)


def _check_variance(model: ScoreModel) -> None:
    if (getattr(model.network, "settings", None) or {}).get("variance") and not isinstance(model.sde, DDPM):
        raise InputError(
            f"a learned variance (--learned-variance) is one of steps, and the process {type(model.sde).__name__} has "
            "none; give --sde ddpm"
        )


def _test_split(data: Data, data_dir: str | os.PathLike[str] | None) -> Data | None:
    """The test split of a data set that has one, where it needs no download."""
    if data.name not in NAMES:
        return None
    try:
        return load_data(data.name, data_dir, split="test")
    except (NotFoundError, InputError):
        return None


def _for_classifier(config: TrainConfig, given: Mapping[str, Any], options: Mapping[str, Any]) -> TrainConfig:
    """The options of a classifier's training: with labels, of which none is dropped."""
    for name in ("drop_label", "augment"):
        if given.get(name):
            raise InputError(f"{name} (--{name.replace('_', '-')}) is not of a classifier's training; leave it out")
    if options.get("condition") is not None:
        raise InputError("a classifier is trained on samples and labels alone; leave out --condition")
    return config.with_options({"labels": True, "drop_label": 0.0})


def _for_condition(data: Data, config: TrainConfig, resize: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a network that takes the conditions of the data."""
    if data.condition is None:
        if resize is not None:
            raise InputError("resize_condition (--resize-condition) is of condition images; give --condition PATH")
        return {}
    kind = data.condition.kind
    network = default_settings(data.shape, given.get("name"))[0]
    if network == "mlp" and kind != "vector":
        raise InputError(
            f"{data.condition.describe()}, and a perceptron takes vectors alone; choose --network unet or dit, or give "
            "the conditions as vectors (N, K)"
        )
    if resize is not None and kind != "image":
        raise InputError(f"resize_condition (--resize-condition) is of condition images; these are {kind}s")
    found: dict[str, Any] = {kind: data.condition.setting}
    made = data.condition.name.startswith((PREFIX, STAGE))
    if resize is None and made and data.condition.shape[1:] != data.shape[1:]:
        resize = "bilinear"
    if resize is not None:
        found["resize"] = resize
    return found if config.drop_condition else {**found, "required": True}


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


def _root_mean_square(data: Data, units: Normalization) -> float:
    """The RMS of the network's data, the ``sigma_data`` of "edm"; from equally spaced samples of large data sets."""
    count = min(len(data), max(1, 2**23 // data.x[0].numel()))
    index = torch.linspace(0, len(data) - 1, count, dtype=torch.float64).long()
    return round(float(units.to_model(data.batch(index).double()).square().mean().sqrt()), 4) or 1.0
