"""A set of samples with its card: everything that is needed to make the same samples again.

    <folder>/samples.png       a grid of images, or points of the plane over the training data
    <folder>/samples.npz       x float32 (n, ...) and seeds int64 (n,)
    <folder>/card.json         checkpoint and its SHA-256, solver with all its settings, times of
                               the grid, eta, evaluations, seeds, batch size, device, versions

Sample k is fixed by its seed; the batch size and the number of threads may change the last bits, so
the card has them too. The times are written out: a named grid that changes in a later version does
not change the samples of an old card.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_diffusion import solver_json
from sde_diffusion.checkpoint import Stored, load
from sde_diffusion.data import load_data
from sde_diffusion.data.toy import LAWS
from sde_diffusion.guidance import Guided
from sde_diffusion.places import name_of
from sde_diffusion.plots import save_grid, scatter
from sde_diffusion.sample import check_status, sample_batches, seeds_of
from sde_diffusion.score import ScoreModel
from sde_diffusion.storage import FORMAT, CheckpointError, read_json, to_json, write_file
from sde_diffusion.tuning.files import NAME as TUNED
from sde_diffusion.tuning.files import find_tuned
from sde_diffusion.verify.plugin import find_solver
from solvers import SOLVERS, Solution, Solver, Step
from solvers.errors import choose

KIND = "sdediff samples"
CARD = "card.json"
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class Samples:
    """Samples and what they were made with.

    Attributes:
        x: (n, ...) float32 on the CPU.
        seeds: (n,) int64.
        card: see the module.
    """

    x: Tensor
    seeds: Tensor
    card: dict[str, Any]


def default_count(shape: Sequence[int]) -> int:
    """How many samples make a good picture: 64 images, 2,000 points of the plane.

    >>> default_count((1, 8, 8)), default_count((2,))
    (64, 2000)
    """
    return 2000 if tuple(shape) == (2,) else 64


def device_for(name: str) -> torch.device:
    """The device of a name in ``DEVICES``; auto is cuda where there is one.

    Raises:
        ValueError: an unknown name, or cuda where there is none.
    """
    choose(name, dict.fromkeys(DEVICES), "device")
    cuda = torch.cuda.is_available()
    if name == "cuda" and not cuda:
        raise ValueError("device 'cuda': torch sees no CUDA device here; use 'cpu' or 'auto'")
    return torch.device("cuda" if cuda and name != "cpu" else "cpu")


def solver_for(solver: str | tuple[str, Solver], stored: Stored, nfe: int | None) -> tuple[str, Solver]:
    """What a solver is called, and the solver: see ``draw``."""
    if isinstance(solver, tuple):
        return solver
    return solver, find_tuned(stored, nfe) if solver == TUNED else find_solver(solver)[1]


@torch.no_grad()
def draw(
    stored: Stored,
    n: int | None = None,
    *,
    solver: str | tuple[str, Solver] = "pf-ode",
    nfe: int | None = None,
    steps: int | None = None,
    grid: str | Tensor | Sequence[float] | None = None,
    seed: int = 0,
    eta: float | None = None,
    batch_size: int = 256,
    labels: Sequence[int] | None = None,
    guidance: float = 1.0,
    device: str = "auto",
    progress: Callable[[float], None] | None = None,
) -> Samples:
    """Draw samples from a stored model, and write down how.

    Args:
        stored: from ``checkpoint.find``.
        n: how many; ``default_count`` of the model's shape by default.
        solver: a name in ``SOLVERS``, ``path/to/file.py:Name``, "tuned" for what ``sdediff tune`` has made for this
            model and budget, or (what to call it, a Solver).
        nfe: network evaluations per sample; 20 unless steps or the times are given.
        steps: grid intervals, instead of nfe.
        grid: a name in ``GRIDS``, the times themselves, or None for the solver's own.
        seed: of the set.
        eta: noise level; 1 for stochastic solvers and 0 for the others by default.
        batch_size: samples integrated together.
        labels: classes that the samples take in turn; sample k has labels[k mod length]. None for no class.
        guidance: w of classifier-free guidance towards the labels, see ``guidance.Guided``. Where it is not 1, every
            call of the network counts two evaluations.
        device: a name in ``DEVICES``.
        progress: called with the share of the work that is done, after every step.

    Raises:
        ValueError, FloatingPointError: as ``sde_diffusion.sample``.
        CheckpointError: the weights are not of the network they are said to be.
    """
    name, instance = solver_for(solver, stored, nfe)
    place = device_for(device)
    model = load(stored, device=str(place))
    if model.shape is None:
        raise CheckpointError(f"{stored.path} does not say the shape of a sample")
    instance = instance.suited(model.shape)
    n = default_count(model.shape) if n is None else n
    model, condition = _conditional(model, labels, guidance, n)
    eta = float(instance.stochastic) if eta is None else eta
    parts: list[Solution] = []
    batches = math.ceil(n / batch_size) if n >= 1 and batch_size >= 1 else 0

    def on_step(step: Step) -> None:
        if progress is not None:  # time runs from 1 to 0: what is behind is the share done
            progress(min((len(parts) + 1 - float(step.t.mean())) / batches, 1.0))

    for part in sample_batches(
        model,
        n,
        solver=instance,
        nfe=nfe,
        steps=steps,
        grid=grid,
        seed=seed,
        batch_size=batch_size,
        eta=eta,
        on_step=on_step,
        **condition,
    ):
        check_status(part, start=len(parts) * batch_size)
        parts.append(part)
    x = torch.cat([part.x for part in parts]).float().cpu()
    used = torch.cat([part.nfe for part in parts])
    spacing = instance.grid if grid is None else grid
    card = {
        "format": FORMAT,
        "kind": KIND,
        "checkpoint": {
            "path": name_of(stored),
            "step": stored.step,
            "sha256": stored.sha256,
        },
        "model": stored.model,
        "data": stored.data,
        "n": n,
        "shape": list(x.shape[1:]),
        "seed": seed,
        "seeds": "seed * 2^32 + k for sample k = 0 to n - 1",
        "labels": None if labels is None else list(labels),
        "guidance": guidance,
        "solver": {"name": name, **solver_json.describe(instance.member(model.sde, parts[0].times))},
        "grid": {
            "name": spacing if isinstance(spacing, str) else None,
            "times": parts[0].times.tolist(),
        },
        "eta": eta,
        "nfe": {
            "asked": nfe,
            "least": int(used.min()),
            "most": int(used.max()),
            "mean": float(used.double().mean()),
        },
        "batch_size": batch_size,
        "x": {"dtype": "float32", "sha256": hashlib.sha256(x.numpy().tobytes()).hexdigest()},
        "machine": {"device": place.type, "threads": torch.get_num_threads()},
        "versions": versions(),
    }
    return Samples(x, seeds_of(seed, n), card)


def _conditional(
    model: ScoreModel, labels: Sequence[int] | None, guidance: float, n: int
) -> tuple[ScoreModel, dict[str, Tensor]]:
    """The model that is sampled, and the condition of each sample."""
    if labels is None:
        if guidance != 1:
            raise ValueError(f"guidance {guidance} needs labels to guide to; name them: --label 3, or --label all")
        return model, {}
    classes = getattr(model.network, "settings", {}).get("classes")
    if classes is None:
        raise ValueError("the model was trained without labels and cannot take one; train with --labels")
    if not labels or not all(0 <= label < classes for label in labels):
        raise ValueError(f"the labels of this model run from 0 to {classes - 1}; got {list(labels)}")
    label = torch.tensor(labels).repeat(-(-n // len(labels)))[:n]
    return (model if guidance == 1 else Guided(model, guidance)), {"label": label}


def redraw(
    card: Mapping[str, Any],
    stored: Stored,
    *,
    device: str | None = None,
    progress: Callable[[float], None] | None = None,
) -> Samples:
    """Make the samples of a card again; x is bit-equal on the same machine and versions.

    Args:
        card: from ``read_card``.
        stored: the model, with the same weights.
        device: instead of the card's.
        progress: as in ``draw``.

    Returns:
        Samples; ``same`` tells whether they are those of the card to the last bit.

    Raises:
        ValueError: another checkpoint (the message has both hashes), or a solver that this version
            does not have.
    """
    wanted = card["checkpoint"]
    if stored.sha256 != wanted["sha256"]:
        raise ValueError(
            f"the card was made with the weights {wanted['sha256']} ({wanted['path']}), but "
            f"{stored.path} has {stored.sha256}; give the model of the card: "
            "sdediff sample MODEL --card FILE"
        )
    solver = _solver(card["solver"])
    new = draw(
        stored,
        card["n"],
        solver=(card["solver"]["name"], solver),
        nfe=card["nfe"]["asked"] if solver.adaptive else None,
        grid=card["grid"]["times"],
        seed=card["seed"],
        eta=card["eta"],
        batch_size=card["batch_size"],
        labels=card.get("labels"),
        guidance=card.get("guidance", 1.0),
        device=device or card["machine"]["device"],
        progress=progress,
    )
    kept = {key: card[key] for key in ("grid", "nfe", "choice") if key in card}
    return Samples(new.x, new.seeds, {**new.card, **kept})


def evaluations(card: Mapping[str, Any]) -> str:
    """Network evaluations of a sample, in words.

    >>> evaluations({"nfe": {"least": 44, "most": 62}})
    '44 to 62'
    """
    least, most = card["nfe"]["least"], card["nfe"]["most"]
    return str(most) if least == most else f"{least} to {most}"


def folder_name(card: Mapping[str, Any]) -> str:
    """What a set of samples is called when nobody says.

    >>> folder_name({"solver": {"name": "my/solvers.py:Best"}, "nfe": {"least": 9, "most": 9}})
    'Best-nfe9'
    """
    solver = re.split(r"[/\\:]", card["solver"]["name"])[-1]
    return f"{solver}-nfe{card['nfe']['most']}"


def same(samples: Samples, card: Mapping[str, Any]) -> bool:
    """Whether x is bit-equal to the x of a card."""
    return bool(samples.card["x"]["sha256"] == card["x"]["sha256"])


def read_card(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a card.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is torn, no card, or of another version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no card at {path}: expected the {CARD} of a set of samples")
    card = read_json(path)
    needed = ("checkpoint", "n", "seed", "solver", "grid", "eta", "nfe", "batch_size", "machine")
    missing = [key for key in (*needed, "x") if key not in card]
    if card.get("kind") != KIND or missing:
        raise CheckpointError(f"{path} is no card of samples: expected a {CARD} as sdediff sample writes it")
    return card


def save(samples: Samples, folder: str | os.PathLike[str]) -> Path:
    """Write picture, arrays and card into a new folder, all or nothing.

    Returns:
        The picture; the arrays where samples of this shape have none.

    Raises:
        FileExistsError: there is something in the folder.
        OSError: it could not be written; nothing is left behind.
    """
    folder = Path(folder)
    require_new(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        drawn = picture(partial / "samples.png", samples)
        np.savez(partial / "samples.npz", x=samples.x.numpy(), seeds=samples.seeds.numpy())
        write_file(partial / CARD, to_json(samples.card))
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return folder / ("samples.png" if drawn else "samples.npz")


def require_new(folder: Path) -> None:
    """Refuse a folder with something in it: what is there is never overwritten."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists already; choose another folder with --out")


def picture(path: Path, samples: Samples) -> bool:
    """Draw images or points of the plane; False for samples of another shape."""
    shape = tuple(samples.x.shape[1:])
    if len(shape) == 3 and shape[0] in (1, 3):
        save_grid(path, samples.x)
    elif shape == (2,):
        scatter(path, samples.x, _reference(samples.card["data"]))
    else:
        return False
    return True


def _solver(entry: dict[str, Any]) -> Solver:
    known = entry["name"] in SOLVERS or entry["name"] == TUNED
    return solver_json.restore(entry, () if known else (find_solver(entry["name"])[1],))


def _reference(data: Mapping[str, Any]) -> Tensor | None:
    """The training data of a toy set, if it is still the same."""
    if data.get("name") not in LAWS:
        return None
    law = load_data(data["name"])
    return law.x if law.fingerprint == data.get("fingerprint") else None


def versions() -> dict[str, str]:
    """The versions that may change a result."""
    try:
        own = metadata.version("sdediff")
    except metadata.PackageNotFoundError:  # run from a source folder
        own = "unknown"
    return {"sdediff": own, "torch": torch.__version__}
