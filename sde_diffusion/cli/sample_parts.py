"""Parts of `sdediff sample`: its film, the guide of a record, the choice of a solver, and what is printed of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from rich.box import SIMPLE_HEAD
from rich.table import Table

from sde_diffusion.cli.errors import echo
from sde_diffusion.cli.options import option
from sde_diffusion.comparison.for_tolerance import SolverChoice, choose_solver
from sde_diffusion.files.writing import require_writable
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.report import terminal
from sde_diffusion.report.film import check_film
from sde_diffusion.sampling.local_errors import Profile
from sde_diffusion.storage.checkpoint import StoredModel, checkpoint_at
from sde_diffusion.storage.locate import find_classifier, find_model, recorded_model
from sde_diffusion.storage.record_types import CheckpointEntry, SampleRecord
from solvers.errors import InputError, NotFoundError
from solvers.plugin import find_solver

FilmOption = Annotated[
    Path | None,
    option(
        "--film",
        "Also write a film of x_t and E[x_0 | x_t] of the first samples: .gif, .webp or .mp4; .png, .svg or .pdf "
        "for a film strip.",
    ),
]


def require_film(film: Path | None, again: bool) -> None:
    """Refuse a film that cannot be written, before the work is done.

    Args:
        film: the file, if one was asked for.
        again: whether the samples are made again from a record, or continued.

    Raises:
        ValueError: another suffix, or samples that are not newly drawn.
        FileExistsError: the file is there already.
    """
    if film is None:
        return
    if again:
        raise InputError("--film shows newly drawn samples; leave out --record and --resume")
    check_film(film)
    require_writable(film, film.suffix.lower(), force=False)


def report_same(made: SampleRecord, old: SampleRecord) -> None:
    """Say whether samples that were made again are bit-equal to those of their record."""
    if made["x"]["sha256"] == old["x"]["sha256"]:
        echo("bit-equal to the samples of the record")
        return
    echo(
        "not bit-equal to the samples of the record, made with "
        f"{old['versions']} on {old['machine']}; now {made['versions']} on {made['machine']}"
    )


def recorded_beside(entry: CheckpointEntry | None, path: Path, named: Path | None, option: str) -> StoredModel | None:
    """The guide or classifier of a record: the one that was named, or the record's own if allowed."""
    if named is not None:
        return find_classifier(named) if option == "--classifier" else find_model(named)
    if entry is None:
        return None
    try:
        return checkpoint_at(recorded_model(entry["path"], path))
    except (InputError, NotFoundError):
        raise InputError(
            f"the record was also made with the model {entry['path']}, which is not read from there; name it: "
            f"{option} RUN"
        ) from None


def choose(model: ScoreModel, tolerance: float, solver: str | None, seed: int | None) -> SolverChoice:
    """The solver and NFE for a tolerance."""
    solvers = None if solver is None else {solver: find_solver(solver)[1]}
    with terminal.stderr().status("pilot") as status:
        return choose_solver(model, tolerance, solvers=solvers, seed=seed or 0, on_try=status.update)


def show_profile(found: Profile) -> None:
    """Print an error profile as bars."""
    table = Table("t", "to", "error", "", title="Local error by time", box=SIMPLE_HEAD, pad_edge=False)
    largest = max(found.error)
    for t, s, error in zip(found.t, found.s, found.error, strict=True):
        table.add_row(f"{t:.4f}", f"{s:.4f}", f"{error:.2e}", "#" * round(40 * error / largest))
    terminal.stdout().print(table)
    echo(f"half of the error is made between t = {found.half[0]:.4g} and {found.half[1]:.4g}")
