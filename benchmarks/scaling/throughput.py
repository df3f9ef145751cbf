"""Throughput: what the solver adds to the bare network, and how near training comes to the peak of the device.

    python -m benchmarks.scaling.throughput     # the digits network on the CPU, or CUDA if there is one
    python -m benchmarks.scaling.throughput --network cifar10 --precision bf16 --compile

The overhead at a batch size is the time of ``solve`` over that of as many calls of the network alone on the same batch,
the median of the ratios of neighbouring runs. The share of the peak is the rate of floating-point operations of a
training step, counted by ``torch.utils.flop_counter``, over that of a large matrix product in the same precision.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from sde_diffusion import ScoreModel, load
from sde_diffusion.models.speed import PRECISIONS, Speed
from sde_diffusion.storage.provenance import versions
from solvers import solve


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """The time of some work, its queue on the device included."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def model_for(name: str, device: torch.device) -> ScoreModel:
    """The bundled network, or an untrained one of the size of the CIFAR-10 benchmark."""
    if name == "digits":
        return load("bundled", device=str(device))
    from benchmarks.cifar10.network_training import build_model
    from benchmarks.cifar10.settings import FULL

    return build_model(FULL, device).eval()


@torch.no_grad()
def overhead(model: ScoreModel, batch: int, solver: str, steps: int, rounds: int) -> dict[str, float]:
    """The time of a solver over that of the bare network, at a batch size."""
    device = model.device
    assert model.shape is not None
    x1 = model.sde.prior((batch, *model.shape), seeds=range(batch), device=device)
    t = torch.full((batch,), 0.5, device=device)
    process = model.sde.probability_flow(model)
    run = lambda: solve(process, x1, solver=solver, steps=steps)  # noqa: E731
    calls = int(run().nfe[0]) // model.cost

    def bare() -> None:
        for _ in range(calls):
            model.network(x1, t)

    bare()
    ratios, times = [], []
    for _ in range(rounds):
        alone = seconds(bare, device)
        whole = seconds(run, device)
        ratios.append(whole / alone)
        times.append(alone / calls)
    return {"overhead": statistics.median(ratios), "least": min(ratios), "network ms": 1000 * statistics.median(times)}


def peak(dtype: torch.dtype, device: torch.device, rounds: int) -> float:
    """Floating-point operations in a second of a large matrix product."""
    n = 8192 if device.type == "cuda" else 1024
    a = torch.randn(n, n, device=device, dtype=dtype)
    seconds(lambda: a @ a, device)
    return 2 * n**3 / min(seconds(lambda: a @ a, device) for _ in range(rounds))


def training(model: ScoreModel, batch: int, precision: str, rounds: int) -> dict[str, float]:
    """Images in a second of a training step, and its share of the peak."""
    device = model.device
    assert model.shape is not None
    network = model.network.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=True)
    x = torch.randn(batch, *model.shape, device=device)
    t = torch.rand(batch, device=device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        network(x, t).square().mean().backward()
        optimizer.step()

    with FlopCounterMode(display=False) as counter:
        step()
    took = min(seconds(step, device) for _ in range(rounds))
    rate = counter.get_total_flops() / took
    return {"images/s": batch / took, "share of peak": rate / peak(PRECISIONS[precision], device, rounds)}


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=["digits", "cifar10"], default="digits")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 256])
    parser.add_argument("--solver", default="dpm++2m")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--training-batch", type=int, default=256)
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    model = model_for(args.network, device)
    # The operations are counted before the network is compiled; counting needs the single operations.
    Speed(args.precision, False).apply(model.network)
    learning = model_for(args.network, device)
    Speed(args.precision, False).apply(learning.network)
    trained = training(learning, args.training_batch, args.precision, 3)
    if args.compile:
        Speed("fp32", True).apply(model.network)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    found = {
        "device": name,
        "versions": versions(),
        "network": args.network,
        "solver": args.solver,
        "training": trained,
    }
    for batch in args.batches:
        found[f"batch {batch}"] = overhead(model, batch, args.solver, args.steps, args.rounds)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
