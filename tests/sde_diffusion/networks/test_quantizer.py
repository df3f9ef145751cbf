"""The codebook: nearest codes, exact averages, gradients, restarts of dead codes, perplexity."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sde_diffusion.networks.quantizer import RESTARTS, Quantizer
from solvers.errors import InputError


def vectors(n: int = 64, width: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def test_each_vector_gets_the_nearest_code() -> None:
    quantizer = Quantizer(16, 3).eval()
    z = vectors().reshape(4, 4, 4, 3).movedim(-1, 1)
    z_q, index = quantizer(z)
    distances = torch.cdist(z.movedim(1, -1).reshape(-1, 3), quantizer.codebook)
    assert torch.equal(index.flatten(), distances.argmin(1))
    assert torch.allclose(z_q.movedim(1, -1).reshape(-1, 3), quantizer.codebook[index.flatten()], atol=1e-6)


def test_the_gradient_passes_through_unchanged() -> None:
    quantizer = Quantizer(4, 3).eval()
    z = vectors(8).requires_grad_()
    weights = vectors(8, seed=1)
    (quantizer(z)[0] * weights).sum().backward()
    assert torch.equal(z.grad, weights)


def test_with_no_memory_each_code_is_the_mean_of_its_vectors() -> None:
    quantizer = Quantizer(2, 1, decay=0.0, dead=0.0)
    quantizer.codebook.copy_(torch.tensor([[-1.0], [1.0]]))
    quantizer.counts.fill_(1.0)
    quantizer.updates.fill_(1)
    quantizer(torch.tensor([[-3.0], [-2.0], [0.5], [1.5], [4.0]]))
    assert torch.allclose(quantizer.codebook, torch.tensor([[-2.5], [2.0]]))
    assert quantizer.counts.tolist() == [2.0, 3.0]


def test_the_averages_forget_by_the_decay() -> None:
    quantizer = Quantizer(2, 1, decay=0.9)
    quantizer.codebook.copy_(torch.tensor([[0.0], [10.0]]))
    quantizer.counts.fill_(2.0)
    quantizer.sums.copy_(torch.tensor([[0.0], [20.0]]))
    quantizer.updates.fill_(1)
    quantizer(torch.tensor([[1.0], [2.0], [9.0]]))
    assert quantizer.counts.tolist() == pytest.approx([2.0, 1.9])
    assert quantizer.codebook.flatten().tolist() == pytest.approx([0.3 / 2.0, (18 + 0.9) / 1.9])


def test_evaluation_changes_nothing() -> None:
    quantizer = Quantizer(8, 3).eval()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer(vectors())
    assert all(torch.equal(before[name], value) for name, value in quantizer.state_dict().items())


def test_the_first_batch_sets_all_codes() -> None:
    quantizer = Quantizer(8, 3, decay=0.0)
    z = 100 + vectors()
    quantizer(z)
    assert float(torch.cdist(quantizer.codebook, z).min(1).values.max()) < 3.0


def test_dead_codes_restart_in_the_batch() -> None:
    torch.manual_seed(0)
    quantizer = Quantizer(4, 2)
    quantizer.codebook.copy_(torch.tensor([[0.0, 0.0], [1e6, 0.0], [2e6, 0.0], [3e6, 0.0]]))
    quantizer.counts.copy_(torch.tensor([50.0, 0.0, 0.0, 0.0]))
    quantizer.updates.fill_(RESTARTS)
    assert quantizer.perplexity() == 1.0
    for seed in range(30):
        quantizer(vectors(64, 2, seed))
    assert float(quantizer.codebook.abs().max()) < 5
    assert quantizer.perplexity() > 3


@pytest.mark.parametrize("counts", [[1, 1, 1, 1], [4, 4, 0, 0], [8, 0, 0, 0]])
def test_perplexity_counts_equally_used_codes(counts: list[int]) -> None:
    index = torch.repeat_interleave(torch.arange(4), torch.tensor(counts))
    assert Quantizer(4, 1).perplexity(index) == pytest.approx(sum(c > 0 for c in counts))


@pytest.mark.parametrize("settings", [(1, 2), (4, 0), (4, 2, 1.0), (4, 2, 0.9, -0.1)])
def test_sizes_and_shares_out_of_range_are_refused(settings: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="at least 2 codes"):
        Quantizer(*settings)


CHILD = """
import os, torch
from sde_diffusion.networks.quantizer import Quantizer
torch.distributed.init_process_group("gloo")
torch.manual_seed(0)
quantizer = Quantizer(8, 3)
rank = int(os.environ["RANK"])
generator = torch.Generator().manual_seed(rank)
for k in range(12):  # with restarts of dead codes
    quantizer(0.01 * torch.randn(20, 3, generator=generator) + rank)
print(quantizer.codebook.tolist(), quantizer.counts.tolist())
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_processes_have_one_codebook() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    root = Path(__file__).resolve().parents[3]
    made = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD],
            env={**os.environ, **common, "RANK": str(rank), "PYTHONPATH": str(root)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    first, second = (process.communicate(timeout=120)[0] for process in made)
    assert first == second and len(first) > 100
