"""The folder that `sdediff edit` writes: edit.png, edit.npz and the record edit.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from sde_diffusion.files.writing import new_folder, write_file
from sde_diffusion.report.pictures import stretched
from sde_diffusion.report.strips import save_paths, save_strips
from sde_diffusion.sampling.given.edits import Edits
from sde_diffusion.sampling.job import digest
from sde_diffusion.storage.atomic_folder import FORMAT, to_json
from sde_diffusion.storage.checkpoint import StoredModel
from sde_diffusion.storage.locate import name_of
from sde_diffusion.storage.provenance import versions

KIND = "sdediff edit"


def save_edits(folder: Path, mode: str, edits: Edits, stored: StoredModel, settings: dict[str, Any]) -> Path:
    """Write picture, arrays and record into a new folder, all or nothing.

    Args:
        folder: its name.
        mode: of ``sdediff edit``.
        edits: what it made.
        stored: the model.
        settings: of the mode.

    Returns:
        The picture, or the arrays if samples of this shape have none.

    Raises:
        FileExistsError: the folder is not empty.
        OSError: it could not be written; nothing is left behind.
    """
    record = {
        "format": FORMAT,
        "kind": KIND,
        "mode": mode,
        "settings": settings,
        "checkpoint": {"path": name_of(stored), "step": stored.step, "sha256": stored.sha256},
        "given": {"sha256": digest(edits.given), "rows": len(edits.given)},
        "x": {"dtype": "float32", "sha256": digest(edits.x), "shape": list(edits.x.shape)},
        "nfe": {"least": edits.nfe[0], "most": edits.nfe[1]},
        "round_trip_error": edits.error,
        "versions": versions(),
    }
    with new_folder(folder, taken="next") as new:
        drawn = _picture(new.temporary / "edit.png", edits, stored.model.get("normalization") is not None)
        arrays = {"x": edits.x.numpy(), "given": edits.given.float().cpu().numpy()}
        if edits.other is not None:
            arrays["other"] = edits.other.float().cpu().numpy()
        np.savez(new.temporary / "edit.npz", **arrays)  # type: ignore[arg-type]
        write_file(new.temporary / "edit.json", to_json(record))
    return new.path / ("edit.png" if drawn else "edit.npz")


def _picture(path: Path, edits: Edits, own_units: bool) -> bool:
    """Draw strips of images or points with their edits; False for samples of another shape."""
    shape = tuple(edits.x.shape[2:])
    given = edits.given.float().cpu()
    if shape == (2,):
        save_paths(path, given, edits.x)
        return True
    if len(shape) != 3 or shape[0] not in (1, 3):
        return False
    parts, headings = [given[:, None], edits.x], ["given", *edits.headings]
    if edits.other is not None:
        parts.append(edits.other.float().cpu()[:, None])
        headings.append("given")
    whole = torch.cat(parts, 1)
    save_strips(path, list(stretched(whole) if own_units else whole), headings, edits.names)
    return True
