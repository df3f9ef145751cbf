r"""The usual mistakes in the declared convention of a network, found by regression.

On held-out data x_0 with fresh noise, x_t = alpha x_0 + sigma eps is denoised at several noise levels, and the error is
compared with that of the best isotropic linear denoiser of the same data,

    r(t) = |D(x_t, t) - x_0|^2 / |D_lin(x_t, t) - x_0|^2,
    D_lin = m + alpha v / (alpha^2 v + sigma^2) (x_t - alpha m),

m the mean of the other samples and v the variance of the data. With the mean of all samples D_lin would know x_0: of 24
samples it would have 8 % less error at high noise than any denoiser can have. A network that is read as it was trained
has r of about 1 or less at every level. Read wrongly (noise for data, t reversed, another schedule, data in other
units) it has r far above 1 somewhere, and reading it rightly brings r down: each usual mistake is a *reading*, and the
reading with the smallest mean of log r names the fault. The score of the declared reading must be beaten clearly, so
that a weak network is not called wrong.

What regression does not show is looked at before: answers that are not finite, differ from call to call or from batch
to batch, do not depend on t, or fail for their dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.models.outputs import tensor_of
from sde_diffusion.models.score_model import ScoreModel
from sde_diffusion.sde import DDPM, EDM, SDE, VPSDE, CosineVPSDE, Flow
from solvers.errors import InputError, require_whole

LEVELS = (0.05, 0.15, 0.4, 1.0, 2.5, 6.0, 15.0)  # rho over the standard deviation of the data
_FLOOR = 0.05  # of r: below it better is not more convincing
# By how much the mean of log r must fall: over right models the best other reading gains nothing (at most -0.001), the
# planted faults gain 0.39 and more.
_CLEARLY = 0.25
_GOOD = 0.35  # mean of log r up to which a reading explains the network
_BAD = 0.7  # from which the declared reading does not


@dataclass(frozen=True)
class Finding:
    """A fault.

    Attributes:
        fault: its name, such as "parametrization" or "time".
        measured: what was seen.
        cure: what to do.
    """

    fault: str
    measured: str
    cure: str


@dataclass(frozen=True)
class Diagnosis:
    """The result of an examination.

    Attributes:
        findings: faults, the likeliest first; empty for a model that is as it says.
        rho: sigma / alpha of each level.
        ratio: r at each level as the model is declared; NaN where it could not be asked.
        readings: the mean of log r of every reading that was tried, by name, smallest first.
    """

    findings: tuple[Finding, ...]
    rho: tuple[float, ...]
    ratio: tuple[float, ...]
    readings: dict[str, float]

    @property
    def healthy(self) -> bool:
        """Whether nothing was found."""
        return not self.findings


@dataclass(frozen=True)
class Reading:
    """One way to read a network: with which label, path, data and parametrization."""

    fault: str
    name: str
    cure: str
    predicts: str
    sign: float = 1.0
    label: Callable[[Tensor, Tensor], Tensor] | None = None
    sde: SDE | None = None
    data: tuple[float, float] = (1.0, 0.0)  # scale and shift of x_0


_TIMES: tuple[tuple[str, str, Callable[[Tensor, Tensor], Tensor]], ...] = (
    ("time reversed", "the network's time runs from noise to data: give it 1 - t", lambda label, top: top - label),
    ("time times 1000", "the network wants the time a thousand times larger", lambda label, top: label * 1000),
    ("time over 1000", "the network wants the time a thousand times smaller", lambda label, top: label / 1000),
)
_UNITS: tuple[tuple[str, str, tuple[float, float]], ...] = (
    ("data in [0, 1], network for [-1, 1]", "map the data: 2 x - 1", (2.0, -1.0)),
    ("data in [-1, 1], network for [0, 1]", "map the data: (x + 1) / 2", (0.5, 0.5)),
    ("data in [0, 255], network for [-1, 1]", "map the data: x / 127.5 - 1", (1 / 127.5, -1.0)),
    ("data in [0, 1], network for [-0.5, 0.5]", "map the data: x - 0.5", (1.0, -0.5)),
    ("data in [-1, 1], network for [-0.5, 0.5]", "map the data: x / 2", (0.5, 0.0)),
    ("data in [-0.5, 0.5], network for [-1, 1]", "map the data: 2 x", (2.0, 0.0)),
    ("latents without their scale 0.18215", "multiply latents by scaling_factor, 0.18215", (0.18215, 0.0)),
    ("latents without their scale 0.13025", "multiply latents by scaling_factor, 0.13025", (0.13025, 0.0)),
    ("latents scaled twice", "divide latents by scaling_factor, 0.18215", (1 / 0.18215, 0.0)),
)


def _schedules() -> list[tuple[str, SDE]]:
    """The processes that networks are usually trained on."""
    scaled = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return [
        ("linear betas, VP with beta from 0.1 to 20", VPSDE()),
        ("a cosine schedule", CosineVPSDE()),
        ("Stable Diffusion's scaled_linear", DDPM(betas=scaled.tolist())),
        ("the straight path", Flow()),
        ("EDM's sigma up to 80", EDM()),
    ]


def readings_of(model: ScoreModel, data: Tensor) -> list[Reading]:
    """The declared reading, and every usual mistake of it."""
    declared = Reading("", "as declared", "", model.predicts)
    found = [declared]
    names = [p for p in ("noise", "data", "velocity", "score") if not (model.predicts == "edm" and p == "score")]
    for predicts in names:
        for sign in (1.0, -1.0):
            if (predicts, sign) == (model.predicts, 1.0):
                continue
            what = predicts if sign > 0 else f"minus the {predicts}"
            cure = f"declare predicts='{predicts}'" + ("" if sign > 0 else ", and change the sign of the output")
            found.append(Reading("parametrization", f"the network predicts {what}", cure, predicts, sign))
    for name, cure, label in _TIMES:
        found.append(Reading("time", name, cure, model.predicts, label=label))
    for name, sde in _schedules():
        if not _alike(sde, model.sde):
            cure = f"declare the process that it was trained on: {name}"
            found.append(Reading("schedule", f"trained on {name}", cure, model.predicts, sde=sde))
    for name, cure, change in _UNITS:
        fault = "latents" if "latents" in name else "data range"
        found.append(Reading(fault, name, cure, model.predicts, data=change))
    std = float(data.double().std())
    cure = f"divide the data by their standard deviation, {std:.4g}"
    if abs(math.log(max(std, 1e-30))) > 0.3:
        found.append(Reading("latents", "data that are not normalised", cure, model.predicts, data=(1 / std, 0.0)))
    return found


def _alike(one: SDE, other: SDE) -> bool:
    """Whether two processes have one schedule."""
    t = torch.linspace(0.05, 0.95, 10, dtype=torch.float64)
    return bool(((one.half_log_snr(t) - other.half_log_snr(t)).abs() < 0.1).all())


class _Examination:
    """Data, noise and levels; the error of any reading on them."""

    def __init__(self, model: ScoreModel, data: Tensor, seed: int, condition: dict[str, Any]) -> None:
        self.model, self.condition = model, condition
        weight = next((p for p in model.parameters() if p.is_floating_point()), None)
        self.dtype = torch.promote_types(torch.float32, data.dtype if weight is None else weight.dtype)
        self.x0 = data.to(self.dtype if weight is None else torch.promote_types(weight.dtype, torch.float32))
        if weight is not None:
            self.x0 = self.x0.to(weight.device)
        generator = torch.Generator().manual_seed(seed)
        self.eps = torch.randn(data.shape, generator=generator).to(self.x0)
        std = max(float(data.double().std()), 1e-12)
        alpha, sigma = (float(c) for c in model.sde.marginal(1.0))
        top = math.inf if alpha == 0 else sigma / alpha
        levels = [r * std for r in LEVELS if r * std < 0.95 * top]
        if not levels:
            raise InputError(f"the process ends at sigma / alpha = {top:.3g}, too low for data of scale {std:.3g}")
        self.t = [float(model.sde.time(-math.log(r))) for r in levels]
        self.rho = tuple(levels)
        self.top = self.label(torch.ones(1, dtype=torch.float64), self.x0[:1])

    def label(self, t: Tensor, x: Tensor) -> Tensor:
        """The time input of the network at t."""
        return self.model.arguments(x, t.to(x.device))[1]

    def output(self, x: Tensor, t: float, reading: Reading) -> Tensor:
        """The network's own answer; NaN where it refuses."""
        times = torch.full((len(x),), t, dtype=torch.float64, device=x.device)
        inside, label = self.model.arguments(x, times)
        if reading.predicts != "edm" and self.model.predicts == "edm":
            inside = x
        if reading.label is not None:
            label = reading.label(label.double(), self.top.double()).to(label.dtype)
        low = self.model.low_precision()
        out = tensor_of(self.model.network(inside if low is None else inside.to(low), label, **self.condition)).to(x)
        return out if out.shape == x.shape else out[:, : x.shape[1]]

    def ratios(self, reading: Reading, outputs: dict[float, Tensor] | None = None) -> list[float]:
        """r at every level; NaN where the network cannot be asked."""
        sde = reading.sde or self.model.sde
        scale, shift = reading.data
        x0 = scale * self.x0 + shift
        n, mean = len(x0), x0.mean(0, keepdim=True)
        variance = float((x0 - mean).double().square().mean()) * n / (n - 1)
        mean = (n * mean - x0) / (n - 1)  # of the others
        read = ScoreModel(None, sde, reading.predicts, sigma_data=self.model.sigma_data)
        found = []
        for rho in self.rho:
            # The same signal-to-noise ratio in every reading, or their errors could not be compared.
            t = float(sde.time(-math.log(rho * scale)))
            alpha, sigma = (float(c) for c in sde.marginal(t))
            x = alpha * x0 + sigma * self.eps
            times = torch.full((len(x),), t, dtype=torch.float64, device=x.device)
            try:
                out = outputs[t] if outputs is not None else self.output(x, t, reading)
                denoised = read.denoised_from(reading.sign * out, x, times)
            except (ValueError, IndexError, RuntimeError):
                found.append(math.nan)
                continue
            linear = mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x - alpha * mean)
            error = float((denoised - x0).double().square().mean())
            found.append(error / max(float((linear - x0).double().square().mean()), 1e-30))
        return found


def _score(ratios: Iterable[float]) -> float:
    """The mean of log r; infinite where a level is not finite."""
    logs = [math.log(r + _FLOOR) if math.isfinite(r) else math.inf for r in ratios]
    return sum(logs) / len(logs)


@torch.no_grad()
def examine(model: ScoreModel, data: Tensor, *, seed: int = 0, **condition: Any) -> Diagnosis:
    """Look for the usual mistakes of a model.

    Args:
        model: as it would be sampled; nothing of it is changed, evaluation mode included.
        data: held samples (n, ...) as the model is believed to have seen them; 64 are enough.
        seed: of the noise.
        condition: conditions of the network.

    Raises:
        ValueError: fewer than 8 samples, or samples that are not finite.

    >>> from sde_diffusion import GaussianMixture
    >>> exact = GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), 0.2, sde=VPSDE())
    >>> held = exact.draw(64)
    >>> examine(exact, held).healthy
    True
    >>> wrong = ScoreModel(exact.noise, VPSDE(), predicts="data")
    >>> examine(wrong, held).findings[0].cure
    "declare predicts='noise'"
    """
    if len(data) < 8 or not bool(data.isfinite().all()):
        raise InputError(f"an examination needs at least 8 finite samples of the data; got {len(data)}")
    require_whole("seed", seed, 0, 2**31 - 1)
    exam = _Examination(model, data, seed, condition)
    declared = Reading("", "as declared", "", model.predicts)
    early = _before_regression(exam, declared)
    if early is not None:
        return Diagnosis((early,), exam.rho, tuple(math.nan for _ in exam.rho), {})
    shared = {t: exam.output(_noised(exam, t), t, declared) for t in exam.t}
    scores, ratios = {}, {}
    tried = {reading.name: reading for reading in readings_of(model, data)}
    for name, reading in tried.items():
        same_call = reading.label is None and reading.sde is None and reading.data == (1.0, 0.0)
        same_call = same_call and (reading.predicts == model.predicts or model.predicts != "edm")
        ratios[name] = exam.ratios(reading, shared if same_call else None)
        scores[name] = _score(ratios[name])
    findings = []
    own = scores["as declared"]
    best = min(scores, key=lambda name: scores[name])
    if own - scores[best] > _CLEARLY and scores[best] < _GOOD:
        reading = tried[best]
        findings.append(
            Finding(
                reading.fault,
                f"read as declared, its error is {_times(own)} that of a linear denoiser; read so that {best}, "
                f"{_times(scores[best])}",
                reading.cure,
            )
        )
    elif own > _BAD:
        worst = max(range(len(exam.rho)), key=lambda k: ratios["as declared"][k])
        findings.append(
            Finding(
                "unexplained",
                f"its error is {_times(own)} that of a linear denoiser, most at sigma / alpha = {exam.rho[worst]:.3g}, "
                "and no usual mistake explains it",
                "check that weights were loaded, and the data; or train longer",
            )
        )
    order = sorted(scores, key=lambda name: scores[name])
    return Diagnosis(
        tuple([*findings, *_after_regression(exam, declared)]),
        exam.rho,
        tuple(ratios["as declared"]),
        {name: scores[name] for name in order},
    )


def _times(score: float) -> str:
    return f"{math.exp(score):.3g} times" if math.isfinite(score) else "infinitely many times"


def _noised(exam: _Examination, t: float) -> Tensor:
    alpha, sigma = (float(c) for c in exam.model.sde.marginal(t))
    return alpha * exam.x0 + sigma * exam.eps


_RANDOM = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)


def _before_regression(exam: _Examination, reading: Reading) -> Finding | None:
    """The faults that make any regression meaningless."""
    t = exam.t[len(exam.t) // 2]
    x = _noised(exam, t)
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in exam.model.parameters() if p.is_floating_point()})
    try:
        first = exam.output(x, t, reading)
        second = exam.output(x, t, reading)
        ends = [exam.output(_noised(exam, s), s, reading) for s in (exam.t[0], exam.t[-1])]
    except RuntimeError as error:
        message = " ".join(str(error).split())[:200]
        if "dtype" in message or "type" in message.lower():
            cure = "put the whole network into one dtype: model.float()"
            return Finding("dtype", f"the network has weights of {', '.join(dtypes)} and fails: {message}", cure)
        return Finding("call", f"the network fails: {message}", "call it by hand with x and t to see what it expects")
    for out in (first, *ends):
        if not bool(out.isfinite().all()):
            share = float((~out.isfinite()).double().mean())
            cure = "check its weights and the data's scale"
            if "float16" in dtypes:
                cure = "float16 overflows here: use bfloat16 or float32"
            return Finding("not finite", f"{share:.0%} of its answers are not finite, with weights of {dtypes}", cure)
    active = [m for m in exam.model.modules() if isinstance(m, _RANDOM) and m.training]
    if not torch.equal(first, second) or active:
        apart = float((first - second).double().square().mean().sqrt() / first.double().square().mean().sqrt())
        kinds = sorted({type(m).__name__ for m in active}) or ["something random"]
        measured = f"the same call gives answers {apart:.2g} apart; {', '.join(kinds)} in training mode"
        return Finding("training mode", measured, "call model.eval() before sampling")
    return None


def _after_regression(exam: _Examination, reading: Reading) -> list[Finding]:
    """The faults that regression does not show, or not alone."""
    found = []
    k = len(exam.t) // 2
    x = _noised(exam, exam.t[k])
    whole = exam.output(x, exam.t[k], reading)
    size = float(whole.double().square().mean().sqrt()) or 1.0
    if not exam.condition:
        alone = exam.output(x[:3], exam.t[k], reading)
        apart = float((whole[:3] - alone).double().abs().max()) / size
        if apart > 0.02:
            found.append(
                Finding(
                    "batch",
                    f"a sample's answer changes by {apart:.2g} of its size with the others in the batch",
                    "use layers that see one sample at a time, or BatchNorm in eval()",
                )
            )
    other = exam.output(x, exam.t[-1], reading)
    if torch.equal(whole, other):
        found.append(
            Finding(
                "time ignored",
                f"the network answers the same at t = {exam.t[k]:.3g} and {exam.t[-1]:.3g}",
                "check that the time reaches the network, and in the units that it was trained with",
            )
        )
    return found
