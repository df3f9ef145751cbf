from __future__ import annotations

import json
from dataclasses import dataclass, replace

import pytest

from sde_diffusion.storage.solver_json import describe_solver, restore_solver
from solvers import SOLVERS, Solver
from solvers.classical.butcher_tableaus import PAIRS
from solvers.classical.euler import Euler


@pytest.mark.parametrize("name", list(SOLVERS))
def test_every_solver_survives_json(name: str) -> None:
    assert restore_solver(json.loads(json.dumps(describe_solver(SOLVERS[name])))) == SOLVERS[name]


def test_settings_are_kept_and_not_those_of_the_table() -> None:
    changed = replace(SOLVERS["pc"], corrections=3, snr=0.07, predictor=Euler())  # type: ignore[call-arg]
    assert restore_solver(describe_solver(changed)) == changed != SOLVERS["pc"]


def test_a_solver_of_ones_own_is_found_among_the_known() -> None:
    @dataclass(frozen=True)
    class Mine(Euler):
        power: float = 1.0

    description = describe_solver(Mine(power=2.0))
    assert restore_solver(description, [Mine()]) == Mine(power=2.0)
    with pytest.raises(ValueError, match="unknown kind of solver 'Mine'"):
        restore_solver(description)


def test_what_cannot_be_named_is_refused() -> None:
    pair = replace(PAIRS["rk23"], name="mine")
    solver: Solver = replace(SOLVERS["rk45"], pair=pair)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="'mine' is not in PAIRS"):
        describe_solver(solver)


def test_a_setting_of_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown setting of"):
        restore_solver({"class": "Euler", "settings": {"unheard_of": 1}})
