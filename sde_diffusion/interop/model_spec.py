"""A model that is named on the command line: a function of the user's own, or a folder of diffusers.

    package.module:function        a module that can be imported, from the current folder too
    path/to/file.py:function       a file
    path/to/file.py:function:WORD  the same, called with a word
    diffusers:FOLDER               what save_pretrained of diffusers wrote; no code of the folder is run

The function takes nothing (or the words) and returns a score model. It runs because the user has named it; a record of
samples names it too, and never runs it by itself.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sde_diffusion.interop.diffusers_model import from_diffusers
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.storage.atomic_folder import pack
from sde_diffusion.storage.checkpoint import StoredModel, describe_model
from sde_diffusion.storage.record_types import ModelDescription
from solvers.errors import InputError, InputTypeError, SdediffError, choose
from solvers.plugin import file_hash, run_file

DIFFUSERS = "diffusers:"


def given_model(spec: str) -> StoredModel:
    """The model of a spec, as commands take one from disk.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: a spec of another form, a file that does not run, no such function, or one that fails.
        TypeError: what it returns is no score model.
    """
    model, source = _made(spec)
    if model.shape is None:
        raise InputError(f"{spec} gives a model without the shape of a sample; pass shape=(...) where it is made")
    made = model.eval()
    return StoredModel(Path(spec), Path(spec), _described(made), {}, None, _weights_hash(made), lambda: made, source)


def _made(spec: str) -> tuple[ScoreModel, str | None]:
    """The model, and the hash of the file that made it."""
    if spec.startswith(DIFFUSERS):
        return from_diffusers(Path(spec.removeprefix(DIFFUSERS))), None
    place, _, rest = spec.partition(".py:")
    if rest:
        path = Path(f"{place}.py")
        name, *words = rest.split(":")
        source = file_hash(path)
        sys.path.insert(0, str(path.resolve().parent))  # a file may import those beside it
        try:
            return _called(run_file(path), name, words, str(path)), source
        finally:
            sys.path.pop(0)
    module, colon, rest = spec.partition(":")
    if not colon or not rest or module.endswith(".py"):
        raise InputError(
            f"--model takes package.module:function, path/to/file.py:function or {DIFFUSERS}FOLDER; got '{spec}'"
        )
    name, *words = rest.split(":")
    sys.path.insert(0, "")  # the current folder, as with python -m
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise InputError(
            f"there is no module {error.name} here; run from its folder, or give path/to/file.py"
        ) from None
    except ImportError as error:
        raise InputError(f"{module} cannot be imported: {error}") from None
    finally:
        sys.path.pop(0)
    file = getattr(found, "__file__", None)
    return _called(vars(found), name, words, module), None if file is None else file_hash(Path(file))


def _called(names: dict[str, Any], name: str, words: list[str], place: str) -> ScoreModel:
    """The model that a function returns, or that stands under its name."""
    if name not in names:
        able = {k: v for k, v in names.items() if callable(v) and not k.startswith("_") and not isinstance(v, type)}
        choose(name, able, f"function in {place}")
    thing = names[name]
    if not isinstance(thing, ScoreModel) and callable(thing):
        try:
            thing = thing(*words)
        except SdediffError:
            raise
        except Exception as error:
            call = f"{name}({', '.join(map(repr, words))})"
            raise InputError(f"{call} in {place} failed: {type(error).__name__}: {error}") from error
    if not isinstance(thing, ScoreModel):
        raise InputTypeError(
            f"{name} in {place} gives a {type(thing).__name__}; expected a ScoreModel, such as ScoreModel(network, "
            f"VPSDE(), "
            "shape=(3, 32, 32)) or those of sde_diffusion.interop"
        )
    return thing


def _described(model: ScoreModel) -> ModelDescription:
    """The description; a process of one's own is described by its class."""
    try:
        return describe_model(model)
    except InputError:
        kind, network = type(model.sde), type(model.network)
        try:
            settings = {
                name: value for name, value in asdict(model.sde).items() if isinstance(value, int | float | str)
            }
        except TypeError:
            settings = {}
        return {
            "sde": {"name": kind.__name__, "settings": settings},
            "network": {"name": None, "class": f"{network.__module__}.{network.__qualname__}", "settings": None},
            "predicts": model.predicts,
            "sigma_data": model.sigma_data,
            "shape": None if model.shape is None else list(model.shape),
        }


def _weights_hash(model: ScoreModel) -> str:
    """The SHA-256 of a model's parameters and buffers."""
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    return hashlib.sha256(pack(tensors, {})).hexdigest()
