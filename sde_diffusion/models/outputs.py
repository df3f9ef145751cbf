"""Outputs of networks of other libraries, and modules inside plain functions.

Networks return a tensor, a tuple whose first entry is the tensor, or an object that holds it as ``sample`` (diffusers),
``logits``, ``mean`` (azula) or under the key "sample". ``tensor_of`` takes the tensor out.

A function, such as ``lambda x, t: unet(x, t).sample``, hides the module that it calls: its parameters, its device and
its dtype. ``modules_in`` finds it in the closure, in the globals that the function names, or behind a method.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

from torch import Tensor, nn

from solvers.errors import InputTypeError

_FIELDS = ("sample", "mean", "logits")


def tensor_of(output: Any) -> Tensor:
    """The tensor that a network's output is, or holds.

    Raises:
        TypeError: none of the known forms; the message says how to wrap the network.

    >>> import torch
    >>> tensor_of((torch.zeros(2), {"hidden": 1}))
    tensor([0., 0.])
    """
    if isinstance(output, Tensor):
        return output
    held = [output.get("sample")] if isinstance(output, dict) else [getattr(output, name, None) for name in _FIELDS]
    if isinstance(output, tuple | list) and len(output) > 0:
        held.append(output[0])
    for value in held:
        if isinstance(value, Tensor):
            return value
    raise InputTypeError(
        f"the network returned {type(output).__name__}, which holds no tensor under {', '.join(_FIELDS)} or in first "
        "place; wrap it: class Net(torch.nn.Module) whose forward(x, t) returns the tensor"
    )


def modules_in(function: Any) -> list[nn.Module]:
    """The modules that a callable refers to, each once.

    >>> import torch
    >>> layer = torch.nn.Linear(2, 2)
    >>> modules_in(lambda x, t: layer(x))
    [Linear(in_features=2, out_features=2, bias=True)]
    """
    held: list[Any] = []
    if isinstance(function, nn.Module):
        return [function]
    if isinstance(function, partial):
        held = [*modules_in(function.func), *function.args, *function.keywords.values()]
    elif inspect.ismethod(function):
        held = modules_in(function.__self__)
    elif inspect.isfunction(function):
        names = inspect.getclosurevars(function)
        held = [*names.nonlocals.values(), *names.globals.values(), *(function.__defaults__ or ())]
    elif hasattr(function, "__dict__"):
        held = list(vars(function).values())
    return list(dict.fromkeys(value for value in held if isinstance(value, nn.Module)))
