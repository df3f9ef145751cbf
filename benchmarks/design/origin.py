"""Files of fitted coefficients with the origin of their tables (``solvers.fitted.coefficients`` has the format).

The hash of an exact model is that of its parameters at six digits, so that the last bits of a processor do not
matter. The hash of a network is that of the file of its averaged weights.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.design.training_problems import TrainingProblem, exact_models
from sde_diffusion import GaussianMixture, ScoreModel
from sde_diffusion.tuning.fit import run
from solvers.errors import InputError
from solvers.fitted.coefficients import FEATURES, FORMAT, problems, read_coefficients
from solvers.fitted.pf_ode import table_of

ROOT = Path(__file__).resolve().parent.parent.parent
START = Path(__file__).with_name("start.json")
TABLES, LARGE_TABLES = ROOT / "solvers/fitted/pf_ode.json", ROOT / "solvers/fitted/pf_ode_large.json"
MEASURE = "mean over held-out initial noise of the RMS distance to the reference solution"
# Glyphs of the fonts that come with matplotlib, so the hash depends on its version and on that of pillow.
DEPENDS_ON_FONTS = {"letters, wide"}


def stored(path: Path) -> dict[int, dict[str, Any]]:
    """The tables of a file by number of steps; none where there is no file."""
    return {len(entry["rows"]): entry for entry in read_coefficients(path)["tables"]} if path.exists() else {}


def hash_of(model: ScoreModel) -> str:
    """SHA-256 of the parameters of an exact model at six digits, as hex."""
    parts = [model.means, model.weights] if isinstance(model, GaussianMixture) else list(model.network.buffers())
    digest = hashlib.sha256(f"std {getattr(model, 'std', 0.0):.6g}".encode())
    for part in parts:
        digest.update(f"{tuple(part.shape)}".encode())
        digest.update(" ".join(f"{v:.6g}" for v in part.flatten().tolist()).encode())
    return digest.hexdigest()


def training_records(
    names: Sequence[str], experts: Mapping[str, Sequence[str]], large: bool, runs: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """The entries of ``training_set``: the exact models of some names, then the networks of some runs."""
    models = exact_models(large)
    out = [
        {"name": name, "expert": expert_of(name, experts), "model": "exact", "sha256": hash_of(models[name])}
        for name in names
        if name in models
    ]
    for folder in runs:
        name = Path(folder).name
        [*_, weights] = sorted(Path(folder).glob("**/ema.safetensors")) or [Path(folder)]
        sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
        out.append({"name": name, "expert": expert_of(name, experts), "model": "network", "sha256": sha256})
    return out


def expert_of(name: str, experts: Mapping[str, Sequence[str]]) -> str:
    """The expert that a model belongs to; the only one where there is one."""
    return next((expert for expert, names in experts.items() if name in names), next(iter(experts)))


def held_out_errors(entry: dict[str, Any], exact: Sequence[TrainingProblem]) -> dict[str, float]:
    """The error of a table on the held-out initial noise of each exact model, with four digits."""
    ends = [run(table_of(one.fit.sde, entry), one.held) for one in exact]
    return {one.name: float(f"{one.held.errors(x).mean():.4g}") for one, x in zip(exact, ends, strict=True)}


def commit() -> str:
    """The commit of the code, marked where files differ from it."""
    git = ["git", "-C", str(ROOT)]
    name = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True).stdout
    return f"{name}, with changes" if changed else name


def add(
    path: Path,
    entry: dict[str, Any],
    models: Sequence[TrainingProblem],
    experts: Mapping[str, Sequence[str]],
    runs: Sequence[str],
    command: str,
) -> None:
    """Put a table into a file, with its origin; the tables for other numbers of steps stay."""
    steps, entry = len(entry["rows"]), rounded(entry)
    exact = [one for one in models if not one.network]
    large = exact[0].name not in exact_models()
    old: dict[str, Any] = read_coefficients(path) if path.exists() else {"tables": [], "origin": []}
    others = [{**one, "steps": [n for n in one["steps"] if n != steps]} for one in old["origin"]]
    errors = dict(old.get("held_out_error", {}).get("by_steps", {}))
    write(
        path,
        {
            "format": FORMAT,
            "origin": [one for one in others if one["steps"]]
            + [{"steps": [steps], "command": command, "commit": commit()}],
            "experts": list(experts),
            "features": list(FEATURES),
            "training_set": training_records([one.name for one in exact], experts, large, runs),
            "held_out_error": {
                "measure": MEASURE,
                "by_steps": {**errors, str(steps): held_out_errors(entry, exact)},
            },
            "tables": [one for one in old["tables"] if len(one["rows"]) != steps] + [entry],
        },
    )


def write(path: Path, content: dict[str, Any]) -> None:
    """Write a file, with one line for each table, model and origin."""
    content = {**content, "tables": sorted(content["tables"], key=lambda entry: len(entry["rows"]))}
    for wrong in problems(content):
        raise InputError(f"{path.name} is not written: {wrong}")
    parts = []
    for key, value in content.items():
        if key == "held_out_error":
            by_steps = sorted(value["by_steps"].items(), key=lambda pair: int(pair[0]))
            lines = ",\n".join(f'"{n}": {json.dumps(each)}' for n, each in by_steps)
            head = json.dumps({k: v for k, v in value.items() if k != "by_steps"})[:-1]
            parts.append(f'"{key}": {head}, "by_steps": {{\n{lines}\n}}}}')
        elif key == "tables":
            lines = ",\n".join(json.dumps(one, separators=(",", ":")) for one in value)
            parts.append(f'"{key}": [\n{lines}\n]')
        elif key in ("origin", "training_set"):
            parts.append(f'"{key}": [\n' + ",\n".join(json.dumps(one) for one in value) + "\n]")
        else:
            parts.append(f'"{key}": {json.dumps(value)}')
    path.write_text("{" + ",\n".join(parts) + "}\n")


def rounded(entry: Any) -> Any:
    """With numbers of eight digits."""
    if isinstance(entry, dict):
        return {key: rounded(value) for key, value in entry.items()}
    if isinstance(entry, list | tuple):
        return [rounded(value) for value in entry]
    return float(f"{entry:.8g}") if isinstance(entry, float) else entry
