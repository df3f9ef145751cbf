"""Keywords of ``sample``, ``tune`` and others: conditions of the network, or mistyped arguments, which are refused."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from torch import nn

from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.networks.given import KINDS
from solvers.errors import InputTypeError

_NEAR = 0.75  # a keyword of any network that is so near to an argument is taken for it


def condition_names(model: ScoreModel) -> frozenset[str] | None:
    """The conditions that a model takes, by the signature of its network's forward; None if that takes any.

    >>> from sde_diffusion.networks import build
    >>> from sde_diffusion.sde import VPSDE
    >>> sorted(condition_names(ScoreModel(build("mlp", shape=(2,)), VPSDE())))
    ['context', 'label']
    """
    inner = getattr(model, "model", None)
    if isinstance(inner, ScoreModel):  # guidance around a model
        names = condition_names(inner)
        own = getattr(model, "name", None)  # the condition of a classifier
        return names if names is None or not isinstance(own, str) else names | {own}
    network = model.network
    try:
        signature = inspect.signature(network.forward if isinstance(network, nn.Module) else network)
    except (TypeError, ValueError):  # no Python function
        return None
    parameters = list(signature.parameters.values())
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    taken = {p.name for p in parameters[2:] if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    settings = getattr(network, "settings", None)
    if isinstance(settings, dict):  # a network of ``build`` names those that it was built without, too
        taken -= {kind for kind in KINDS if settings.get(kind) is None}
        taken -= set() if settings.get("image") is not None else {"image_noise"}
        taken -= set() if settings.get("code") is not None else {"code"}
    return frozenset(taken)


def conditions_for(
    function: Callable[..., Any],
    model: ScoreModel,
    keywords: Mapping[str, Any],
    condition: Mapping[str, Any] | None = None,
    called: str | None = None,
) -> dict[str, Any]:
    """The conditions of a call, after a check that the network takes each of them.

    Args:
        function: that was called, for its name and its arguments.
        model: whose network takes them.
        keywords: that are no arguments of the function.
        condition: conditions that were passed as such; they may have the name of an argument.
        called: the name by which the user has called the function.

    Raises:
        TypeError: a keyword that is neither an argument nor a condition; the message suggests the nearest.
    """
    names = condition_names(model)
    refuse_unknown(function, keywords, names, called)
    for name in condition or {}:
        if names is not None and name not in names:
            near = get_close_matches(name, names, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise InputTypeError(f"the condition '{name}' is unknown{_taken(names, name)}{hint}")
        if name in keywords:
            raise InputTypeError(f"the condition '{name}' is given twice")
    return {**keywords, **(condition or {})}


def refuse_unknown(
    function: Callable[..., Any],
    keywords: Iterable[str],
    names: frozenset[str] | None = frozenset(),
    called: str | None = None,
) -> None:
    """Refuse keywords that are neither arguments of a function nor conditions; ``names`` None stands for any.

    Raises:
        TypeError: an unknown argument; the message suggests the closest.

    >>> def compare(model, solvers): ...
    >>> refuse_unknown(compare, ["sovlers"])
    Traceback (most recent call last):
    ...
    solvers.errors.InputTypeError: compare has no argument 'sovlers'; did you mean 'solvers'? Arguments: model, solvers
    """
    parameters = inspect.signature(function).parameters.values()
    arguments = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    for name in keywords:
        near = get_close_matches(name, [*arguments, *(names or ())], n=1, cutoff=_NEAR if names is None else 0.6)
        if name not in names if names is not None else near and near[0] in arguments:
            hint = f"; did you mean '{near[0]}'?" if near else "."
            takes = _taken(names, name) if names != frozenset() else ""
            raise InputTypeError(
                f"{called or function.__name__} has no argument '{name}'{takes}{hint} Arguments: {', '.join(arguments)}"
            )


def _taken(names: frozenset[str] | None, name: str) -> str:
    if names is None:
        return f"; if the network takes it, pass condition={{'{name}': ...}}"
    return f", and the network takes {'the conditions ' + ', '.join(sorted(names)) if names else 'no condition'}"
