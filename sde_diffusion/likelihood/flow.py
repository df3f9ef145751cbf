r"""Log-likelihood by the probability flow (Chen et al. 2018, eq. 8; Song et al. 2021, eq. 39).

Along the solution of an ODE dy/dtau = F(y, tau) the density of y obeys d log p / dtau = -div F, so with the flow from
the data at t_min to the prior at t = 1

    log p(x) = log p_1(x_1) + int div F dtau + d log(N_1 / N_0) + d log alpha(t_min),

where y = x_t / N and theta are the coordinates of ``solvers/classical/coordinates.py``,

    F = dy/dtheta = (cos(theta) y - D) / sin(theta),    div F = (d cos(theta) - N tr dD/dx) / sin(theta),

and N_1 / N_0 is the Jacobian of the change of variable between the ends. The flow is integrated in

    tau = -log(cot(theta) + 1/50),

logarithmic in the noise level near the data and uniform near pure noise: constant pixels, over which the
divergence grows like 1 / theta, and networks that predict the noise, whose error in D grows like 1 / cos(theta), are
smooth in it, and tau(1) is finite where alpha(1) = 0. The state is y together with the integral of every probe, and
the solvers are those of ``SOLVERS``: each sample takes its own steps.

Definition: the flow starts at x_{t_min} = alpha(t_min) x, and nats are of x. So it is the log-density at x
of the model's data blurred by Gaussian noise of standard deviation rho = sigma(t_min) / alpha(t_min).
p_1 = N(0, prior_std^2 I) is the density that sampling starts from. Where the model has a normalization
(``sde_diffusion.data.normalization``) all of this holds for z = (x - shift) / scale, and log p(x) = log p(z) - sum
log scale.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from scipy.special import stdtrit
from torch import Tensor

from sde_diffusion.likelihood.divergence import draw_probes, value_and_traces
from sde_diffusion.models.conditions import conditions_for
from sde_diffusion.models.distilled import refuse_distilled
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.report.share_of_work import share_bar
from sde_diffusion.sampling.inversion import flow_solver
from solvers import Equation, Solver, solve
from solvers.classical.coordinates import Angle
from solvers.errors import InputError, InputTypeError, choose
from solvers.noise import as_seeds

TRACES = ("exact", "hutchinson")
EXACT_LIMIT = 1024

_SOFT = 0.02


@dataclass(frozen=True)
class LogLikelihood:
    """The log-likelihood of a batch, and how it came about.

    Attributes:
        nats: log p(x) of every sample, (B,) float64; NaN where the run did not reach t = 1.
        standard_error: of the trace estimate, (B,): over the probes; 0 for the exact trace, NaN with one probe. See
            ``interval`` for its confidence interval.
        nfe: forward passes of the network, int64 (B,).
        divergences: vector-Jacobian products, int64 (B,): d or n_probes for every forward pass.
        status: status of each sample, see ``solvers.Solution``.
        code: x_1, the noise that the flow takes to x; like x, float64.
        dim: number of values in a sample.
        trace: "exact", or the probes: "hutchinson, 4 rademacher probes".
        t_min: first time of the flow.
        rho_min: standard deviation of the noise that blurs the data there, in units of x; the geometric mean over the
            entries of x where these have scales of their own.
        truncation: nats at ``other_t_min`` minus nats, (B,), or None.
        note: limits of the result in a sentence, or empty.
        degrees_of_freedom: those of every sample's standard error, probes - 1; None for the exact trace.
    """

    nats: Tensor
    standard_error: Tensor
    nfe: Tensor
    divergences: Tensor
    status: list[str]
    code: Tensor
    dim: int
    trace: str
    t_min: float
    rho_min: float
    truncation: Tensor | None = None
    note: str = ""
    degrees_of_freedom: int | None = None

    @property
    def interval(self) -> tuple[Tensor, Tensor]:
        """The 95 % interval of every sample's nats for the chance in the probes, (B,) each.

        By the t distribution with probes - 1 degrees of freedom: 12.7 standard errors to either side with 2 probes, 2.4
        with 8. The nats themselves with the exact trace, NaN with one probe.
        """
        return interval(self.nats, self.standard_error, self.degrees_of_freedom)


def interval(value: Tensor, standard_error: Tensor, degrees_of_freedom: int | None) -> tuple[Tensor, Tensor]:
    """95 % intervals by the t distribution; by the normal one without a number of degrees of freedom.

    >>> low, high = interval(torch.zeros(1), torch.ones(1), 1)
    >>> round(float(high), 1)
    12.7
    """
    if degrees_of_freedom is None:
        reach = 1.959963984540054
    else:
        reach = float(stdtrit(degrees_of_freedom, 0.975)) if degrees_of_freedom > 0 else math.nan
    return value - reach * standard_error, value + reach * standard_error


def log_likelihood(
    model: ScoreModel,
    x: Tensor,
    *,
    trace: str = "exact",
    probe: str = "rademacher",
    n_probes: int = 1,
    seeds: Iterable[int] | Tensor | None = None,
    tolerance: float = 1e-5,
    solver: str | Solver = "rk45",
    steps: int | None = None,
    nfe: int | None = None,
    t_min: float | None = None,
    other_t_min: float | None = None,
    prior: Callable[[Tensor], Tensor] | None = None,
    gradients: bool | None = None,
    progress: bool | Callable[[float], None] = True,
    **condition: Tensor,
) -> LogLikelihood:
    """Log p(x) in nats, in the space that x is given in.

    Args:
        model: any ScoreModel. x is rounded to the type of its parameters; everything else is float64.
        x: data (B, ...).
        trace: "exact" by d vector-Jacobian products, for d up to 1024, or "hutchinson".
        probe: "rademacher" or "gaussian", for hutchinson.
        n_probes: probes of a sample, fixed along its path; two or more give a standard error.
        seeds: one integer per sample for its probes, 0 to B - 1 by default.
        tolerance: relative and absolute, per step, of x and of nats per dimension, for adaptive solvers given by name.
        solver: a name in ``SOLVERS`` or a Solver; it must take an Equation.
        steps: steps of a fixed-step solver, equal in tau.
        nfe: forward passes of the network, instead of steps; a cap for adaptive solvers.
        t_min: first time of the flow, in (0, 1); 1e-5 for a network, 1e-7 for a model with exact densities.
        other_t_min: a second value, to measure the effect of the truncation; the run is made twice.
        prior: x_1 (B, ...) -> log-density (B,). By default that of ``sde.prior``, from which sampling starts; for a
            model with exact densities (``log_prob``, like ``GaussianMixture``) its own at t = 1.
        gradients: whether the result can be differentiated, by x and by parameters; by default if x requires it.
        progress: whether a bar is shown in a terminal or notebook after a second; or a function that is called with the
            share done.
        condition: per-sample tensors passed to the network.

    Raises:
        ValueError: arguments out of range or in conflict, see the message.
        TypeError: x is not a floating point tensor.

    >>> from sde_diffusion import Flow, Gaussian
    >>> model = Gaussian(torch.zeros(2), torch.ones(2), sde=Flow())
    >>> result = log_likelihood(model, torch.zeros(1, 2))  # -log(2 pi)
    >>> round(float(result.nats), 4), result.standard_error, result.status
    (-1.8379, tensor([0.], dtype=torch.float64), ['ok'])
    """
    condition = conditions_for(log_likelihood, model, condition)
    known = callable(getattr(model, "log_prob", None))
    t_min = (1e-7 if known else 1e-5) if t_min is None else t_min
    _check(model, x, trace, n_probes, tolerance, t_min, other_t_min)
    seeds = as_seeds(range(len(x)) if seeds is None else seeds, len(x))
    dim = x[0].numel()
    probes = None if trace == "exact" else draw_probes(probe, seeds, n_probes, dim).to(x.device)
    method = flow_solver(solver, tolerance, _dtype(model))
    graph = x.requires_grad if gradients is None else gradients
    with torch.set_grad_enabled(graph):
        z = model.units.to_model(x)
        flow = _Flow(model, z, t_min, probes, graph, condition)
        grid = _grid(method, steps, nfe, model.cost)
        with share_bar(progress, "integrating the flow") as report:
            runs = 1 if other_t_min is None else 2
            on_step = None if report is None else lambda step: report(float(step.t.mean()) / runs)
            run = solve(flow.equation, flow.start(z), solver=method, nfe=nfe, grid=grid, on_step=on_step)
        code, integrals = flow.end(run.x)
        if prior is not None:
            log_prior = prior(code)
        else:
            log_prior = _own_prior(model, code) if known else _standard_prior(model, code)
        log_det = model.units.log_det(tuple(x.shape[1:]))
        estimates = log_prior[:, None] + integrals + (flow.log_jacobian - log_det)
        estimates = torch.where((run.codes == 0)[:, None], estimates, torch.nan)
    if bool(run.codes.any()):
        ended = ", ".join(sorted(set(run.status) - {"ok"}))
        count = int((run.codes > 0).sum())
        warnings.warn(f"{count} of {len(x)} likelihoods are NaN: the flow ended early ({ended})", stacklevel=2)
    result = LogLikelihood(
        nats=estimates.mean(1),
        standard_error=_standard_error(estimates.detach(), exact=probes is None),
        nfe=run.nfe,
        divergences=run.nfe // model.cost * (dim if probes is None else n_probes),
        status=run.status,
        code=code,
        dim=dim,
        trace=trace if probes is None else f"hutchinson, {n_probes} {probe}",
        t_min=t_min,
        rho_min=math.exp(-float(model.sde.half_log_snr(t_min)) + log_det / dim),
        note="" if probes is None else _note(n_probes),
        degrees_of_freedom=None if probes is None else n_probes - 1,
    )
    if other_t_min is None:
        return result
    other = log_likelihood(
        model, x, trace=trace, probe=probe, n_probes=n_probes, seeds=seeds, tolerance=tolerance, solver=solver,
        steps=steps, nfe=nfe, t_min=other_t_min, prior=prior, gradients=gradients,
        progress=(lambda share: progress((1 + share) / 2)) if callable(progress) else progress, **condition,  # type: ignore[arg-type]
    )  # fmt: skip
    return replace(
        result,
        nfe=result.nfe + other.nfe,
        divergences=result.divergences + other.divergences,
        truncation=other.nats - result.nats,
    )


def _note(n_probes: int) -> str:
    """A remark on the error with few probes."""
    if n_probes == 1:
        return "one probe has no standard error; two or more do"
    if n_probes < 8:
        reach = float(stdtrit(n_probes - 1, 0.975))
        return (
            f"{n_probes} probes give a sample's standard error {n_probes - 1} degree{'s' * (n_probes > 2)} of freedom: "
            f"its 95 % interval is {reach:.3g} standard errors to either side; with 8 probes 2.36"
        )
    return ""


class _Flow:
    """The flow of y and of the integrals of its divergence, over u from 0 (t_min) to 1 (t = 1)."""

    def __init__(
        self,
        model: ScoreModel,
        x: Tensor,
        t_min: float,
        probes: Tensor | None,
        graph: bool,
        condition: Mapping[str, Tensor],
    ) -> None:
        self.model, self.graph = model, graph
        self.shape, self.dim, self.dtype = x.shape[1:], x[0].numel(), _dtype(model)
        self.columns = 1 if probes is None else probes.shape[1]
        self.angle = Angle(model.sde, t_min, 1.0, model.sigma_data)
        ends = torch.tensor([t_min, 1.0], dtype=torch.float64)
        self.first, self.last = (-torch.log(1 / torch.tan(self.angle.position(ends)) + _SOFT)).tolist()
        self.scales = self.angle.at(ends).scale.tolist()
        self.alpha = float(model.sde.marginal(t_min)[0])
        self.log_jacobian = self.dim * (math.log(self.alpha) + math.log(self.scales[1] / self.scales[0]))
        # The integrals are carried per sqrt(d): to the error norm, nats per value of x count like a value of x.
        self.unit = math.sqrt(self.dim)
        rows = dict(condition) if probes is None else {**condition, "probes": probes}
        self.equation = Equation(self.slope, cost=model.cost, condition=rows)
        model.sde.probability_flow(model)  # refuses a model that has no flow from t = 1

    def start(self, x: Tensor) -> Tensor:
        """The state (B, d + columns) at t_min."""
        y = x.flatten(1).double() * (self.alpha / self.scales[0])
        return torch.cat([y, y.new_zeros(len(y), self.columns)], dim=1)

    def end(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """x_1 (B, ...) and the integrals (B, columns)."""
        return state[:, : self.dim].reshape(-1, *self.shape) * self.scales[1], state[:, self.dim :] * self.unit

    def slope(self, state: Tensor, u: Tensor, probes: Tensor | None = None, **condition: Tensor) -> Tensor:
        """The slope of the state in u: one evaluation."""
        tau = self.first + u * (self.last - self.first)
        theta = torch.atan2(torch.ones_like(tau), torch.exp(-tau) - _SOFT)
        at = self.angle.points(theta)
        rate = (self.last - self.first) * theta.sin() * (theta.cos() + _SOFT * theta.sin())
        y = state[:, : self.dim]
        x = (at.scale[:, None] * y).reshape(-1, *self.shape)
        t = at.t

        def denoise(x: Tensor) -> Tensor:
            return self.model.denoise(x.to(self.dtype), t, **condition).double()

        x0, traces = value_and_traces(denoise, x, probes, graph=self.graph)
        linear, gain = at.linear[:, None], at.gain[:, None]
        velocity = linear * y + gain * x0.flatten(1)
        # Both parts by the same probe: near the data they are large, and cancel with v' v alike.
        identity = self.dim if probes is None else probes.square().sum(2)
        divergence = linear * identity + gain * at.scale[:, None] * traces
        return rate[:, None] * torch.cat([velocity, divergence / self.unit], dim=1)


def _check(
    model: ScoreModel,
    x: Tensor,
    trace: str,
    n_probes: int,
    tolerance: float,
    t_min: float,
    other_t_min: float | None,
) -> None:
    choose(trace, dict.fromkeys(TRACES), "trace")
    refuse_distilled(model, "compute a likelihood with")
    check_data(model, x)
    if trace == "exact" and x[0].numel() > EXACT_LIMIT:
        raise InputError(
            f"the exact trace of {x[0].numel()} values takes as many backward passes at every evaluation; the limit is "
            f"{EXACT_LIMIT}: use trace='hutchinson'"
        )
    if n_probes < 1:
        raise InputError(f"n_probes is a number of probes, at least 1; got {n_probes}")
    if not 0 < tolerance < 1:
        raise InputError(f"tolerance lies between 0 and 1; got {tolerance}")
    for value in (t_min, other_t_min):
        if value is not None and not 0 < value < 1:
            raise InputError(f"t_min is a time near the data, in (0, 1); at 0 there is no score. Got {value}")


def check_data(model: ScoreModel, x: Tensor) -> None:
    """Check that x is a batch of model samples.

    Raises:
        TypeError: not a floating point tensor.
        ValueError: another shape, no samples, or values that are not finite.
    """
    if not isinstance(x, Tensor) or not x.dtype.is_floating_point:
        raise InputTypeError(f"x must be a floating point tensor; got {x.dtype if isinstance(x, Tensor) else type(x)}")
    if x.ndim < 2 or len(x) == 0 or (model.shape is not None and tuple(x.shape[1:]) != model.shape):
        expected = "(B, ...)" if model.shape is None else f"(B, {', '.join(map(str, model.shape))})"
        raise InputError(f"x must have shape {expected} with B >= 1; got {tuple(x.shape)}")
    if not bool(x.isfinite().all()):
        raise InputError(f"{int((~x.isfinite()).sum())} of {x.numel()} values of x are not finite")


def _dtype(model: ScoreModel) -> torch.dtype:
    """The dtype of a run's state; float64 for a model without parameters."""
    return model.state_dtype if model.dtype else torch.float64


def _grid(method: Solver, steps: int | None, nfe: int | None, cost: int) -> list[float]:
    """Equal steps in tau; the two ends alone for a solver that chooses its own."""
    if method.adaptive:
        return [0.0, 1.0]
    if (steps is None) == (nfe is None):
        raise InputError(f"{type(method).__name__} takes fixed steps: say how many, steps=100 or nfe=100")
    if steps is None:
        steps = method.steps_for(int(nfe or 0) // cost, finish=False)
    if steps < 1:
        raise InputError(f"steps must be at least 1; got {steps}")
    return torch.linspace(0, 1, steps + 1, dtype=torch.float64).tolist()


def _own_prior(model: ScoreModel, x: Tensor) -> Tensor:
    """The log-density of x_1 that the model itself gives, (B,)."""
    density: Callable[[Tensor, Tensor], Tensor] = model.log_prob  # type: ignore[assignment]
    return density(x, torch.ones(len(x), dtype=torch.float64, device=x.device))


def _standard_prior(model: ScoreModel, x: Tensor) -> Tensor:
    """log N(x; 0, prior_std^2 I), (B,)."""
    variance = model.sde.prior_std() ** 2
    x = x.flatten(1)
    return -x.square().sum(1) / (2 * variance) - x.shape[1] / 2 * math.log(2 * math.pi * variance)


def _standard_error(estimates: Tensor, exact: bool) -> Tensor:
    if exact:
        return torch.zeros_like(estimates[:, 0])
    n = estimates.shape[1]
    return estimates.std(1) / math.sqrt(n) if n > 1 else torch.full_like(estimates[:, 0], torch.nan)
