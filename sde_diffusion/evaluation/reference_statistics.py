"""Reference statistics: moments of real features, and their origin.

    <name>.safetensors     mean, scatter and count of all features, some of the features themselves, what the
                           extractor needs; in the header the data (name, fingerprint, split, n, shape), the
                           extractor (name, hash, preprocessing) and a hash of the tensors

Statistics of one extractor are not comparable with features of another, of other preprocessing or of other
image sizes: all of it is compared before the first figure is made.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sde_diffusion.data import Data
from sde_diffusion.evaluation.features import Extractor, InRange, make_extractor
from sde_diffusion.evaluation.features.extractor import FEW
from sde_diffusion.evaluation.metrics import Moments
from sde_diffusion.files.reading import parse_json, require_regular
from sde_diffusion.storage.atomic_folder import FORMAT, CheckpointError, pack, unpack, write_file
from sde_diffusion.storage.record_types import ReferenceRecord
from sde_diffusion.storage.typed_json import checked
from solvers.errors import InputError, NotFoundError

KEEP = 5_000  # features that are kept for metrics that need more than mean and covariance
_KEY, _KIND, _BATCH = "sdediff", "reference", 500


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """The features of real samples: their moments, at most ``KEEP`` of them, and the description of data and extractor.

    Attributes:
        moments: moments of all of them.
        features: (m, d) float32, at most ``KEEP``, evenly spaced in the data.
        data: name, fingerprint, split, n and shape of the data; "values", bytes or floats; "range", the black and
            white that features of bytes took for floats.
        extractor: name, sha256 and preprocessing.
        tensors: tensors of the extractor, by name; empty where its name is enough.

    >>> from sde_diffusion.data import load_data
    >>> reference = FeatureStatistics.of(load_data("moons"), make_extractor("pixels"))
    >>> reference.moments.n, tuple(reference.features.shape), reference.extractor["name"]
    (20000, (5000, 2), 'pixels')
    """

    moments: Moments
    features: Tensor
    data: Mapping[str, Any]
    extractor: Mapping[str, str]
    tensors: Mapping[str, Tensor]

    @classmethod
    def of(cls, data: Data, extractor: Extractor, split: str = "train", device: str = "cpu") -> FeatureStatistics:
        """The features of a data set, taken batch by batch.

        Args:
            data: the real samples.
            extractor: the features.
            split: split of the data set, for the record.
            device: device of the result.

        Raises:
            ValueError: samples that the extractor does not take, features that are not finite, features of bytes for
                floats without a stated range or far outside of it.
        """
        floats = data.x.dtype != torch.uint8
        if floats and extractor.takes_bytes:
            first = data.batch(slice(0, _BATCH))
            raise InputError(
                f"the features '{extractor.name}' need images of bytes, and {data.name} holds floats from "
                f"{float(first.min()):.4g} to {float(first.max()):.4g} whose black and white are not stated: give "
                "value_range=(black, white) (--range), or use the features 'pixels' or 'pca', which take values as "
                "they are"
            )
        kept = torch.linspace(0, len(data) - 1, min(KEEP, len(data)), dtype=torch.float64).round().long()
        some, total = [], None
        for start in range(0, len(data), _BATCH):
            x = data.batch(slice(start, start + _BATCH))
            if (share := extractor.outside(x)) > FEW:
                raise InputError(
                    f"{share:.0%} of the values of {data.name} lie far outside of the stated black and white "
                    f"({extractor.preprocessing}): they would be clamped; state the range of the data"
                )
            features = extractor(x.to(device)).features.cpu()
            part = Moments.of(features)
            total = part if total is None else total + part
            some.append(features[kept[(kept >= start) & (kept < start + _BATCH)] - start])
        assert total is not None  # Data is never empty
        record = {
            "name": data.name,
            "fingerprint": data.fingerprint,
            "split": split,
            "n": len(data),
            "shape": list(data.shape),
            "values": "floats" if floats else "bytes",
        }
        if isinstance(extractor, InRange):
            record["range"] = [extractor.low, extractor.high]
        return cls(total, torch.cat(some), record, extractor_properties(extractor), dict(extractor.tensors))

    @property
    def of_floats(self) -> bool:
        """Whether the real samples are unscaled floats, not images of bytes."""
        return self.data.get("values") == "floats"

    def check(self, extractor: Extractor) -> None:
        """Refuse to compare with features of another extractor.

        Raises:
            ValueError: another name, hash or preprocessing; the message has both.
        """
        for key, value in extractor_properties(extractor).items():
            if self.extractor[key] != value:
                raise InputError(
                    f"the reference has features '{self.extractor['name']}' with {key} '{self.extractor[key]}', but "
                    f"the samples would get '{extractor.name}' with {key} '{value}': that compares nothing. "
                    "Use the features of the reference, or make the reference again"
                )

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Refuse samples of another shape than the real ones.

        Raises:
            ValueError: with both shapes.
        """
        if list(shape) != list(self.data["shape"]):
            raise InputError(
                f"samples of shape {tuple(shape)}, but the reference '{self.data['name']}' has samples of shape "
                f"{tuple(self.data['shape'])}"
            )

    def make_extractor(self, weights: str | os.PathLike[str] | None = None) -> Extractor:
        """The extractor of these features.

        Raises:
            ValueError: a custom function, or an extractor that has changed.
        """
        limits = self.data.get("range")
        extractor = make_extractor(
            self.extractor["name"],
            tensors=self.tensors,
            weights=weights,
            value_range=None if limits is None else (limits[0], limits[1]),
        )
        self.check(extractor)
        return extractor

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> Path:
        """Write a .safetensors file.

        Args:
            path: the file.
            force: whether an existing file is replaced.

        Raises:
            FileExistsError: the file exists.
            ValueError: another ending.
            OSError: it could not be written; nothing is left behind.
        """
        path = Path(path)
        if path.suffix != ".safetensors":
            raise InputError(f"a reference is a .safetensors file; got {path}")
        tensors = {"mean": self.moments.mean, "scatter": self.moments.scatter, "features": self.features}
        tensors |= {f"extractor.{name}": value for name, value in self.tensors.items()}
        record = {"format": FORMAT, "kind": _KIND, "n": self.moments.n, "data": dict(self.data)}
        record |= {"extractor": dict(self.extractor), "sha256": digest(tensors)}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, pack(tensors, {_KEY: json.dumps(record)}), replace=force)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str], data: Data | None = None) -> FeatureStatistics:
        """Read a file that ``save`` wrote.

        Args:
            path: the file.
            data: the data that it should be of, to be sure.

        Raises:
            FileNotFoundError: the file does not exist.
            CheckpointError: it is torn, damaged, foreign, or of another version.
            ValueError: the file describes other data.
        """
        path = Path(path)
        if not path.is_file():
            raise NotFoundError(f"no reference at {path}: expected a .safetensors file; --save-reference writes one")
        require_regular(path)
        try:
            with safe_open(path, "pt") as file:
                header = (file.metadata() or {}).get(_KEY, "{}")
        except SafetensorError as error:
            raise CheckpointError(f"{path} is torn, or no safetensors file: {error}") from None
        plain = parse_json(header, f"the header of {path}")
        if not isinstance(plain, dict) or plain.get("kind") != _KIND or plain.get("format") != FORMAT:
            raise CheckpointError(f"{path} is no reference of format {FORMAT}; --save-reference writes one")
        record = checked(plain, ReferenceRecord, f"the header of {path}")
        tensors = unpack(path)
        _check_statistics(tensors, record["n"], path)
        if digest(tensors) != record["sha256"]:
            raise CheckpointError(f"{path} is damaged: its tensors are not those that were written")
        found = record["data"]
        if data is not None and data.fingerprint != found["fingerprint"]:
            raise InputError(
                f"{path} describes the data '{found['name']}' with fingerprint {found['fingerprint'][:12]}, not of "
                f"'{data.name}' with {data.fingerprint[:12]}; make the reference again"
            )
        own = {name.removeprefix("extractor."): v for name, v in tensors.items() if name.startswith("extractor.")}
        moments = Moments(record["n"], tensors["mean"], tensors["scatter"])
        return cls(
            moments, tensors["features"], found, {key: str(value) for key, value in record["extractor"].items()}, own
        )


def _check_statistics(tensors: Mapping[str, Tensor], n: int, path: Path) -> None:
    if missing := {"mean", "scatter", "features"} - set(tensors):
        raise CheckpointError(f"{path} is damaged: it has no {', '.join(sorted(missing))}")
    mean, scatter, features = (tensors[name] for name in ("mean", "scatter", "features"))
    d = mean.numel()
    fits = mean.ndim == 1 and scatter.shape == (d, d) and features.ndim == 2 and features.shape[1] == d
    if not fits or not 1 <= len(features) <= n:
        raise CheckpointError(
            f"{path} is damaged: mean, scatter and features of {n} samples have the shapes {tuple(mean.shape)}, "
            f"{tuple(scatter.shape)} and {tuple(features.shape)}"
        )
    for name, value in tensors.items():
        if not name.startswith("extractor.") and not (value.is_floating_point() and bool(value.isfinite().all())):
            raise CheckpointError(f"{path} is damaged: {name} must have finite numbers")


def extractor_properties(extractor: Extractor) -> dict[str, str]:
    """Properties that must agree for two sets of features to be comparable."""
    return {"name": extractor.name, "sha256": extractor.sha256, "preprocessing": extractor.preprocessing}


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the bytes of tensors in the order of their names."""
    return hashlib.sha256(pack(dict(sorted(tensors.items())))).hexdigest()
