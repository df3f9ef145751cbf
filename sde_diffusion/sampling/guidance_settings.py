r"""The model that commands run: a stored model, given its labels, with the guidance that was asked for.

With D_c the prediction with the label and D_u the one without it, or that of a weaker ``guide``,

    D = D_u + w (D_c - D_u)                                        w = ``scale``, 1 for no guidance,

changed by at most one rule of ``guidance.combine``: ``rescale`` (phi) brings D back to the standard deviation of D_c,
``eta_parallel`` damps the part of the update along D_c (projected guidance). With an ``interval`` guidance acts where
low < sigma / alpha <= high. Each guided prediction is two network evaluations.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.guidance.classifier import ClassifierGuided
from sde_diffusion.guidance.classifier_free import Guided, null_of
from sde_diffusion.guidance.combine import projected, rescaled
from sde_diffusion.guidance.plus_plus import GuidedPlusPlus
from sde_diffusion.models.conditions import condition_names
from sde_diffusion.models.noisy_classifier import NoisyClassifier
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.sampling.given.conditions import GivenCondition, require_condition
from sde_diffusion.storage.checkpoint import StoredModel, load
from sde_diffusion.storage.locate import name_of
from sde_diffusion.storage.record_types import CheckpointEntry, GuidanceEntry
from solvers.errors import InputError

APG_NORM = 15.0


@dataclass(frozen=True)
class GuidanceSettings:
    """The guidance of a run.

    Args:
        scale: w; 1 is the plain conditional model.
        interval: (low, high) of sigma / alpha where guidance acts; everywhere when None.
        rescale: phi, from 0 to 1, of ``guidance.rescaled``, which acts on the network's output.
        eta_parallel: weight of the parallel part in ``guidance.projected``; None for no projection.
        norm: largest norm of the update in projected guidance.
        guide: a weaker model on the same process, for autoguidance.
        plus_plus: whether the scale is lambda of CFG++, ``guidance.GuidedPlusPlus``.
        classifier: a classifier of noisy samples on the same process, for classifier guidance to the labels.
        classifier_scale: the scale of its gradient; 1 gives the score of the class.
        condition: a vector, an image or tokens for each sample, beside the labels.

    Raises:
        ValueError: values out of range, two rules at once, or a rule without a scale.

    >>> GuidanceSettings(3.0, interval=(0.2, 5.0)).plain
    False
    >>> GuidanceSettings(3.0, rescale=2.0)
    Traceback (most recent call last):
    ...
    solvers.errors.InputError: rescale (--rescale) is phi, from 0 to 1; got 2.0
    """

    scale: float = 1.0
    interval: tuple[float, float] | None = None
    rescale: float | None = None
    eta_parallel: float | None = None
    norm: float = APG_NORM
    guide: StoredModel | None = None
    plus_plus: bool = False
    classifier: StoredModel | None = None
    classifier_scale: float = 1.0
    condition: GivenCondition | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise InputError(f"the guidance scale (--guidance) is a finite number; got {self.scale}")
        if self.interval is not None:
            low, high = self.interval
            if not (0 <= low < high < math.inf):
                raise InputError(
                    "a guidance interval (--guidance-interval) is LOW,HIGH in sigma / alpha with 0 <= LOW < HIGH, both "
                    f"finite; got {low:g},{high:g}"
                )
        if self.rescale is not None and not 0 <= self.rescale <= 1:
            raise InputError(f"rescale (--rescale) is phi, from 0 to 1; got {self.rescale}")
        if self.eta_parallel is not None and not math.isfinite(self.eta_parallel):
            raise InputError(f"eta_parallel (--eta-parallel) is a finite number; got {self.eta_parallel}")
        if self.rescale is not None and self.eta_parallel is not None:
            raise InputError("rescaled and projected guidance are two rules: give --rescale or --apg, not both")
        if self.plus_plus and (self.rescale is not None or self.eta_parallel is not None):
            raise InputError("CFG++ is a rule of its own: give --cfg++, --rescale or --apg, not two of them")
        if not math.isfinite(self.classifier_scale):
            raise InputError(f"the scale of a classifier (--scale) is a finite number; got {self.classifier_scale}")
        if self.classifier is not None and (self.scale != 1 or self.plus_plus):
            raise InputError("--guidance and --classifier are two kinds of guidance; give one of them")
        if self.classifier is None and self.classifier_scale != 1:
            raise InputError("--scale needs a classifier; give --classifier RUN, or --guidance for a model with labels")
        if self.scale == 1 and not self.plus_plus and (unused := self._rules()):
            raise InputError(f"{', '.join(unused)} changes guidance, and there is none: give --guidance, such as 2")

    def _rules(self) -> list[str]:
        """The options that change what the scale alone does."""
        given = {
            "--guidance-interval": self.interval,
            "--rescale": self.rescale,
            "--apg": self.eta_parallel,
            "--autoguide": self.guide,
        }
        return [name for name, value in given.items() if value is not None]

    @property
    def plain(self) -> bool:
        """Whether there is no guidance."""
        return self.scale == 1 and not self.plus_plus and self.classifier is None

    def entry(self) -> GuidanceEntry:
        """All but the scale, for a record."""
        found: GuidanceEntry = {}
        if self.interval is not None:
            found["interval"] = list(self.interval)
        if self.rescale is not None:
            found["rescale"] = self.rescale
        if self.eta_parallel is not None:
            found["eta_parallel"] = self.eta_parallel
            found["norm"] = self.norm
        if self.plus_plus:
            found["plus_plus"] = True
        if self.guide is not None:
            found["guide"] = _entry_of(self.guide)
        if self.classifier is not None:
            found["classifier"] = _entry_of(self.classifier)
            found["classifier_scale"] = self.classifier_scale
        if self.condition is not None:
            found["condition"] = self.condition.entry()
        return found

    def record(self, labels: Sequence[int] | None) -> dict[str, Any]:
        """Labels and guidance as a record has them.

        >>> GuidanceSettings(2.0, interval=(0.2, 5.0)).record([3])
        {'labels': [3], 'guidance': 2.0, 'guidance_rule': {'interval': [0.2, 5.0]}}
        """
        found = {"labels": None if labels is None else list(labels), "guidance": self.scale}
        return {**found, "guidance_rule": entry} if (entry := self.entry()) else found

    @classmethod
    def from_entry(
        cls,
        scale: float,
        entry: GuidanceEntry,
        guide: StoredModel | None = None,
        classifier: StoredModel | None = None,
        condition: GivenCondition | None = None,
    ) -> GuidanceSettings:
        """The settings of a record.

        Args:
            scale: w.
            entry: from ``entry``.
            guide: the model that the entry names, if it names one.
            classifier: likewise.
            condition: likewise, with the noise level of the entry.

        Raises:
            ValueError: a guide, classifier or condition that is missing, not named, or another one.
        """
        _require_same("guide", "--autoguide", entry.get("guide"), guide)
        _require_same("classifier", "--classifier", entry.get("classifier"), classifier)
        given = entry.get("condition")
        if (given is None) != (condition is None):
            raise InputError(
                "the samples of the record were made without a condition; leave out --condition"
                if given is None
                else f"the record was made with the conditions {given['name']}; name them: --condition {given['name']}"
            )
        if given is not None and condition is not None and condition.entry()["sha256"] != given["sha256"]:
            raise InputError(
                f"the record was made with the conditions {given['sha256']} ({given['name']}), but "
                f"{condition.condition.name} has {condition.entry()['sha256']}"
            )
        interval = entry.get("interval")
        if interval is not None and len(interval) != 2:
            raise InputError(f"a guidance interval has two ends; got {interval}")
        return cls(
            scale,
            None if interval is None else (interval[0], interval[1]),
            entry.get("rescale"),
            entry.get("eta_parallel"),
            entry.get("norm", APG_NORM),
            guide,
            entry.get("plus_plus", False),
            classifier,
            entry.get("classifier_scale", 1.0),
            condition,
        )

    def tag(self, labels: Sequence[int] | None) -> str:
        """A short name of what a tuned solver belongs to beside the weights: "" without label and guidance.

        >>> GuidanceSettings().tag(None), GuidanceSettings(2.5).tag([3])
        ('', 'label-w2.5')
        """
        parts = [] if labels is None else ["label"]
        if self.scale != 1:
            parts.append(f"w{self.scale!r}".removesuffix(".0"))
        rule = self.entry()
        if rule:
            for name in ("guide", "classifier"):
                if name in rule:
                    rule[name]["path"] = ""  # the weights count, wherever they lie
            if "condition" in rule:
                rule["condition"]["name"] = ""
            digest = hashlib.sha256(json.dumps(rule, sort_keys=True).encode()).hexdigest()
            parts.append(digest[:8])
        return "-".join(parts)


def guided_model(
    model: ScoreModel, n: int, labels: Sequence[int] | None = None, guidance: GuidanceSettings | None = None
) -> tuple[ScoreModel, dict[str, Any]]:
    """The model with its guidance, and the conditions of n samples.

    Args:
        model: any ScoreModel.
        n: number of samples.
        labels: classes that the samples take in turn; sample k has labels[k mod length]. None for no class.
        guidance: none by default.

    Returns:
        A model that costs two evaluations if it is guided, and ``{"label": (n,)}``, or ``{}`` without labels.

    Raises:
        ValueError: labels that the model cannot take, or guidance without labels and without a guide.

    >>> from sde_diffusion.networks import build
    >>> from sde_diffusion.sde import VPSDE
    >>> plain = ScoreModel(build("mlp", shape=(2,), classes=3), VPSDE(), shape=(2,))
    >>> model, condition = guided_model(plain, 5, [2, 0], GuidanceSettings(3.0))
    >>> model.cost, condition["label"].tolist()
    (2, [2, 0, 2, 0, 2])
    """
    guidance = guidance or GuidanceSettings()
    require_condition(model.network, guidance.condition)
    extra = {} if guidance.condition is None else guidance.condition.rows(model.network, n)
    if guidance.classifier is not None:
        guided, label = _with_classifier(model, n, labels, guidance.classifier, guidance.classifier_scale)
        return guided.eval(), {**label, **extra}
    condition = {**({} if labels is None else {"label": _label(model, labels, n)}), **extra}
    if guidance.plain:
        return model, condition
    if not condition and guidance.guide is None:
        raise InputError(
            f"guidance {guidance.scale:g} needs labels to guide to; name them: --label 3, or --label all; or name a "
            "weaker model to guide away from: --autoguide RUN"
        )
    guide = None
    if guidance.guide is not None:
        guide = load(guidance.guide, device=str(model.device))
        if labels is not None:
            own, other = _classes(model), _classes(guide)
            if own != other:
                raise InputError(
                    f"the guide {guidance.guide.path} was trained with {other or 'no'} classes and the model with "
                    f"{own or 'no'}; autoguidance gives both networks the same label"
                )
    elif not isinstance(model, Guided):
        for name in condition:
            null_of(model.network, name)  # now, with its own message, not in the first step
        if (getattr(model.network, "settings", None) or {}).get("required"):
            raise InputError(
                "guidance needs the model without its condition, which was never trained: --drop-condition 0; train "
                "with a probability above 0"
            )
    if guidance.plus_plus:
        return GuidedPlusPlus(model, guidance.scale, interval=guidance.interval, guide=guide).eval(), condition
    combine, on = None, "data"
    if guidance.rescale is not None:
        combine, on = rescaled(guidance.scale, guidance.rescale), "output"
    elif guidance.eta_parallel is not None:
        combine = projected(guidance.scale, guidance.eta_parallel, guidance.norm)
    scale = guidance.scale if combine is None else None
    made = Guided(model, scale, interval=guidance.interval, combine=combine, guide=guide, on=on)
    return made.eval(), condition


def _with_classifier(
    model: ScoreModel, n: int, labels: Sequence[int] | None, stored: StoredModel, scale: float
) -> tuple[ScoreModel, dict[str, Any]]:
    """The model guided by a stored classifier, and the labels."""
    if labels is None:
        raise InputError("classifier guidance needs labels to guide to; name them: --label 3, or --label all")
    classifier = load(stored, device=str(model.device)).requires_grad_(False)
    if not isinstance(classifier, NoisyClassifier):
        raise InputError(f"{stored.path} is no classifier; train one: sdediff train --classifier")
    if classifier.sde != model.sde:
        raise InputError(
            f"the classifier was trained on {classifier.sde} and the model on {model.sde}; use one process"
        )
    if None not in (classifier.shape, model.shape) and classifier.shape != model.shape:
        raise InputError(f"the classifier is for samples of shape {classifier.shape}, the model for {model.shape}")
    if not classifier.units.same_as(model.units):
        raise InputError("the classifier scales its data otherwise than the model; train both on the same data")
    shared = _classes(model) is not None
    guided = ClassifierGuided(model, classifier.log_prob, scale, shared=shared)
    return guided, {"label": _label(model if shared else classifier, labels, n)}


def _entry_of(stored: StoredModel) -> CheckpointEntry:
    return {"path": name_of(stored), "step": stored.step, "sha256": stored.sha256}


def _require_same(what: str, option: str, wanted: CheckpointEntry | None, found: StoredModel | None) -> None:
    """Refuse another model beside the first than that of a record."""
    if (wanted is None) != (found is None):
        raise InputError(
            f"the samples of the record were made without a {what}; leave out {option}"
            if wanted is None
            else f"the record was made with the {what} {wanted['path']}; name it: {option} {wanted['path']}"
        )
    if wanted is not None and found is not None and found.sha256 != wanted["sha256"]:
        raise InputError(
            f"the record was made with a {what} of the weights {wanted['sha256']} ({wanted['path']}), but "
            f"{found.path} has {found.sha256}; name the {what} of the record: {option} RUN"
        )


def _classes(model: ScoreModel) -> int | None:
    """The number of classes that a network was built with; None if it does not say."""
    classes = (getattr(model.network, "settings", None) or {}).get("classes")
    return None if classes is None else int(classes)


def _label(model: ScoreModel, labels: Sequence[int], n: int) -> Tensor:
    """The label of each of n samples."""
    classes = _classes(model)
    if classes is None:
        names = None if model.network is None else condition_names(model)
        if hasattr(model.network, "settings") or names is None or "label" not in names:
            raise InputError("the model was trained without labels and cannot take one; train with --labels")
        if not labels or min(labels) < 0:
            raise InputError(f"labels are whole numbers from 0 up, one or more; got {list(labels)}")
    elif not labels or not all(0 <= label < classes for label in labels):
        raise InputError(f"the labels of this model run from 0 to {classes - 1}; got {list(labels)}")
    return torch.tensor(labels, device="cpu").repeat(-(-n // len(labels)))[:n]
