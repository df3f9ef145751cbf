"""Commands in several processes give what they give in one: the same files, figures and one voice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sde_diffusion.cli import app

Launch = Callable[[int, Callable[[], Any]], list[Any]]


def spoken(words: str) -> tuple[int, str]:
    """The exit code of a command and what it prints."""
    result = CliRunner().invoke(app, words.split())
    return result.exit_code, result.stdout if result.exit_code == 0 else result.output


def in_processes(launch: Launch, words: str, worlds: tuple[int, ...]) -> None:
    """Run a command in 1 process with --out 1, in 2 with --out 2, and so on; the first process alone may speak."""
    code, said = spoken(f"{words} --out 1")
    assert code == 0, said
    for world in worlds:
        first, *others = launch(world, lambda world=world: spoken(f"{words} --out {world}"))
        assert first[0] == 0, first[1]
        assert len(first[1].splitlines()) == len(said.splitlines())
        assert others == [(0, "")] * (world - 1)


@pytest.fixture
def model() -> str:
    """The option of an exact model."""
    Path("model.py").write_text(
        "import torch\nfrom sde_diffusion import GaussianMixture, VPSDE\n"
        "def model():\n    return GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), std=0.2, sde=VPSDE())\n"
    )
    return "--model model.py:model"


@pytest.mark.slow
def test_tune_writes_the_same_file(launch: Launch, model: str) -> None:
    in_processes(launch, f"tune {model} --nfe 2 --noise-samples 80 --held-out 70 --batch-size 16", (2, 3))
    one, two, three = (Path(f"{world}/nfe-2.json").read_bytes() for world in (1, 2, 3))
    assert one == two == three


def test_tune_within_a_time_ends_in_several_processes(launch: Launch, model: str) -> None:
    words = f"tune {model} --nfe 2,3 --minutes 0.02 --batch-size 4 --out tuned"
    first, other = launch(2, lambda: spoken(words))
    assert first[0] == 0 and " on 2 processes" in first[1] and other == (0, "")
    assert sorted(path.name for path in Path("tuned").iterdir()) == ["nfe-2.json", "nfe-3.json"]


@pytest.mark.slow
def test_compare_gives_the_same_figures(launch: Launch) -> None:
    words = "compare bundled --solvers ddim,sde,unipc --nfe 1,4 --n 40 --paired 20 --batch-size 8 --reference-steps 16"
    in_processes(launch, words, (2,))
    one, two = (json.loads(Path(f"{world}/compare.json").read_text()) for world in (1, 2))
    for row in [*one["rows"], *two["rows"]]:
        del row["seconds"]
    assert one["rows"] == two["rows"] and len(one["rows"]) == 6


@pytest.mark.slow
def test_likelihood_gives_the_same_figures(launch: Launch) -> None:
    words = "likelihood bundled --n 7 --solver adams --steps 6 --t-min 1e-3 --trace hutchinson --batch-size 2 --elbo 3"
    in_processes(launch, words, (2,))
    one, two = (Path(f"{world}/likelihood.json").read_text() for world in (1, 2))
    assert one == two
