"""The processes of a training run, and the precision of its networks.

Hugging Face accelerate finds the processes that a launcher started (``accelerate launch``, ``torchrun``), gives each
its device, averages gradients over them and writes to trackers; a single process without a tracker does not need it.

Precision is torch's own autocast around the network alone (``Precise``), instead of accelerate's around the whole
forward pass: computations before and after the network, coefficients, targets and losses, stay float32 and
float64. float16 scales the loss so that small gradients do not vanish, and skips an update whose gradient overflowed.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from sde_diffusion.parallel.processes import leave_at_exit
from solvers.errors import InputError, MissingPackageError

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Precise(nn.Module):
    """A network that computes in another precision; its input and output are float32.

    >>> network = Precise(nn.Linear(1, 1), torch.bfloat16)
    >>> network.inner.weight.dtype, network(torch.ones(1, 1)).dtype
    (torch.float32, torch.float32)
    """

    def __init__(self, inner: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner = inner
        self.dtype = dtype

    def forward(self, x: Tensor, *args: Any, **condition: Any) -> Any:
        """The output of the network."""
        with torch.autocast(x.device.type, dtype=self.dtype):
            output = self.inner(x, *args, **condition)
        return output.to(x.dtype) if isinstance(output, Tensor) else output


def device_type(device: str) -> str:
    """The kind of device that a name stands for: "cuda" if it is wanted and there is one, else "cpu"."""
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"


class Distributed:
    """The processes that train one model together.

    Args:
        device: "cpu", "cuda" or "auto".
        precision: a name in ``TYPES``.
        tracker: "tensorboard", "wandb" or "none".
        folder: folder of the tracker.

    Attributes:
        rank: number of this process, from 0.
        world: number of processes.
        device: device of this process.
        scaler: scaler of the loss, enabled in float16 only.

    Raises:
        ValueError: a device that is not available; a launcher with another precision.
        ImportError: a tracker that is not installed.
    """

    def __init__(self, device: str, precision: str, tracker: str = "none", folder: Path | None = None) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise InputError("device='cuda': torch sees no CUDA device here; use 'cpu' or 'auto'")
        launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        if launched not in ("no", precision):
            raise InputError(
                f"the launcher sets precision {launched} and the options {precision}; set it by sdediff: "
                f"precision='{launched}' (--precision {launched})"
            )
        if tracker != "none" and importlib.util.find_spec(tracker) is None:
            raise MissingPackageError(f"the tracker {tracker} is not installed: pip install {tracker}")
        self.device = torch.device(device_type(device))
        self.rank, self.world = 0, 1
        self.accelerator: Accelerator | None = None
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1 or torch.distributed.is_initialized()
        if several or tracker != "none":
            # Not for a single process: accelerate fixes the device for the lifetime of the process.
            self.accelerator = _accelerator(self.device.type == "cpu", tracker, folder)
            self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
            if self.device.type == "cuda":
                self.device = self.accelerator.device
        self.dtype = TYPES[precision]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")

    @property
    def main(self) -> bool:
        """Whether this process writes the files of the run."""
        return self.rank == 0

    def precise(self, network: nn.Module) -> nn.Module:
        """The network in the requested precision."""
        return network if self.dtype == torch.float32 else Precise(network, self.dtype)

    def shared(self, module: nn.Module, unused: bool) -> nn.Module:
        """The module with gradients that are averaged over all processes.

        Args:
            module: its forward pass is the loss.
            unused: whether some parameters do not enter the loss.
        """
        if self.accelerator is None or self.world == 1:
            return module
        from accelerate.utils import DistributedDataParallelKwargs

        self.accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=unused)
        # The module is on its device already: moving it from "cpu" to "cpu:0" would replace its tensors.
        return self.accelerator.prepare_model(module, device_placement=False)

    def alone(self, module: nn.Module) -> Any:
        """A context in which gradients accumulate in this process without averaging over processes."""
        return module.no_sync() if self.world > 1 else nullcontext()  # type: ignore[operator]

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes."""
        return values if self.world == 1 else self.gather(values[None]).mean(0)

    def gather(self, rows: Tensor) -> Tensor:
        """The rows (B, ...) of all processes, in the order of the processes."""
        if self.accelerator is None or self.world == 1:
            return rows
        return self.accelerator.gather(rows)

    def agree(self, *values: float) -> list[float]:
        """The largest of each value over all processes."""
        if self.world == 1:
            return list(values)
        row = torch.tensor([values], dtype=torch.float64, device=self.device)
        return self.gather(row).amax(0).tolist()

    def alike(self, action: Callable[[], T]) -> T:
        """Call a function on every process; if it fails on one, all processes raise its error."""
        error: Exception | None = None
        result: T | None = None
        try:
            result = action()
        except Exception as caught:
            error = caught
        if self.world > 1:
            errors: list[Exception | None] = [None] * self.world
            torch.distributed.all_gather_object(errors, error)
            error = error or next((e for e in errors if e is not None), None)
        if error is not None:
            raise error
        return result  # type: ignore[return-value]

    def once(self, action: Callable[[], object]) -> None:
        """Call a function on the writing process; if it fails, all processes raise its error."""
        self.alike(lambda: action() if self.main else None)

    @contextmanager
    def tracking(self, name: str, settings: dict[str, Any]) -> Iterator[None]:
        """A context in which ``track`` logs to the tracker."""
        if self.accelerator is not None and self.accelerator.log_with:
            flat = {k: v if isinstance(v, (int, float, str)) else str(v) for k, v in settings.items()}
            self.accelerator.init_trackers(name, flat)
        try:
            yield
        finally:
            for tracker in self.accelerator.trackers if self.accelerator else ():
                tracker.finish()

    def track(self, values: Mapping[str, float], step: int, image: Any = None) -> None:
        """Pass the metrics of an update, and an image (H, W, 3) of bytes, to the tracker, if any."""
        if self.accelerator is None:
            return
        if values:
            self.accelerator.log(dict(values), step=step)
        for tracker in self.accelerator.trackers if image is not None else ():
            _track_image(tracker, image, step)


def _track_image(tracker: Any, image: Any, step: int) -> None:
    """Pass an image (H, W, 3) of bytes to a tracker of accelerate that takes images."""
    if tracker.name == "tensorboard":
        tracker.log_images({"samples": image[None]}, step=step, dataformats="NHWC")
    elif tracker.name == "wandb":
        tracker.log_images({"samples": [image]}, step=step)


def _accelerator(cpu: bool, tracker: str, folder: Path | None) -> Accelerator:
    from accelerate import Accelerator

    log_with = None if tracker == "none" else tracker
    accelerator = Accelerator(cpu=cpu, mixed_precision="no", log_with=log_with, project_dir=folder)
    if accelerator.num_processes > 1:
        leave_at_exit()
    return accelerator
