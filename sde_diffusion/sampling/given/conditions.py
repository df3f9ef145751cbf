"""Conditions that a command samples for, taken in turn: sample k has condition k mod their number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.data import Conditions, load_condition
from sde_diffusion.data.captioned.caption_files import as_captions
from sde_diffusion.data.conditions import KINDS
from sde_diffusion.networks.given import GivenConditions
from sde_diffusion.sampling.settings import seeds_of
from sde_diffusion.storage.checkpoint import StoredModel
from sde_diffusion.storage.record_types import ConditionEntry
from sde_diffusion.storage.run_folder import trained_noise
from sde_diffusion.text.vocabulary import to_caption
from solvers.errors import InputError
from solvers.noise import standard_normal

_STREAM = 11  # of the noise on condition images
_FEW = 64  # captions that a record holds


@dataclass(frozen=True)
class GivenCondition:
    """Conditions, and the noise level of condition images.

    Args:
        condition: the conditions.
        noise: level s to which condition images are noised, in [0, 1] (``networks.given``); the network receives it.
        seed: seed of that noise.

    Raises:
        ValueError: a level outside [0, 1], or one for other conditions than images.

    >>> low = Conditions("low", torch.zeros(2, 1, 4, 4), "image")
    >>> GivenCondition(low, noise=2.0)
    Traceback (most recent call last):
    ...
    solvers.errors.InputError: the noise level of condition images (--condition-noise) is in [0, 1]; got 2.0
    """

    condition: Conditions
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.noise <= 1:
            raise InputError(f"the noise level of condition images (--condition-noise) is in [0, 1]; got {self.noise}")
        if self.noise and self.condition.kind != "image":
            raise InputError(
                f"--condition-noise is the noise of condition images, and {self.condition.name} are "
                f"{self.condition.kind}s; leave it out"
            )

    def rows(self, network: Any, n: int) -> dict[str, Tensor]:
        """The conditions of n samples, by the network's name of them.

        Raises:
            ValueError: a kind or shape that the network does not take.
        """
        given, settings = self.condition, getattr(network, "settings", None) or {}
        taken = [kind for kind in KINDS if settings.get(kind) is not None]
        if settings and not taken:
            raise InputError("the model was trained without conditions and takes none; train with --condition PATH")
        if settings and (taken != [given.kind] or settings[given.kind] != given.setting):
            takes = f"{len(settings['caption'])} words" if taken == ["caption"] else settings[taken[0]]
            raise InputError(
                f"{given.name} are conditions of the kind '{given.kind}' and shape {given.shape}; the model takes "
                f"{taken[0]}={takes}"
            )
        index = torch.arange(n, device="cpu") % len(given)
        value = given.batch(index)
        if not self.noise:
            return {given.kind: value}
        beside = getattr(network, "given", None)
        if not isinstance(beside, GivenConditions):
            raise InputError("--condition-noise needs a network of this package; the model has another one")
        level = torch.full((n,), self.noise, device="cpu")
        eps = standard_normal(seeds_of(self.seed, n), given.shape, _STREAM)
        place = beside.image_mean.device
        return {given.kind: beside.noised(value.to(place), level.to(place), eps).cpu(), "image_noise": level}

    def entry(self) -> ConditionEntry:
        """The entry of the conditions in a record."""
        given = self.condition
        if given.words is not None and len(given) <= _FEW:
            captions = [to_caption(row, given.words) for row in given.values]
            return {**self._named(), "captions": captions}
        return self._named()

    def _named(self) -> ConditionEntry:
        given = self.condition
        found: ConditionEntry = {
            "name": given.name,
            "kind": given.kind,  # type: ignore[typeddict-item]
            "shape": list(given.shape),
            "count": len(given),
            "sha256": given.fingerprint,
        }
        return {**found, "noise": self.noise} if self.noise else found


def vocabulary_of(stored: StoredModel) -> list[str] | None:
    """The words of the captions that a stored model takes; None if it takes none."""
    network = None if stored.given is None else stored.given().network
    settings = stored.model["network"]["settings"] if network is None else getattr(network, "settings", None)
    return (settings or {}).get("caption")


def given_captions(captions: Sequence[str], stored: StoredModel) -> GivenCondition:
    """Captions for a stored model.

    Raises:
        ValueError: the model takes no captions, or a word that it was not trained with.
    """
    words = vocabulary_of(stored)
    if words is None:
        raise InputError(
            f"the model {stored.path} was trained without captions; train one: sdediff train --data digit-pairs, or "
            "--condition captions.txt"
        )
    return GivenCondition(as_captions(list(captions), words, f"caption '{captions[0]}'"))


def read_given(place: str, stored: StoredModel, noise: float = 0.0) -> GivenCondition:
    """The conditions at a place, for a stored model.

    Raises:
        FileNotFoundError: nothing exists there.
        ValueError: a file of another kind, conditions of another shape than the model's, or more noise than in its
            training.
    """
    shape = stored.model["shape"]
    if shape is None:
        raise InputError("the model does not know the shape of a sample, so conditions cannot be read for it")
    given = GivenCondition(load_condition(place, tuple(shape), words=vocabulary_of(stored)), noise)
    trained = trained_noise(stored.path)
    if trained is not None and noise > trained:
        seen = f"with noise up to the level {trained:g}" if trained else "without noise"
        raise InputError(
            f"the network has seen condition images {seen}; got {noise:g}: give a smaller --condition-noise, or train "
            "with a larger one"
        )
    return given


def require_condition(network: Any, given: GivenCondition | None) -> None:
    """Refuse to sample without conditions from a network that was trained with them in every step.

    Raises:
        ValueError: the network requires conditions and there are none.
    """
    settings = getattr(network, "settings", None) or {}
    if settings.get("required") and given is None:
        kind = next((kind for kind in KINDS if settings.get(kind) is not None), "condition")
        what, option = f"{kind}={settings.get(kind)}", "--condition PATH"
        if kind == "caption":
            what, option = "a caption", "--caption TEXT"
        raise InputError(
            f"the model needs a condition, {what}: give {option}; it was trained with "
            "--drop-condition 0 and has no unconditional samples"
        )


def refuse_required(stored: StoredModel, what: str, instead: str) -> None:
    """Refuse a command without conditions on a model that has no unconditional samples.

    Args:
        stored: the model.
        what: the command takes no condition.
        instead: what to do.

    Raises:
        ValueError: the model was trained with conditions in every step.
    """
    if (stored.model["network"]["settings"] or {}).get("required"):
        raise InputError(
            f"this model was trained with conditions in every step (--drop-condition 0), and {what} takes none; "
            f"{instead}"
        )
