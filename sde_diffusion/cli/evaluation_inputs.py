"""The samples and the reference of `sdediff evaluate`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sde_diffusion.data import Data, load_data
from sde_diffusion.data.toy import LAWS
from sde_diffusion.evaluation import read_samples
from sde_diffusion.evaluation.features import Extractor, Features, make_extractor
from sde_diffusion.evaluation.reference_statistics import FeatureStatistics
from sde_diffusion.evaluation.score import features_of
from sde_diffusion.storage.checkpoint import StoredModel
from sde_diffusion.storage.locate import recorded_data, recorded_layout
from sde_diffusion.storage.sharded_set import is_sharded, whole_set
from solvers.errors import InputError, require_whole

FIT = 20_000  # number of samples that the principal axes are fitted to


def several_processes(asked: int | None) -> None:
    """Refuse --processes, which started processes before torchrun did.

    Raises:
        ValueError: more than one.
    """
    if asked is not None:
        require_whole("--processes", asked, 1, 1024)
    if asked is not None and asked > 1:
        words = " ".join(sys.argv[1:]).replace(f" --processes {asked}", "").replace(f" --processes={asked}", "")
        raise InputError(
            f"--processes starts no processes any more; a launcher does: torchrun --nproc-per-node {asked} "
            f"-m sde_diffusion -- {words}"
        )


def given_samples(
    source: Path, reference: FeatureStatistics, extractor: Extractor, limits: tuple[float, float] | None
) -> Tensor | Features:
    """Samples from files, or the features of a set in shards, which are taken shard by shard."""
    if is_sharded(source):
        found = whole_set(source)
        reference.check_shape(found.shape)
        return features_of((part.x for part in found.parts()), extractor)
    own = reference.of_floats
    return read_samples(source, None if own else limits, own_units=own)


def find_reference(
    name: str | None, split: str, data_dir: Path | None, stored: StoredModel | None
) -> tuple[FeatureStatistics | None, Data | None]:
    """The stored reference, or the data set from which it is computed."""
    if name is not None and name.endswith(".safetensors"):
        return FeatureStatistics.load(name), None
    if name is not None:
        layout = None if stored is None else recorded_layout(stored.data, name)
        return None, load_data(name, data_dir, split=split, layout=layout)
    if stored is None:
        raise InputError("samples from files need --reference: a data set, a path, or a file of --save-reference")
    if not stored.data.get("name"):
        raise InputError("the model does not say what it was trained on; give --reference")
    name = recorded_data(stored.data["name"], "--reference")
    data = load_data(name, data_dir, split=split, layout=recorded_layout(stored.data, name))
    if split == "train" and data.fingerprint != stored.data.get("source", stored.data.get("fingerprint")):
        raise InputError(f"the data '{data.name}' is not what the model was trained on; give --reference")
    return None, data


def features_for_tuning(name: str | None, stored: StoredModel, data_dir: Path | None = None) -> str | Extractor | None:
    """The features that a command names; "pca" is fitted to the data that the model was trained on."""
    if name != "pca":
        return name
    _, data = find_reference(None, "train", data_dir, stored)
    assert data is not None
    return make_extractor(name, fit=lambda: data.batch(slice(0, FIT)))


def real_for_tuning(stored: StoredModel, labels: Sequence[int] | None, data_dir: Path | None) -> Tensor | None:
    """The data that a model was trained on, of some classes where they are asked for; None where it does not say."""
    if not stored.data.get("name"):
        return None
    _, data = find_reference(None, "train", data_dir, stored)
    assert data is not None
    if labels is None or data.labels is None:
        return data.batch(slice(0, FIT))
    wanted = torch.isin(data.labels, torch.tensor(sorted(set(labels)), device="cpu")).nonzero()[:, 0]
    return data.batch(wanted[:FIT].tolist())


def held_out(data: Data, split: str) -> Data | None:
    """Test samples outside the reference, if the data set has a test split that needs no download."""
    return load_data(data.name, split="test") if split == "train" and data.name in ("digits", *LAWS) else None


def range_of(text: str | None) -> tuple[float, float] | None:
    """The value range (black, white) of float images.

    >>> range_of("0,1")
    (0.0, 1.0)
    """
    if text is None:
        return None
    try:
        black, white = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--range takes 2 numbers separated by commas, such as 0,1; got '{text}'") from None
    return black, white
