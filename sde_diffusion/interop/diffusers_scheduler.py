r"""Solvers of this package as a scheduler of diffusers' pipelines.

    pipeline.scheduler = Scheduler.from_config(pipeline.scheduler.config, solver="pf-ode")

``num_inference_steps`` is the number of network evaluations, and is not exceeded; ``timesteps`` holds the time of each.
The state between two steps is in float32 or better, whatever dtype the pipeline has. A pipeline that begins in the
middle or changes the latents between steps is followed, see ``driven_run``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from torch import Tensor

from sde_diffusion.interop.diffusers_schedule import process_of, read_schedule
from sde_diffusion.interop.driven_run import Asked, DrivenRun, asked_times
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.sde.base import per_sample
from sde_diffusion.storage.solver_json import describe_solver, restore_solver
from solvers import Solver, find
from solvers.brownian_path import BrownianPath
from solvers.errors import InputError, StateError
from solvers.noise import Noise, as_seeds
from solvers.problem import ReverseProcess

_SHAPE = (4, 64, 64)


class Scheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """A solver as a scheduler; made from the config of the scheduler that it replaces.

    Args:
        solver: a name in ``SOLVERS``, a Solver such as ``tune`` returns, or the description of one.
        sample_shape: of one latent or image. The default solver's times depend on how many entries it has; the default
            is that of Stable Diffusion.
        grid: a name in ``GRIDS`` or the times, instead of the solver's own.
        eta: noise level; 1 for stochastic solvers and 0 for the others by default.
        num_train_timesteps: as every scheduler has it, and so are the following.
        beta_start: first of the betas.
        beta_end: last of the betas.
        beta_schedule: schedule of the betas.
        trained_betas: the betas themselves.
        prediction_type: the parametrization of the network's output.
        rescale_betas_zero_snr: whether abar_T = 0.
        shift: of a flow, applied to ``sigmas`` that a pipeline gives.
        use_dynamic_shifting: whether the pipeline gives the shift as ``mu``.
        base_image_seq_len: for pipelines that compute ``mu``, and so are the following.
        max_image_seq_len: length of the longest sequence.
        base_shift: at the shortest.
        max_shift: at the longest.
        sigma_max: largest sigma of EDM models.
        sigma_data: standard deviation of the data of EDM models.
        process: "betas", "flow" or "edm"; ``from_config`` reads it from the class of the scheduler.

    Raises:
        ValueError: an unknown solver or setting.
    """

    _compatibles = [kind.name for kind in KarrasDiffusionSchedulers] + ["FlowMatchEulerDiscreteScheduler"]
    order = 1

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        solver: Any = "pf-ode",
        sample_shape: Sequence[int] = _SHAPE,
        grid: Any = None,
        eta: float | None = None,
        num_train_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        prediction_type: str = "epsilon",
        rescale_betas_zero_snr: bool = False,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        base_shift: float = 0.5,
        max_shift: float = 1.15,
        sigma_max: float = 80.0,
        sigma_data: float = 0.5,
        process: str = "betas",
    ) -> None:
        if isinstance(solver, Solver):
            self.register_to_config(solver=describe_solver(solver))
        self.register_to_config(sample_shape=list(sample_shape), trained_betas=_listed(trained_betas))
        self.solver = restore_solver(cast(Any, solver)) if isinstance(solver, dict) else find(solver)
        self.schedule = read_schedule({**self.config, "trained_betas": _listed(trained_betas)})
        sde = self.schedule.sde
        self.model = ScoreModel(None, sde, self.schedule.predicts, sigma_data=self.schedule.sigma_data)
        self.problem = ReverseProcess(_not_called, sde, float(self.solver.stochastic) if eta is None else eta)
        self.init_noise_sigma = sde.prior_std()
        self.num_inference_steps: int | None = None
        self.timesteps = self.schedule.label(torch.linspace(1, 0, 11, dtype=torch.float64)[:-1]).float()
        self._asked: Asked | None = None
        self._given = False
        self._run: DrivenRun | None = None
        self._begin: int | None = None
        self._returned: Tensor | None = None
        self._state: Tensor | None = None

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """The scheduler for the model of another scheduler's config."""
        kwargs.setdefault("process", process_of(config or {}))
        return super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)

    @property
    def begin_index(self) -> int | None:
        """The evaluation that a pipeline said to begin with."""
        return self._begin

    @property
    def step_index(self) -> int | None:
        """The evaluation that is due; None before the first."""
        return None if self._run is None else self._run.index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin with an evaluation other than the first, as img2img pipelines do."""
        self._begin = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Plan a run.

        Args:
            num_inference_steps: network evaluations, not exceeded.
            device: device of ``timesteps``.
            timesteps: the network's times of the steps, instead; the last step leads to the data.
            sigmas: the noise levels of the steps, instead: sigma / alpha, and sigma itself of a flow.
            mu: the logarithm of a flow's shift, from pipelines whose shift depends on the size.

        Raises:
            ValueError: nothing that says how many steps, or times that are no grid.
        """
        if timesteps is not None and sigmas is not None:
            raise InputError("give timesteps or sigmas, not both")
        grid: Any = self.config.grid
        if timesteps is not None:
            grid = self.schedule.time(torch.as_tensor(timesteps, dtype=torch.float64))
        elif sigmas is not None:
            grid = self._times_of(torch.as_tensor(sigmas, dtype=torch.float64), mu)
        if isinstance(grid, Tensor) and float(grid[-1]) > 0:
            grid = torch.cat([grid, grid.new_zeros(1)])
        given = grid is not None and not isinstance(grid, str)
        self._given = given
        nfe = None if given else num_inference_steps
        if nfe is None and not given:
            raise InputError("say how many evaluations: num_inference_steps=20")
        self._asked = asked_times(self.problem, self.config.sample_shape, self.solver, nfe, grid)
        self.num_inference_steps = len(self._asked.at)
        labels = self.schedule.label(torch.tensor(self._asked.at, dtype=torch.float64))
        self.timesteps = labels.to(device=device, dtype=torch.float32)
        self._run, self._begin, self._returned, self._state = None, None, None, None

    def _times_of(self, sigmas: Tensor, mu: float | None) -> Tensor:
        """The times of noise levels."""
        if self.config.process != "flow":
            ends = sigmas == 0
            return self.schedule.sde.time(-torch.log(sigmas.clamp_min(1e-30))).masked_fill(ends, 0.0)
        dynamic = self.config.use_dynamic_shifting and mu is not None
        shift = float(torch.tensor(mu, dtype=torch.float64).exp()) if dynamic else self.config.shift
        return shift * sigmas / (1 + (shift - 1) * sigmas)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The network's input for x: x itself; c_in x for EDM models."""
        if self.config.process != "edm":
            return sample
        t = self.schedule.time(torch.as_tensor(timestep, dtype=torch.float64).reshape(-1)).cpu()
        return self.model.arguments(sample, t)[0]

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
        **_: Any,
    ) -> Any:
        """Take the network's output at (sample, timestep); x where it is wanted next, or the finished sample.

        Args:
            model_output: the network's output; of a learned variance the first half is used.
            timestep: that of ``timesteps`` which is due.
            sample: x there.
            generator: from which a seed for each sample is drawn, once, for stochastic solvers; or a list of them.
            return_dict: whether an object with ``prev_sample`` and ``pred_original_sample`` is returned, or a tuple.

        Raises:
            RuntimeError: before ``set_timesteps``, or after the last step.
            ValueError: another timestep than the one that is due, a batch of another shape than planned for.
        """
        if self._asked is None:
            raise StateError("set the timesteps first: scheduler.set_timesteps(20)")
        if self._run is None:
            self._open(timestep, sample, generator)
        run = self._run
        assert run is not None
        if not run.done:
            self._check_due(timestep)
        # What the pipeline has is a copy of the state in its own dtype, unless it has changed it.
        untouched = self._returned is not None and (sample is self._returned or torch.equal(sample, self._returned))
        x = self._state if untouched and self._state is not None else sample.to(_at_least_float32(sample.dtype))
        t = torch.full((len(x),), run.asked.at[min(run.index, len(run.asked.at) - 1)], dtype=torch.float64)
        output = model_output[:, : x.shape[1]].to(x)
        x0 = self.model.denoised_from(-output if self.schedule.negated else output, x, t.to(x.device))
        self._state = run.answer(x, x0)
        self._returned = self._state.to(sample.dtype)
        if not return_dict:
            return (self._returned,)
        return DDIMSchedulerOutput(prev_sample=self._returned, pred_original_sample=x0.to(sample.dtype))

    def _open(self, timestep: Any, sample: Tensor, generator: Any) -> None:
        """Start the run: where, and with which noise."""
        assert self._asked is not None
        shape = tuple(sample.shape[1:])
        asked = self._asked
        if shape != asked.shape:
            again = asked_times(self.problem, shape, self.solver, grid=asked.times)
            fresh = self._fresh(shape)
            if again.at != asked.at or (fresh is not None and fresh.at != asked.at):
                raise InputError(
                    f"the times of {type(self.solver).__name__} depend on the shape of a sample, which is {shape} and "
                    f"was "
                    f"planned as {asked.shape}; say it: Scheduler.from_config(config, sample_shape={shape})"
                )
            asked = self._asked = fresh or again
        seeds = _seeds(generator, len(sample)) if self.solver.stochastic else None

        def noise(times: Tensor) -> Noise | None:
            return None if seeds is None else BrownianPath.along(seeds, self.problem.clock, times)

        self._run = DrivenRun(asked, noise)
        index = self._begin if self._begin is not None else self._index_of(timestep)
        if index:
            self._run.begin_at(index)

    def _fresh(self, shape: tuple[int, ...]) -> Asked | None:
        """The plan for another shape with the same NFE; None on a given grid."""
        assert self._asked is not None
        if self._given:
            return None
        try:
            return asked_times(self.problem, shape, self.solver, self.num_inference_steps, self.config.grid)
        except ValueError:
            return None

    def _index_of(self, timestep: Any) -> int:
        near = (self.timesteps.cpu().double() - float(timestep)).abs()
        return int(near.argmin())

    def _check_due(self, timestep: Any) -> None:
        assert self._run is not None
        due = float(self.timesteps[self._run.index])
        if abs(float(timestep) - due) > 1e-3 * max(1.0, abs(due)):
            raise InputError(
                f"the step at timestep {due:g} is due, number {self._run.index + 1} of {len(self.timesteps)}; got "
                f"{float(timestep):g}. Every step is taken once and in order; set_timesteps starts anew"
            )

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Alpha x_0 + sigma eps at timesteps (B,) or one for all."""
        t = self.schedule.time(torch.as_tensor(timesteps, dtype=torch.float64).cpu().reshape(-1)).clamp(0, 1)
        alpha, sigma = (c.to(original_samples.device) for c in self.schedule.sde.marginal(t))
        return per_sample(alpha, original_samples) * original_samples + per_sample(sigma, original_samples) * noise

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """The same, as pipelines of flow models call it."""
        return self.add_noise(sample, noise, timestep)

    def __len__(self) -> int:
        return self.schedule.steps


def _not_called(x: Tensor, t: Tensor, **_: Any) -> Tensor:
    raise StateError("the network of a scheduler is the pipeline's")


def _listed(values: Any) -> list[float] | None:
    return None if values is None else [float(v) for v in values]


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _seeds(generator: Any, batch: int) -> Tensor:
    """One seed for each sample, from the pipeline's generators."""
    several = generator if isinstance(generator, list) else [generator] * batch
    if len(several) != batch:
        raise InputError(f"there are {len(several)} generators for {batch} samples; give one, or one for each")

    def drawn(g: torch.Generator | None) -> int:
        device = "cpu" if g is None else g.device
        return int(torch.randint(2**62, (), generator=g, device=device))

    return as_seeds([drawn(g) for g in several], batch)
