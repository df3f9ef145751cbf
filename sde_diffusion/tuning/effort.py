"""Effort and progress of tuning: sample sizes for a given time, and the share of the work done.

The cost of tuning is network evaluations: reference solutions first, then trials and least squares. The
measured time of one evaluation determines the number of samples, the steps of their reference solutions and the
number of samples in a least-squares iteration. A first result is found early, and the remaining time improves it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from sde_diffusion.report.share_of_work import share_bar

_REFERENCE_SHARE = 0.35
_SLOW_SHARE, _SLOW_HELD = 0.25, 3  # of a network that is too slow for 256 samples; one sample in 3 is held out
_MOST, _SOME, _LEAST = 2048, 256, 8  # samples, where the time is given
_FEWEST_KEPT = 32  # samples that memory does not limit
_STEPS, _STEPS_EACH, _MOST_STEPS = 48, 5, 256
CHECKED = 4  # number of samples whose reference solution is computed twice
_COLUMNS = 4  # number of fitted weights in a row
_TRIALS = 3


class Clock:
    """A time limit; None for none.

    Args:
        seconds: the limit.
        now: the time in seconds; that of the wall by default.

    >>> Clock(None).over(), Clock(0.0).over(), Clock(100.0).part(0.5).left() <= 50
    (False, True, True)
    """

    def __init__(self, seconds: float | None, now: Callable[[], float] = time.perf_counter) -> None:
        self.seconds, self._now, self._start = seconds, now, now()

    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._now() - self._start

    def left(self) -> float:
        """Seconds until the limit."""
        return math.inf if self.seconds is None else self.seconds - self.elapsed()

    def over(self) -> bool:
        """Whether the limit is reached."""
        return self.left() <= 0

    def part(self, share: float) -> Clock:
        """A limit that starts now, with a share of the remaining time."""
        return Clock(None if self.seconds is None else max(share * self.left(), 0.0), self._now)


@dataclass(frozen=True)
class Progress:
    """The progress of tuning.

    Attributes:
        share: share of the work done, 0 to 1.
        left: estimate of the remaining seconds.
        gain: error of the best solver so far over that of the default, on the held-out samples; None at first.
        text: the current task.
    """

    share: float
    left: float
    gain: float | None
    text: str


@dataclass(frozen=True)
class Effort:
    """The planned work of tuning.

    Attributes:
        noise_samples: initial noise samples for the fits.
        held_out: held-out noise samples that select the result.
        reference_steps: evaluations of a reference solution.
        seconds: estimate of the total time.
        timed: whether the time was given and determined the other values.
        evaluation: seconds of one network evaluation of one sample.
    """

    noise_samples: int
    held_out: int
    reference_steps: int
    seconds: float
    timed: bool
    evaluation: float

    def __str__(self) -> str:
        """The cost as text."""
        return (
            f"about {duration(self.seconds)}: {self.noise_samples} + {self.held_out} samples, reference solutions of "
            f"{self.reference_steps} evaluations, {1000 * self.evaluation:.2g} ms for an evaluation of a sample"
        )


def duration(seconds: float) -> str:
    """A duration as readable text.

    >>> duration(42.3), duration(200), duration(9000)
    ('42 s', '3 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def iteration(rows: int, known: int = 0) -> int:
    """Network evaluations of one least-squares iteration for one sample: derivatives and trials.

    Args:
        rows: of the table.
        known: first rows that need no evaluation.

    >>> iteration(5), iteration(6, 1)
    (60, 84)
    """
    total, runs = 0, 1
    for i in range(rows):
        runs += i > 0  # a changed time
        total += runs * (i >= known)
        runs += min(i + 1, _COLUMNS) + 1
    return total + _TRIALS * (rows - known)


def effort_for(
    seconds: float | None,
    evaluation: float,
    steps: Sequence[int],
    noise_samples: int,
    held_out: int,
    cost: int = 1,
    most: int = 2048,
) -> Effort:
    """The planned work for a time limit, or for given numbers of samples if there is no limit.

    Args:
        seconds: the time limit, or None.
        evaluation: seconds of one network evaluation of one sample.
        steps: model calls of every solver that is made.
        noise_samples: number of samples for the fits, without a time limit.
        held_out: number of held-out samples.
        cost: network evaluations in one call.
        most: samples whose reference path memory holds.

    >>> made = effort_for(20.0, 0.005, [8], 128, 128)
    >>> made.noise_samples + made.held_out, made.reference_steps
    (18, 48)
    """
    call = evaluation * cost
    if seconds is None:
        # Two reference runs in float64, about four times as slow as a float32 network.
        reference = (noise_samples + held_out) * (_MOST_STEPS + _MOST_STEPS // 2) * 4
        fits = sum((8 * noise_samples + 20 * max(noise_samples // 4, 16)) * iteration(n) + 4000 * n for n in steps)
        return Effort(noise_samples, held_out, _MOST_STEPS, call * (reference + fits), False, evaluation)
    fine = max(_STEPS, _STEPS_EACH * max(steps))
    pays = _REFERENCE_SHARE * seconds / call
    samples = pays / 1.1 / fine
    slow = samples < _SOME
    total = int(samples * _SLOW_SHARE / _REFERENCE_SHARE if slow else _SOME)
    if samples > _SOME:  # more samples and more exact ones alike
        fine = max(fine, min(_MOST_STEPS, int(fine * math.sqrt(samples / _SOME))))
        total = int(min(pays / 1.1 / fine, _MOST))
    total = max(_LEAST, min(total, max(most, _FEWEST_KEPT)))
    held_out = max(total // (_SLOW_HELD if slow else 2), min(_LEAST // 2, total // 2))
    return Effort(total - held_out, held_out, fine, seconds, True, evaluation)


class Reporter:
    """Reports the progress of tuning to a callback."""

    def __init__(self, callback: Callable[[Progress], None] | None, clock: Clock) -> None:
        self.callback, self.clock, self.gain = callback, clock, None
        self.first, self.width, self.prefix = 0.0, 1.0, ""

    gain: float | None

    def within(self, first: float, width: float, prefix: str) -> None:
        """Begin a part of the work that starts at the share ``first``."""
        self.first, self.width, self.prefix, self.gain = first, width, prefix, None

    def tell(self, share: float, text: str) -> None:
        """Report the share done of the current part."""
        if self.callback is None:
            return
        done = self.first + self.width * share
        elapsed = self.clock.elapsed()
        if self.clock.seconds is None:
            left = elapsed * (1 - done) / done if done > 0 else math.inf
        else:
            left = max(self.clock.left(), 0.0)
            done = max(min(elapsed / self.clock.seconds, 1.0), 1.0 if done >= 1 else 0.0)
        self.callback(Progress(min(done, 1.0), left, self.gain, self.prefix + text))


@contextmanager
def bar(show: bool = True) -> Iterator[Callable[[Progress], None] | None]:
    """A progress bar for terminals and notebooks: share, time left and gain; None without a terminal or notebook."""
    with share_bar(show, "tuning") as report:
        if report is None:
            yield None
            return

        def update(now: Progress) -> None:
            gain = "" if now.gain is None else f", error {now.gain:.2f} of the default's"
            report(now.share, now.text + gain)

        yield update
