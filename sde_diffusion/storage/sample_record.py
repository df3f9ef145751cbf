"""A set of samples with its record: everything that is needed to make the same samples again.

    <folder>/samples.png       a grid of images, or 2-D points over the training data; where the samples start
                               from images, a row for each of these
    <folder>/samples.npz       x float32 (n, ...), seeds int64 (n,), and labels (n,) where classes were asked for
    <folder>/samples.json         checkpoint and its SHA-256, solver with all its settings, times of
                               the grid, eta, evaluations, seeds, batch size, device, versions

Sample k is fixed by its seed; the batch size and the number of threads may change the last bits, so
the record has them too. The times are written out: a named grid that changes in a later version does
not change the samples of an old record.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.data import load_data
from sde_diffusion.data.labels import class_values
from sde_diffusion.data.toy import LAWS
from sde_diffusion.files.writing import new_folder, write_file
from sde_diffusion.report.grid_of_classes import labelled_grid
from sde_diffusion.report.pictures import outside, save_grid, save_image, scatter, stretched
from sde_diffusion.report.sample_figure import sample_image
from sde_diffusion.report.strips import save_strips
from sde_diffusion.storage.atomic_folder import CheckpointError, read_json, to_json
from sde_diffusion.storage.record_types import DataEntry, SampleRecord
from sde_diffusion.storage.typed_json import checked
from solvers.errors import NotFoundError

SAMPLES_KIND = "sdediff samples"
RECORD = "samples.json"
ROWS = 16  # given images in the picture
EARLIER = "card.json"  # its name before version 0.2


@dataclass(frozen=True)
class Samples:
    """Samples and what they were made with.

    Attributes:
        x: (n, ...) float32 on the CPU.
        seeds: (n,) int64.
        record: see the module.
        source: (m, ...) data that the samples start from; sample k starts from row k mod m.
    """

    x: Tensor
    seeds: Tensor
    record: SampleRecord
    source: Tensor | None = None


def evaluations(record: Mapping[str, Any]) -> str:
    """Network evaluations of a sample, in words.

    >>> evaluations({"nfe": {"least": 44, "most": 62}})
    '44 to 62'
    """
    least, most = record["nfe"]["least"], record["nfe"]["most"]
    return str(most) if least == most else f"{least} to {most}"


def folder_name(record: Mapping[str, Any]) -> str:
    """Default folder name of a sample set.

    >>> folder_name({"solver": {"name": "my/solvers.py:Best"}, "nfe": {"least": 9, "most": 9}})
    'Best-nfe9'
    """
    solver = re.split(r"[/\\:]", record["solver"]["name"])[-1]
    solver = re.sub(r"[^A-Za-z0-9_.+-]+", "-", solver).strip(".-")[:100] or "solver"
    return f"{solver}-nfe{int(record['nfe']['most'])}"


def same(samples: Samples, record: SampleRecord) -> bool:
    """Whether x is bit-equal to the x of a record."""
    return samples.record["x"]["sha256"] == record["x"]["sha256"]


def read_record(path: str | os.PathLike[str]) -> SampleRecord:
    """Read a record.

    Raises:
        FileNotFoundError: the file does not exist.
        CheckpointError: it is torn, no record, or of another version.
    """
    path = Path(path)
    if not path.is_file():
        raise NotFoundError(f"no record at {path}: expected the {RECORD} of a set of samples")
    record = read_json(path)
    if record.get("kind") != SAMPLES_KIND:
        raise CheckpointError(f"{path} is no record of samples: expected a {RECORD} as sdediff sample writes it")
    return checked(record, SampleRecord, str(path))


def save_samples(samples: Samples, folder: str | os.PathLike[str]) -> Path:
    """Write figure, arrays and record into a new folder, all or nothing.

    Returns:
        The figure, or the arrays if samples of this shape have none. Its folder is ``folder``, or the next free name
        if another process took that one while this one was writing.

    Raises:
        FileExistsError: the folder is not empty.
        OSError: it could not be written; nothing is left behind.
    """
    with new_folder(Path(folder), taken="next") as new:
        drawn = picture(new.temporary / "samples.png", samples)
        arrays = {"x": samples.x.numpy(), "seeds": samples.seeds.numpy()}
        if (asked := samples.record.get("labels")) is not None:
            values = class_values(asked, samples.record["data"].get("class_names"))
            arrays["labels"] = np.resize(np.asarray(values, np.int64), len(samples.x))  # in turn
        if samples.source is not None:
            arrays["source"] = samples.source.numpy()
        np.savez(new.temporary / "samples.npz", **arrays)  # type: ignore[arg-type]
        write_file(new.temporary / RECORD, to_json(samples.record))
    return new.path / ("samples.png" if drawn else "samples.npz")


def picture(path: Path, samples: Samples) -> bool:
    """Draw images, points, signals or the marginals of vectors; False for samples of another shape."""
    shape = tuple(samples.x.shape[1:])
    if len(shape) == 3 and shape[0] in (1, 3):
        # Unscaled values have no black and white.
        own = samples.record["model"].get("normalization") is not None
        x = stretched(samples.x) if own else samples.x
        asked = samples.record.get("labels") or []
        if samples.source is not None:
            _strips(path, samples.source, samples.x, own)
        elif len(set(asked)) < 2:
            save_grid(path, x)
        else:
            classes = [asked[k % len(asked)] for k in range(len(x))]
            save_image(path, labelled_grid(x, classes, samples.record["data"].get("class_names")))
    elif shape == (2,):
        scatter(path, samples.x, _reference(samples.record["data"]))
    else:
        image = sample_image(samples.x, "vector" if len(shape) == 1 else "signal" if len(shape) == 2 else "other")
        if image is None:
            return False
        write_file(path, image)
    return True


def outliers(samples: Samples) -> str:
    """The number of points outside the figure, in words; empty for none, and for samples other than points."""
    known = samples.x.ndim == 2 and samples.x.shape[1] == 2
    reference = _reference(samples.record["data"]) if known else None
    return "" if reference is None else outside(samples.x, reference)


def _strips(path: Path, source: Tensor, x: Tensor, own: bool) -> None:
    """A row for each given image: the image, then the samples that start from it."""
    rows = [torch.cat([source[k : k + 1], x[k :: len(source)]]) for k in range(min(len(source), len(x), ROWS))]
    shortest = min(len(row) for row in rows)
    headings = ["given", *(f"sample {k}" for k in range(1, shortest))]
    save_strips(path, [(stretched(row) if own else row)[:shortest] for row in rows], headings)


def _reference(data: DataEntry) -> Tensor | None:
    """The training data of a toy set, if it is still the same."""
    if data.get("name") not in LAWS:
        return None
    law = load_data(data["name"])
    return law.x if law.fingerprint == data.get("fingerprint") else None
