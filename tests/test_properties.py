"""Laws that hold for any settings: hypothesis draws them, and shrinks what breaks one to the simplest case."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sde_diffusion.sde import SDE, SDES, make_sde
from sde_diffusion.storage.atomic_folder import FORMAT, pack, read_json, read_state, to_json, unpack, write_folder
from sde_diffusion.storage.solver_json import describe_solver, restore_solver
from sde_diffusion.training.config import PRECISIONS, SCHEDULES, TRACKERS, TrainConfig
from sde_diffusion.training.config_file import read_options, write_options
from sde_diffusion.training.loss_weights import LOSS_WEIGHTS
from sde_diffusion.training.time_sampling import TIME_SAMPLERS
from solvers import GRIDS, SOLVERS, ReverseProcess, make_grid
from solvers.exponential.adams import ExponentialAdams

# The same cases in every run, and none kept on disk.
law = settings(max_examples=40, deadline=None, derandomize=True, database=None)

number = st.floats(allow_nan=False, allow_infinity=False)
inside = st.floats(1e-6, 1 - 1e-6)
beta = st.tuples(st.floats(0.01, 2.0), st.floats(5.0, 40.0)).map(lambda b: {"beta_min": b[0], "beta_max": b[1]})
SETTINGS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "vp": beta,
    "subvp": beta,
    "ve": st.tuples(st.floats(1e-3, 0.1), st.floats(5.0, 500.0)).map(lambda s: {"sigma_min": s[0], "sigma_max": s[1]}),
    "edm": st.floats(5.0, 200.0).map(lambda s: {"sigma_max": s}),
}


def test_every_process_is_drawn() -> None:
    for name, kind in SDES.items():
        assert name in SETTINGS or kind() == kind()


processes = st.sampled_from(sorted(SDES)).flatmap(
    lambda name: SETTINGS.get(name, st.just({})).map(lambda chosen: make_sde(name, **chosen))
)


@law
@given(sde=processes, t=inside)
def test_the_time_of_a_noise_level_is_the_time(sde: SDE, t: float) -> None:
    again = float(sde.time(sde.half_log_snr(t)))
    assert again == pytest.approx(t, rel=1e-9, abs=1e-12)


@law
@given(sde=processes, t=inside, s=inside)
def test_the_noise_level_falls_with_time(sde: SDE, t: float, s: float) -> None:
    assume(abs(t - s) > 1e-6)
    early, late = sorted((t, s))
    assert float(sde.half_log_snr(early)) > float(sde.half_log_snr(late))


@law
@given(sde=processes, grid=st.sampled_from(sorted(set(GRIDS) - {"ends"})), steps=st.integers(1, 120))
def test_a_grid_leads_from_noise_to_data(sde: SDE, grid: str, steps: int) -> None:
    times = make_grid(grid, ReverseProcess(lambda x, t: x, sde), steps)
    assert times.dtype == torch.float64 and len(times) == steps + 1
    assert (float(times[0]), float(times[-1])) == (1.0, 0.0) and bool((times.diff() < 0).all())


names = st.text("abcdefghij.-_", min_size=1, max_size=12).filter(lambda name: name.strip("."))
shapes = st.lists(st.integers(0, 4), max_size=3)
dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.uint8])


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = 100 * torch.randn(draw(shapes), generator=generator)
    return x.to(draw(dtypes))


@law
@given(groups=st.dictionaries(st.sampled_from(["model", "ema", "optimizer"]), st.dictionaries(names, tensors())))
def test_a_folder_of_tensors_is_read_back_to_the_bit(
    groups: dict[str, dict[str, torch.Tensor]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    assume(groups)
    folder = tmp_path_factory.mktemp("folder") / "step-000001"
    write_folder(folder, groups, {"step": 1})
    assert read_state(folder)["step"] == 1
    for name, group in groups.items():
        found = unpack(folder / f"{name}.safetensors")
        assert found.keys() == group.keys()
        for key, value in group.items():
            assert found[key].dtype == value.dtype and found[key].shape == value.shape
            assert pack({"x": found[key]}) == pack({"x": value})


content = st.recursive(
    st.none() | st.booleans() | st.integers() | number | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@law
@given(entries=st.dictionaries(st.text().filter(lambda key: key != "format"), content, max_size=4))
def test_json_is_read_back_as_it_was(entries: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("json") / "a.json"
    path.write_bytes(to_json({"format": FORMAT, **entries}))
    assert read_json(path) == {"format": FORMAT, **entries}


positive = st.floats(1e-12, 1e12)
share = st.floats(0, 1)
CONFIGS = st.fixed_dictionaries(
    {},
    optional={
        "steps": st.integers(1, 10**9),
        "warmup": st.integers(0, 10**6),
        "learning_rate": positive,
        "clip": positive,
        "weight_decay": st.floats(0, 1e6),
        "t_min": st.floats(1e-9, 0.9),
        "ema": st.lists(st.floats(0, 0.999999), min_size=1, max_size=3, unique=True),
        "ema_widths": st.lists(st.floats(0.01, 0.25), max_size=2, unique=True),
        "drop_label": share,
        "augment": share,
        "labels": st.booleans(),
        "flip": st.booleans(),
        "schedule": st.sampled_from(sorted(SCHEDULES)),
        "weight": st.sampled_from(sorted(LOSS_WEIGHTS)),
        "time_sampling": st.sampled_from(sorted(TIME_SAMPLERS)),
        "precision": st.sampled_from(PRECISIONS),
        "tracker": st.sampled_from(TRACKERS),
        "seed": st.integers(0, 2**62),
    },
)


@law
@given(options=CONFIGS)
def test_options_are_read_back_from_json_and_toml(
    options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = TrainConfig.from_dict(options)
    folder: Path = tmp_path_factory.mktemp("options")
    (folder / "a.toml").write_bytes(write_options(config.to_dict()))
    assert TrainConfig.from_dict(read_options(folder / "a.toml")) == config
    (folder / "a.json").write_bytes(to_json({"format": FORMAT, "train": config.to_dict()}))
    assert TrainConfig.from_dict(read_json(folder / "a.json")["train"]) == config


@law
@given(options=CONFIGS, step=st.integers(1, 10**6))
def test_a_learning_rate_is_between_0_and_the_largest(options: dict[str, Any], step: int) -> None:
    config = TrainConfig.from_dict(options)
    assume(step <= config.steps)
    rate = config.learning_rate_at(step)
    assert 0 <= rate <= config.learning_rate and math.isfinite(rate)


@law
@given(
    order=st.integers(1, 4),
    form=st.sampled_from(["data", "noise", "velocity"]),
    sde=st.booleans(),
    corrector=st.booleans(),
    source=st.text(max_size=20),
)
def test_a_solver_is_restored_from_json(order: int, form: str, sde: bool, corrector: bool, source: str) -> None:
    solver = ExponentialAdams(order, form=form, sde=sde, corrector=corrector, source=source)
    assert restore_solver(json.loads(json.dumps(describe_solver(solver)))) == solver


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_every_solver_is_restored_from_json(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(to_json({"format": FORMAT, "solver": describe_solver(SOLVERS[name])}))
    assert restore_solver(read_json(tmp_path / "a.json")["solver"]) == SOLVERS[name]
