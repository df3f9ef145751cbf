"""Checks of model, data and options before training, and of finite values during training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from sde_diffusion.data import Data, as_data
from sde_diffusion.data.augment import LABELS, Augmentation
from sde_diffusion.data.normalization import AUTO, measure_normalization
from sde_diffusion.models.autoencoder import AutoencoderModel
from sde_diffusion.models.noisy_classifier import NoisyClassifier
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.training.config import TrainConfig
from solvers.errors import InputError, InputTypeError, NonFiniteError


class TrainingDivergedError(NonFiniteError):
    """A loss or gradient that is not finite.

    Attributes:
        details: step, samples and times, as JSON values.
    """

    def __init__(self, message: str, details: dict[str, Any]) -> None:
        super().__init__(message)
        self.details = details


def checked_data(model: ScoreModel, data: Data | Tensor | ArrayLike) -> Data:
    """The data as a data set, after a check that the model can be trained on it; the model learns its shape.

    Raises:
        TypeError: not a score model with an nn.Module.
        ValueError: samples of another shape than the model's, or a model that cannot be sampled.
    """
    _check_model(model)
    data = data if isinstance(data, Data) else as_data(data)
    if model.shape is None:
        model.shape = data.shape
    if model.shape != data.shape:
        raise InputError(f"the model is for samples of shape {model.shape}; those of {data.name} are {data.shape}")
    return data


def decide_units(model: ScoreModel, data: Data, config: TrainConfig) -> None:
    """Measure the normalization of the options on the data and set it on a model that has none.

    An "edm" model with a given ``sigma_data`` is normalized only on request: its ``sigma_data`` is in data units.
    """
    given = config.normalize == AUTO and model.predicts == "edm" and model.sigma_data != 1
    if model.normalization is None and not given:
        model.normalization = measure_normalization(data, config.normalize)


def _check_model(model: ScoreModel) -> None:
    if not isinstance(model, ScoreModel):
        raise InputTypeError(
            f"expected a ScoreModel, got {type(model).__name__}; wrap a network: ScoreModel(network, VPSDE())"
        )
    if not isinstance(model.network, nn.Module):
        raise InputTypeError(f"a {type(model.network).__name__} cannot be trained; use an nn.Module")
    # Rejects a model that could be trained but not sampled: noise prediction with alpha(1) = 0.
    model.sde.reverse(model)


def check_without_score(model: ScoreModel, data: Data, config: TrainConfig) -> None:
    """Check the options of the training of a classifier or an autoencoder; of a score model's, nothing.

    Raises:
        ValueError: no labels or dropped ones for a classifier, or what neither of them takes.
    """
    if isinstance(model, AutoencoderModel) and (config.labels or config.augment or data.condition is not None):
        raise InputError("an autoencoder is trained on samples alone; leave out labels, augment and conditions")
    if not isinstance(model, NoisyClassifier):
        return
    if not config.labels or config.drop_label:
        raise InputError("a classifier is trained with labels=True and drop_label=0")
    if config.augment or data.condition is not None:
        raise InputError("a classifier is trained on samples and labels alone; leave out augment and conditions")


def augmentation_for(network: nn.Module, data: Data, config: TrainConfig) -> Augmentation | None:
    """The augmentation of a batch, or None.

    Raises:
        ValueError: an augmentation that does not suit the data, or a network with a context that training would not
        supply.
    """
    context = getattr(network, "settings", {}).get("context")
    if context is not None and not config.augment:
        raise InputError(
            f"the network takes a context of {context} values, and training does not supply one: it would sample "
            "with weights that were never trained. Build it without context, or train with augment (--augment)"
        )
    if not (config.flip or config.augment):
        return None
    if not data.is_image:
        raise InputError(f"flip and augment change images; the samples of {data.name} are {data.kind}s")
    if config.augment and context != LABELS:
        raise InputError(
            f"augment passes the augmentation of an image to the network as a context of {LABELS} values; build the "
            f"network with context={LABELS} (it has {context})"
        )
    return Augmentation(config.flip, config.augment)


def no_label_for(network: nn.Module, data: Data) -> int:
    """The label of "no class": the number of classes of the network, or of the data if that is unknown."""
    if data.labels is None or data.classes is None:
        raise InputError(f"labels=True, but {data.name} has no labels; leave them out (labels=False)")
    settings = getattr(network, "settings", {})
    classes = settings.get("classes", None if "classes" in settings else data.classes)
    if classes is None:
        raise InputError(
            f"labels=True, but the network was built without classes; build it with classes={data.classes}"
        )
    if classes < data.classes:
        raise InputError(
            f"the labels of {data.name} run from 0 to {data.classes - 1}; this network has {classes} classes, "
            f"0 to {classes - 1}"
        )
    return int(classes)


def adamw_moments(parameters: Mapping[str, nn.Parameter], saved: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """Check the state of AdamW and return it by parameter index.

    AdamW's fused kernel does not check its state: it reads and writes beyond the end of a moment that is shorter than
    its parameter. So names, shapes, types and values are compared first.

    Raises:
        ValueError: the state belongs to other parameters.
    """
    moments: dict[int, dict[str, Tensor]] = {}
    expected = {"step": torch.Size([]), "exp_avg": None, "exp_avg_sq": None}
    for i, (name, parameter) in enumerate(parameters.items()):
        entry = {key: saved[f"{name}.{key}"] for key in expected if f"{name}.{key}" in saved}
        if not entry:
            continue  # before the first update, or for a parameter that does not enter the loss
        if missing := expected.keys() - entry.keys():
            raise InputError(f"the optimizer has no {', '.join(sorted(missing))} of {name}")
        for key, value in entry.items():
            shape, kind = (torch.Size([]), torch.float32) if key == "step" else (parameter.shape, parameter.dtype)
            if value.shape != shape or value.dtype != kind:
                raise InputError(
                    f"the optimizer has {key} of {name} as {value.dtype} of shape {tuple(value.shape)}; expected "
                    f"{kind} of shape {tuple(shape)}"
                )
            if not bool(value.isfinite().all()) or (key != "exp_avg" and bool((value < 0).any())):
                raise InputError(f"the optimizer has values of {key} of {name} that are negative or not finite")
        moments[i] = entry
    known = {f"{name}.{key}" for name in parameters for key in expected}
    if foreign := sorted(set(saved) - known):
        raise InputError(f"the optimizer has a state of {foreign[0]}, which this network does not have")
    return moments


def check_finite(groups: Mapping[str, Mapping[str, Tensor]], step: int) -> None:
    """Check that all values are finite before they are saved, so that they do not replace a good checkpoint.

    Raises:
        TrainingDivergedError: the message names the first tensor.
    """
    for group, tensors in groups.items():
        for name, value in tensors.items():
            if value.is_floating_point() and not bool(value.isfinite().all()):
                raise TrainingDivergedError(
                    f"{name} of {group} is not finite after step {step}, so this step is not saved; checkpoints saved "
                    "before are intact. The usual cause is a learning rate that is too high",
                    {"step": step, "what": group, "tensor": name},
                )
