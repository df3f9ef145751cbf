"""Training options in a TOML file: `sdediff train --config FILE` reads it, and every run writes config.toml.

data = "digits"            # a name or a path; also data_dir, condition, resize_condition and out
sde = "vp"                 # the process and the parametrization
predicts = "noise"
steps = 3000               # every field of TrainConfig by its name
ema = [0.999, 0.9999]

[process]                  # settings of the process
beta_max = 20.0

[network]                  # settings of the network
channels = 32
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from sde_diffusion.storage.record_types import DataEntry, ModelDescription
from sde_diffusion.training.config import RENAMED, TrainConfig
from solvers.errors import InputError, InputTypeError, NotFoundError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TEXTS = (
    "data", "size", "data_dir", "layout", "condition", "resize_condition", "out", "sde", "predicts",
    "autoencoder", "latent", "task", "features",
)  # fmt: skip
WHOLE = ("factor",)
TABLES = ("process", "network")


def read_options(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a file of options.

    Returns:
        The options by name: "process" and "network" are tables; those of ``TrainConfig`` are checked.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not TOML, or has an unknown key; a value out of range.
        TypeError: a value of the wrong type.
    """
    path = Path(path)
    options = read_table(path)
    options = {RENAMED.get(name, name): value for name, value in options.items()}
    training = [field.name for field in fields(TrainConfig)]
    known = (*TEXTS, *WHOLE, *training, *TABLES)
    for name, value in options.items():
        if name not in known:
            raise InputError(f"{path}: unknown key {name} = {value!r}; allowed: {', '.join(sorted(known))}")
        if name in TEXTS and not isinstance(value, str):
            raise InputTypeError(f"{path}: {name} must be text; got {value!r}")
        if name in WHOLE and type(value) is not int:
            raise InputTypeError(f"{path}: {name} must be a whole number; got {value!r}")
        if name in TABLES and not isinstance(value, dict):
            raise InputTypeError(f"{path}: {name} must be a table of settings, [{name}]; got {value!r}")
    try:
        TrainConfig(**{name: options[name] for name in training if name in options})
    except (TypeError, ValueError) as error:
        raise type(error)(f"{path}: {error}") from None
    return options


def read_table(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of a TOML file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not TOML.
    """
    path = Path(path)
    if not path.is_file():
        raise NotFoundError(f"no config file at {path}")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}") from None


def write_options(options: Mapping[str, Any]) -> bytes:
    """Options as a TOML file that ``read_options`` reads; entries of None are left out.

    >>> print(write_options({"steps": 3, "labels": True, "process": {"beta_min": 1e-1}}).decode(), end="")
    steps = 3
    labels = true
    <BLANKLINE>
    [process]
    beta_min = 0.1
    """
    lines = [f"{name} = {to_toml(v)}" for name, v in options.items() if v is not None and not isinstance(v, dict)]
    for name, table in options.items():
        if isinstance(table, dict):
            lines += ["", f"[{name}]", *(f"{key} = {to_toml(v)}" for key, v in table.items() if v is not None)]
    return ("\n".join(lines) + "\n").encode()


def to_toml(value: Any) -> str:
    """A value as TOML.

    >>> to_toml((0.1, 1e-5)), to_toml("vp")
    ('[0.1, 1e-05]', '"vp"')
    """
    # Strings, booleans, lists and finite numbers are written as in JSON.
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(to_toml, value))}]"
    return json.dumps(value, ensure_ascii=False)


def options_of(train: Mapping[str, Any], model: ModelDescription, data: DataEntry) -> dict[str, Any]:
    """The options that reproduce a run, from the content of its config.json.

    Args:
        train: from ``TrainConfig.to_dict``.
        model: from ``checkpoint.describe_model``.
        data: the entry of the data.
    """
    network = dict(model["network"]["settings"] or {})
    network.pop("shape", None)  # of the data
    network = {"name": model["network"]["name"], **network}
    return {
        "data": data.get("name"),
        "layout": data.get("layout"),
        "condition": data["condition"]["name"] if "condition" in data else None,
        "sde": model["sde"]["name"],
        "predicts": model["predicts"],
        **train,
        "process": dict(model["sde"]["settings"]),
        "network": network,
    }
