"""The bare tuned loop: what SGD alone costs. No federation: no weights are loaded, differenced, exchanged or averaged.

Each rank trains its share of the cohort, one client after the other, in one resident network:
channels_last weights and images, one resident fused SGD, samples in memory, one gather of shuffled samples an epoch.

    python benchmarks/rounds/bare.py --model cnn --ranks 2 --rounds 8 --precision float32
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from contextlib import AbstractContextManager, nullcontext
from multiprocessing.synchronize import Barrier
from typing import TYPE_CHECKING

import torch
from heap import keep_heap
from torch import Tensor, nn
from torch.nn import functional
from workload import (
    BATCH_SIZE,
    LEARNING_RATE,
    NUM_SAMPLES,
    ClientData,
    announce_round,
    build_network,
    draw_cohort,
    generate_client,
    parse,
    parser,
    report,
)

BARRIER_TIMEOUT = 300  # seconds: a rank that died must not leave the other one waiting

if TYPE_CHECKING:
    from ctypes import Array, c_double

    Times = Array[c_double]


def train_client(
    network: nn.Module, optimizer: torch.optim.Optimizer, data: ClientData, autocast: AbstractContextManager[object]
) -> Tensor:
    """One local epoch over a shuffled client; returns the last batch's loss (0-dim, attached to nothing)."""
    order = torch.randperm(NUM_SAMPLES)
    # One gather an epoch; images stay [N,H,W,C] in memory, and the permuted view is what torch calls channels_last.
    images = data.images.index_select(0, order).permute(0, 3, 1, 2).split(BATCH_SIZE)  # type: ignore[no-untyped-call]
    labels = data.labels.index_select(0, order).split(BATCH_SIZE)  # type: ignore[no-untyped-call]
    loss = torch.zeros(())
    for image, label in zip(images, labels, strict=True):
        optimizer.zero_grad(set_to_none=True)
        with autocast:
            loss = functional.cross_entropy(network(image), label)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return loss.detach()


def run_rank(rank: int, arguments: argparse.Namespace, barrier: Barrier | None, spans: Times) -> None:
    """Train this rank's clients for all rounds.

    spans [ranks * rounds * 2] gets each round's start and end in seconds, at (rank * rounds + round) * 2.

    Raises: RuntimeError when the loss is not finite at the end.
    """
    if rank > 0:
        os.setsid()
    if arguments.keep_heap:
        keep_heap()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed + rank)
    data = [generate_client(client, arguments.seed) for client in range(arguments.num_clients)]
    network = build_network(arguments.model).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=LEARNING_RATE, fused=True)
    autocast: AbstractContextManager[object] = nullcontext()
    if arguments.precision == "bfloat16":
        autocast = torch.autocast("cpu", torch.bfloat16)
    loss = torch.zeros(())
    for index in range(arguments.rounds):
        share = draw_cohort(index, arguments.num_clients, arguments.seed)[rank :: arguments.ranks]
        if barrier is not None:
            barrier.wait()
        start = time.monotonic()
        for client in share:
            loss = train_client(network, optimizer, data[client], autocast)
        end = time.monotonic()
        place = (rank * arguments.rounds + index) * 2
        spans[place], spans[place + 1] = start, end
        if rank == 0:
            announce_round(index + 1)
    if not torch.isfinite(loss):
        raise RuntimeError(f"rank {rank}: loss is {float(loss)} after {arguments.rounds} rounds: no valid timing")
    if barrier is not None:
        barrier.wait()


def main() -> None:
    """Rank 0 is this process, so that no launcher counts in the memory; the others are started with `spawn`."""
    made = parser(__doc__)
    made.add_argument("--keep-heap", action="store_true", help="keep freed memory in the process (contender bare_heap)")
    arguments = parse(made)
    context = multiprocessing.get_context("spawn")
    spans = context.RawArray("d", arguments.ranks * arguments.rounds * 2)
    barrier = context.Barrier(arguments.ranks, timeout=BARRIER_TIMEOUT) if arguments.ranks > 1 else None
    others = [
        context.Process(target=run_rank, args=(rank, arguments, barrier, spans), daemon=True)
        for rank in range(1, arguments.ranks)
    ]
    for process in others:
        process.start()
    # Linux shares the processor out between sessions (autogroup): torchrun gives every rank its own, so this loop does.
    run_rank(0, arguments, barrier, spans)
    for process in others:
        process.join()
    # CLOCK_MONOTONIC is one clock for all processes: the slowest rank ends the round.
    seconds = []
    for index in range(arguments.rounds):
        places = [(rank * arguments.rounds + index) * 2 for rank in range(arguments.ranks)]
        seconds.append(max(spans[place + 1] for place in places) - min(spans[place] for place in places))
    report("bare_heap" if arguments.keep_heap else "bare", arguments, seconds)


if __name__ == "__main__":
    main()
