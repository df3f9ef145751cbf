"""One shard of a large sample set as a file: npz, safetensors, or a tar for WebDataset.

    shard-000003.npz          x float32 (n, ...), seeds int64 (n,), labels int64 (n,) where classes were asked for
    shard-000003.safetensors  the same tensors
    shard-000003.tar          000003072.npy (x), 000003072.json (seed) and 000003072.cls (label) for each sample,
                              named by its index in the set
    shard-000003.json         ``ShardRecord``: the samples of the file, its size and SHA-256

Equal samples give equal files. The record is written after its file, and both appear whole or not at all, so a shard
is there if and only if its record is.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.numpy
import torch
from safetensors import SafetensorError
from torch import Tensor

from sde_diffusion.files.reading import array_of, load_arrays, parse_json, require_regular
from sde_diffusion.files.writing import write_file
from sde_diffusion.storage.atomic_folder import FORMAT, CheckpointError, read_json, to_json
from sde_diffusion.storage.record_types import ShardRecord
from sde_diffusion.storage.typed_json import checked

SHARD_KIND = "sdediff shard"
ENDINGS = {"npz": ".npz", "safetensors": ".safetensors", "webdataset": ".tar"}
"""Formats of shards, and the endings of their files."""


class Shard(NamedTuple):
    """Samples first to first + n - 1 of a set: x (n, ...) float32, seeds (n,), labels (n,) or None."""

    first: int
    x: Tensor
    seeds: Tensor
    labels: Tensor | None = None


def shard_path(folder: Path, number: int, form: str) -> Path:
    """The file of a shard.

    >>> shard_path(Path("shards"), 3, "webdataset").name
    'shard-000003.tar'
    """
    return folder / f"shard-{number:06d}{ENDINGS[form]}"


def write_shard(path: Path, shard: Shard, nfe: Tensor) -> ShardRecord:
    """Write a shard and its record; an earlier file of the name is replaced.

    Args:
        path: from ``shard_path``.
        shard: the samples.
        nfe: network evaluations of each, (n,).

    Raises:
        OSError: it could not be written; nothing of it is left behind.
    """
    content = _content(shard, path.suffix)
    record: ShardRecord = {
        "format": FORMAT,
        "kind": SHARD_KIND,
        "first": shard.first,
        "n": len(shard.x),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "x_sha256": hashlib.sha256(shard.x.numpy().tobytes()).hexdigest(),
        "least": int(nfe.min()),
        "most": int(nfe.max()),
        "sum": int(nfe.sum()),
    }
    write_file(path, content)
    write_file(path.with_suffix(".json"), to_json(record))
    return record


def read_shard(path: Path, shape: tuple[int, ...]) -> tuple[Shard, ShardRecord]:
    """Read a shard after its size and SHA-256 were compared with its record.

    Args:
        path: the file.
        shape: shape of one sample.

    Raises:
        CheckpointError: there is no record, the file is not the one that was written, or it holds something else.
    """
    beside = path.with_suffix(".json")
    if not beside.is_file() or not path.is_file():
        raise CheckpointError(f"the shard {path} is not whole: the file or its record is missing")
    record = checked(read_json(beside), ShardRecord, str(beside))
    require_regular(path)
    if path.stat().st_size != record["bytes"]:
        raise CheckpointError(f"{path} is torn: {path.stat().st_size} bytes of {record['bytes']}")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != record["sha256"]:
        raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one in {beside.name}")
    try:
        shard = _parsed(content, path, record["first"])
    except (ValueError, KeyError, OSError, SafetensorError, tarfile.TarError) as error:
        raise CheckpointError(f"{path} holds no samples: {error}") from None
    n = record["n"]
    if shard.x.dtype != torch.float32 or shard.x.shape != (n, *shape) or shard.seeds.shape != (n,):
        raise CheckpointError(
            f"{path}: expected {n} samples of shape {shape} in float32 with their seeds; got {tuple(shard.x.shape)} "
            f"in {shard.x.dtype} and {tuple(shard.seeds.shape)} seeds"
        )
    return shard, record


def _arrays(shard: Shard) -> dict[str, np.ndarray]:
    arrays = {"x": shard.x.numpy(), "seeds": shard.seeds.numpy()}
    return arrays if shard.labels is None else {**arrays, "labels": shard.labels.numpy()}


def _content(shard: Shard, ending: str) -> bytes:
    if ending == ".safetensors":
        return safetensors.numpy.save(_arrays(shard))
    file = io.BytesIO()
    if ending == ".npz":
        np.savez(file, **_arrays(shard))  # type: ignore[arg-type]
        return file.getvalue()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for k, x in enumerate(shard.x.numpy()):
            one = io.BytesIO()
            np.save(one, x)
            parts = {"json": json.dumps({"seed": int(shard.seeds[k])}).encode(), "npy": one.getvalue()}
            if shard.labels is not None:
                parts["cls"] = str(int(shard.labels[k])).encode()
            for name, content in sorted(parts.items()):
                entry = tarfile.TarInfo(f"{shard.first + k:09d}.{name}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def _parsed(content: bytes, path: Path, first: int) -> Shard:
    if path.suffix == ".tar":
        return _from_tar(content, first)
    found = safetensors.numpy.load(content) if path.suffix == ".safetensors" else load_arrays(path)
    labels = torch.from_numpy(found["labels"]) if "labels" in found else None
    return Shard(first, torch.from_numpy(found["x"]), torch.from_numpy(found["seeds"]), labels)


def _from_tar(content: bytes, first: int) -> Shard:
    columns: dict[str, list[bytes]] = {"npy": [], "json": [], "cls": []}
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
        for entry in tar:
            index, _, name = entry.name.partition(".")
            file = tar.extractfile(entry)
            if file is None or name not in columns or int(index) != first + len(columns[name]):
                raise CheckpointError(f"the tar has the unexpected entry {entry.name!r}")
            columns[name].append(file.read())
    x = np.stack([array_of(one, "a sample") for one in columns["npy"]])
    seeds = torch.tensor([int(parse_json(one, "a seed")["seed"]) for one in columns["json"]], device="cpu")
    labels = torch.tensor([int(one) for one in columns["cls"]], device="cpu") if columns["cls"] else None
    return Shard(first, torch.from_numpy(x), seeds, labels)
