"""Files of fitted coefficients: ``pf_ode.json`` and ``pf_ode_large.json``, read and checked.

A file is a JSON object with the origin of its coefficients beside them:

    format          1
    origin          for each group of tables: numbers of steps, the command, the commit that has its code, remarks
    experts         names of the experts, in the order of the rows of a table
    features        names of the features of the last gates, newest first; earlier gates have the first of each kind
    training_set    the models of the fit: name, expert, "exact" or "network", SHA-256, remarks
    held_out_error  for each number of steps, the error of each exact model on held-out initial noise, and its measure
    tables          for each number of steps: ``rho``, ``rows`` and ``gates`` (``solvers.fitted.pf_ode``)

An unknown hash is null, and a remark says why. ``python -m benchmarks.design`` writes the files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from solvers.errors import InputError

FORMAT = 1
FEATURES = ("u_i", "u_{i-1}", "u_{i-2}", "n_i", "d_i", "d_{i-1}")
_KEYS = {"format", "origin", "experts", "features", "training_set", "held_out_error", "tables"}
_EVALUATIONS = (0, 2, 4, 6)  # features after so many evaluations, the last for more


def read_coefficients(path: Path) -> dict[str, Any]:
    """The content of a file of fitted coefficients.

    Raises:
        ValueError: the content is incomplete, or its parts do not fit together; the message says where.

    >>> content = read_coefficients(Path(__file__).with_name("pf_ode.json"))
    >>> content["experts"][0], sorted(content["tables"][0])
    ('strokes', ['gates', 'rho', 'rows'])
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the coefficients of {path.name}: {error}; reinstall the package") from None
    try:
        found = list(problems(content))
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        found = [f"the content is malformed ({type(error).__name__}: {error})"]
    if found:
        raise InputError(f"{path.name}: {found[0]}; reinstall the package, or fit the tables again")
    return content


def problems(content: Any) -> Iterable[str]:
    """The faults of a file's content, one sentence each.

    >>> list(problems({"format": 7}))
    ['format is 7, this version reads 1']
    """
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        yield f"format is {content.get('format') if isinstance(content, dict) else content!r}, this version reads 1"
        return
    if content.keys() != _KEYS:
        yield f"the keys differ from those of format 1: {', '.join(sorted(content.keys() ^ _KEYS))}"
        return
    experts, tables = content["experts"], content["tables"]
    if not experts or not all(isinstance(name, str) for name in experts):
        yield f"experts are names; got {experts!r}"
    if tuple(content["features"]) != FEATURES:
        yield f"features are {content['features']!r}; this version computes {list(FEATURES)!r}"
    steps = [len(entry["rows"]) for entry in tables]
    if len(set(steps)) != len(steps):
        yield f"two tables have the same number of steps: {steps}"
    known = sorted(n for one in content["origin"] for n in one["steps"])
    if known != sorted(steps) or not all({"command", "commit"} <= one.keys() for one in content["origin"]):
        yield f"origin has the steps {known}, tables have {sorted(steps)}; each needs a command and a commit"
    if strange := {one["expert"] for one in content["training_set"]} - set(experts):
        yield f"training_set names unknown experts {sorted(strange)}"
    for entry in tables:
        yield from (f"table of {len(entry['rows'])} steps: {what}" for what in _problems(entry, len(experts)))


def _problems(entry: dict[str, Any], experts: int) -> Iterable[str]:
    """The faults of one table."""
    rho, rows, gates = entry["rho"], entry["rows"], entry["gates"]
    if not _finite(rho) or any(low >= high for high, low in pairwise(rho)) or any(value <= 0 for value in rho):
        yield f"rho must fall and stay above 0; got {rho}"
    if len(rho) != len(rows) - 1 or len(gates) != len(rows):
        yield f"{len(rows)} rows need {len(rows) - 1} rho and {len(rows)} gates; got {len(rho)} and {len(gates)}"
        return
    for i, (row, gate) in enumerate(zip(rows, gates, strict=True)):
        if len(row) != (1 if gate is None else experts):
            yield f"row {i} has {len(row)} experts, expected {1 if gate is None else experts}"
        if any(not _finite([decay, *weights]) or not 1 <= len(weights) <= i + 1 for decay, weights in row):
            yield f"row {i} must have a decay and 1 to {i + 1} weights, all finite"
        if gate is not None and (what := _gate_problem(gate, _EVALUATIONS[min(i, 3)], experts)):
            yield f"gate {i}: {what}"


def _gate_problem(gate: Sequence[Any], features: int, experts: int) -> str | None:
    if len(gate) != 4:
        return f"expected centre, width, slopes and offset; got {len(gate)} lists"
    centre, width, slopes, offset = gate
    shape = (len(centre), len(width), len(slopes), {len(row) for row in slopes}, len(offset))
    if shape != (features, features, features, {experts}, experts) or features == 0:
        return f"expected {features} features and {experts} experts; got {shape}"
    if not all(map(_finite, (centre, width, offset, *slopes))) or min(width) <= 0:
        return "all numbers must be finite, and widths above 0"
    return None


def _finite(numbers: Iterable[Any]) -> bool:
    return all(isinstance(v, float | int) and not isinstance(v, bool) and math.isfinite(v) for v in numbers)
