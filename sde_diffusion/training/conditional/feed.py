"""The inputs of a network in training besides (x, t): labels, conditions and augmentation labels.

Labels and conditions are dropped with their probabilities, and condition images are noised. All draws are those of
``StepRandomness``, so that a resumed run has them again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.data import Conditions, Data
from sde_diffusion.data.conditions import KINDS
from sde_diffusion.networks.given import GivenConditions
from sde_diffusion.training.config import TrainConfig
from sde_diffusion.training.randomness import StepRandomness
from solvers.errors import InputError


class ConditionFeed:
    """The conditions of batches.

    Args:
        network: the network in training; its units of conditions are measured here if they are not decided yet.
        data: the training data.
        config: the options.
        draws: the random draws of the run.
        no_label: the label of "no class"; None for training without labels.
        to_device: moves a tensor to the device of the network.

    Raises:
        ValueError: conditions that the network was built without, or a network that needs some which the data lack.
    """

    def __init__(
        self,
        network: nn.Module,
        data: Data,
        config: TrainConfig,
        draws: StepRandomness,
        no_label: int | None,
        to_device: Callable[[Tensor], Tensor],
    ) -> None:
        self.data, self.config, self.draws, self.no_label, self._to_device = data, config, draws, no_label, to_device
        self.given = given_of(network)
        self.condition = checked_condition(network, data, config)
        if self.condition is not None and self.given is not None:
            decide_condition_units(self.given, self.condition)

    def first(self) -> dict[str, Tensor]:
        """The conditions of the first sample, of which none is dropped."""
        index, kept = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.bool)
        found = self._label(index, kept)
        if self.condition is not None:
            found[self.condition.kind] = self._to_device(self.condition.batch(index))
            if self.config.condition_noise:
                found["image_noise"] = self._to_device(torch.zeros(1))
        return found

    def draw(self, step: int) -> dict[str, Tensor]:
        """The draws of a step for its whole batch; none for training without labels and conditions."""
        found = {}
        if self.no_label is not None:
            found["label"] = self.draws.dropped(step, self.config.drop_label)
        if self.condition is not None:
            found["condition"] = self.draws.dropped(step, self.config.drop_condition)
        if self.config.condition_noise:
            found["level"] = self.draws.levels(step, self.config.condition_noise)
        return found

    def batch(
        self, step: int, index: Tensor, drawn: dict[str, Tensor], rows: slice, altered: Tensor | None
    ) -> dict[str, Tensor]:
        """The conditions of some rows of a batch.

        Args:
            step: number of the update.
            index: (b,), the samples of these rows.
            drawn: from ``draw``, for the whole batch.
            rows: which rows of the batch.
            altered: the augmentation of these rows, or None.
        """
        found = self._label(index, drawn["label"][rows]) if "label" in drawn else {}
        if self.condition is None:
            return found
        value = self._to_device(self.condition.batch(index))
        if self.config.flip and self.condition.kind == "image" and altered is not None:
            flipped = altered[:, 0].to(value.device).bool().reshape(-1, *(1,) * (value.ndim - 1))
            value = torch.where(flipped, value.flip(-1), value)
        if "level" in drawn and self.given is not None:
            level = self._to_device(drawn["level"][rows])
            eps = self.draws.noise(step, value, rows.start, use="condition-noise")
            value = self.given.noised(value, level, eps)
            found["image_noise"] = level
        lost = drawn["condition"][rows].to(value.device).reshape(-1, *(1,) * (value.ndim - 1))
        found[self.condition.kind] = value.masked_fill(lost, math.nan)
        return found

    def _label(self, index: Tensor, dropped: Tensor) -> dict[str, Tensor]:
        if self.no_label is None or self.data.labels is None:
            return {}
        return {"label": self._to_device(self.data.labels[index].masked_fill(dropped, self.no_label))}


def given_of(network: nn.Module) -> GivenConditions | None:
    """The part of a network that holds the units of its conditions; None for networks without."""
    given = getattr(network, "given", None)
    return given if isinstance(given, GivenConditions) else None


def checked_condition(network: nn.Module, data: Data, config: TrainConfig) -> Conditions | None:
    """The conditions that a network is trained with; None if it takes none.

    Raises:
        ValueError: conditions without a network that takes them, the reverse, another shape, or options that do not
            suit them.
    """
    settings: dict[str, Any] = getattr(network, "settings", {})
    taken = [kind for kind in KINDS if settings.get(kind) is not None]
    found = data.condition
    if found is None:
        if taken:
            raise InputError(
                f"the network takes the condition '{taken[0]}', and {data.name} has none: give Data(condition=...) "
                "(--condition PATH), or build the network without it"
            )
        if config.condition_noise:
            raise InputError("condition_noise is the noise of condition images, and the data have none")
        return None
    if settings and taken != [found.kind]:
        raise InputError(
            f"{found.name} are conditions of the kind '{found.kind}', which the network does not take: build it with "
            f"{found.kind}={found.setting}, or leave the conditions out"
        )
    if settings and found.words is not None and settings["caption"] != found.setting:
        lost = sorted(set(found.words) ^ set(settings["caption"]))
        raise InputError(
            f"{found.name} have another vocabulary than this network, of {len(settings['caption'])} words; the words "
            f"{', '.join(lost[:8])} are in one of them alone: give the captions words= of the network"
        )
    if settings and settings[found.kind] != found.setting:
        raise InputError(
            f"{found.name} are conditions of shape {found.shape}; this network has {found.kind}={settings[found.kind]}"
        )
    if settings.get("required") and config.drop_condition:
        raise InputError(
            f"drop_condition is {config.drop_condition:g}, but the network was built with required=True and takes no "
            "dropped condition; use drop_condition=0 (--drop-condition 0)"
        )
    if config.condition_noise and (found.kind != "image" or given_of(network) is None or settings.get("code")):
        raise InputError("condition_noise is the noise of condition images of networks of build; leave it out")
    if config.augment and found.kind == "image":
        raise InputError("augment moves the samples but not their condition images; use flip, which flips both")
    return found


def decide_condition_units(given: GivenConditions, condition: Conditions) -> None:
    """Set mean and deviation of the conditions on a network that has none yet; a trained network keeps its own."""
    if condition.kind in ("tokens", "caption"):
        return
    mean, std = (getattr(given, f"{condition.kind}_{name}") for name in ("mean", "std"))
    if not bool((mean == 0).all() & (std == 1).all()):
        return
    given.measure(condition.kind, *condition.moments())
