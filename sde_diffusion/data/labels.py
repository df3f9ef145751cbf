"""Labels of any whole numbers as the classes 0 to K - 1 that a network takes, with what they were called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from sde_diffusion.files.reading import load_json
from solvers.errors import InputError, InputTypeError

BESIDE = "dataset.json"  # of the data set tools of StyleGAN and EDM
_SHOWN = 8


def without_gaps(labels: Sequence[int] | np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], tuple[str, ...] | None]:
    """Return labels from 0 to K - 1, and the values that they had; None where they are these already.

    >>> without_gaps([5, 900, 5])
    (array([0, 1, 0]), ('5', '900'))
    >>> without_gaps([2, 0, 1])[1] is None
    True
    """
    values = np.asarray(labels, np.int64)
    present, index = np.unique(values, return_inverse=True)
    if len(present) == 0 or int(present[0]) < 0 or (int(present[0]) == 0 and int(present[-1]) == len(present) - 1):
        return values, None  # negative ones are refused by Data
    return index.reshape(values.shape).astype(np.int64), tuple(map(str, present.tolist()))


def labels_beside(root: Path, paths: Sequence[Path]) -> list[int] | None:
    """Return the label that dataset.json gives each image; None where it says that there are none.

    Args:
        root: the folder with dataset.json: {"labels": [["00000/img00000000.png", 6], ...]}, or null for no labels.
        paths: the images below it.

    Raises:
        ValueError: another content, or an image without a label.
    """
    content = load_json(file := root / BESIDE)
    entries = content.get("labels", ()) if isinstance(content, dict) else ()
    if entries is None:
        return None
    if not isinstance(entries, list):
        expected = 'expected {"labels": [["name.png", 3], ...]} or "labels": null'
        raise InputError(f"{file} is no file of labels: {expected}; take it out of the folder if it is something else")
    known: dict[str, int] = {}
    for entry in entries:
        if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)):
            raise InputError(f"{file}: a label is [name of the image, whole number]; got {entry!r}")
        if not isinstance(entry[1], int) or isinstance(entry[1], bool):
            raise InputError(f"{file}: the label of {entry[0]} is {entry[1]!r}; expected a whole number")
        known[entry[0]] = entry[1]
    found = [known.get(path.relative_to(root).as_posix()) for path in paths]
    missing = [path for path, label in zip(paths, found, strict=True) if label is None]
    if missing:
        raise InputError(f"{file} has no label for {len(missing)} of {len(paths)} images, the first is {missing[0]}")
    return [label for label in found if label is not None]


def class_index(name: str, names: Sequence[str] | None, classes: int) -> int:
    """Return the class that a name or number means.

    Args:
        name: what was asked for.
        names: of the classes, or None where they are numbers from 0 up.
        classes: how many there are.

    Raises:
        ValueError: a class that the data do not have.

    >>> class_index("cat", ["cat", "dog"], 2), class_index("900", ["5", "900"], 2), class_index("1", None, 2)
    (0, 1, 1)
    """
    if names is not None and name in names:
        return list(names).index(name)
    numbers = names is None or not any(known.isdigit() for known in names)
    if numbers and name.isdigit() and int(name) < classes:
        return int(name)
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "") if names else f"0 to {classes - 1}"
    near = get_close_matches(name, names or (), n=3)
    hint = f"did you mean {' or '.join(repr(known) for known in near)}? Its classes: " if near else "its classes: "
    raise InputError(f"no sample that the model was trained on has the class '{name}'; {hint}{shown}")


def class_values(labels: Sequence[int], names: Sequence[str] | None) -> list[int]:
    """Return the numbers that classes had in the data, the classes themselves where they had none.

    >>> class_values([0, 1], ["5", "900"]), class_values([0, 1], ["cat", "dog"])
    ([5, 900], [0, 1])
    """
    if names is None or not all(name.isdigit() for name in names):
        return list(labels)
    return [int(names[label]) for label in labels]


def check_names(names: object, classes: int | None, where: str) -> tuple[str, ...] | None:
    """Return names of classes that were read from a file, checked.

    Raises:
        ValueError: names that are no texts, or too few.
    """
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputTypeError(f"{where}: the names of classes are a list of texts; got {names!r}")
    if classes is not None and len(names) < classes:
        raise InputError(f"{where}: {len(names)} names for {classes} classes")
    return tuple(names)


def described(counts: Mapping[str, int], names: Sequence[str] | None) -> dict[str, int]:
    """Return counts by class with the names of the classes.

    >>> described({"0": 3, "1": 4}, ["cat", "dog"])
    {'cat': 3, 'dog': 4}
    """
    return dict(counts) if names is None else {names[int(k)]: count for k, count in counts.items()}
