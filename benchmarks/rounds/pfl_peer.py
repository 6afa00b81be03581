"""The workload through apple/pfl-research 0.6.0, by its public API and with the settings of its own image benchmark.

As in its benchmarks/image_classification/pytorch/train.py: images stored [N,H,W,C] and transposed in the network (so
that its convolutions run on channels_last activations), torch.optim.SGD as local and central optimizer, WeightByUser,
users sampled at random from in-memory tensors. Left out, in pfl's favour: central evaluation, metrics files, printing.
pfl evaluates each user before and after training in round 1 whatever the frequency; `metrics` below answers without a
forward pass. pfl does not shuffle a user's samples; the bare loop does.

`--tuned` adds what a pfl user can reach without changing pfl: fused SGD, channels_last weights, its own autocast for
bfloat16, and freed memory that stays in the process (heap.py).

    OMP_NUM_THREADS=1 benchmarks/.venv-pfl/bin/python -m torch.distributed.run --standalone --nproc-per-node 2 \\
        benchmarks/rounds/pfl_peer.py --model cnn --ranks 2 --rounds 8
"""

from __future__ import annotations

import argparse
import time
from functools import partial

import numpy as np
import torch
from heap import keep_heap
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByUser
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.internal.ops.selector import get_framework_module
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn
from torch.nn import functional
from workload import (
    BATCH_SIZE,
    COHORT_SIZE,
    LEARNING_RATE,
    PRECISIONS,
    announce_round,
    build_network,
    generate_client,
    parse,
    parser,
    report,
)


class Network(nn.Module):
    """The workload's network with the two methods that pfl asks of a module."""

    def __init__(self, model: str) -> None:
        super().__init__()
        self.layers = build_network(model)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B,10] of images [B,32,32,3]."""
        logits: Tensor = self.layers(images.permute(0, 3, 1, 2))
        return logits

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy, 0-dim; sets training mode for every batch, as pfl's benchmark does."""
        self.train()
        return functional.cross_entropy(self(images), labels)

    def metrics(self, images: Tensor, labels: Tensor) -> dict[str, Weighted]:
        """A count without a forward pass, so that pfl's evaluation in round 1 costs nothing."""
        return {"number of samples": Weighted(len(labels), len(labels))}


class Stopwatch(TrainingProcessCallback):  # type: ignore[misc]
    """Seconds of each round on rank 0, which meets the other ranks in pfl's all-reduce and so waits for the slowest."""

    def __init__(self, distributed: object, rank: int) -> None:
        self.seconds: list[float] = []
        self.distributed = distributed
        self.rank = rank
        self.start = 0.0

    def on_train_begin(self, *, model: PyTorchModel) -> Metrics:
        """Start round 1 on all ranks together."""
        self.distributed.all_reduce([torch.zeros(1)])  # type: ignore[attr-defined]
        self.start = time.monotonic()
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """Called once the central model is updated."""
        end = time.monotonic()
        self.seconds.append(end - self.start)
        self.start = end
        if self.rank == 0:
            announce_round(central_iteration + 1)
        return False, Metrics()


def run(arguments: argparse.Namespace) -> None:
    """Federated averaging for all rounds; rank 0 prints the result.

    Raises: ValueError when --ranks is not what the launcher started, or --precision needs --tuned.
    """
    distributed = get_framework_module().distributed
    if distributed.world_size != arguments.ranks:
        raise ValueError(
            f"--ranks {arguments.ranks} but the launcher started {distributed.world_size} processes; "
            f"start this script with torch.distributed.run --nproc-per-node {arguments.ranks}"
        )
    if arguments.precision != "float32" and not arguments.tuned:
        raise ValueError(
            f"--precision {arguments.precision} is not in pfl's own benchmark; set float32, or add --tuned"
        )
    if arguments.tuned:
        keep_heap()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    np.random.seed(arguments.seed)  # pfl draws its cohorts from here: the same seed on all ranks

    users = [tuple(generate_client(client, arguments.seed)) for client in range(arguments.num_clients)]
    training = FederatedDataset.from_slices(users, get_user_sampler("random", range(len(users))))
    network = Network(arguments.model)
    if arguments.tuned:
        network = network.to(memory_format=torch.channels_last)
    model = PyTorchModel(
        model=network,
        local_optimizer_create=partial(torch.optim.SGD, fused=True) if arguments.tuned else torch.optim.SGD,
        central_optimizer=torch.optim.SGD(network.parameters(), lr=1.0),
        amp_dtype=PRECISIONS[arguments.precision],
    )
    stopwatch = Stopwatch(distributed, distributed.global_rank)
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=arguments.rounds,
            evaluation_frequency=arguments.rounds + 1,
            train_cohort_size=COHORT_SIZE,
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(training_data=training, val_data=training, postprocessors=[WeightByUser()]),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_learning_rate=LEARNING_RATE, local_num_epochs=1, local_batch_size=BATCH_SIZE
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=None),
        callbacks=[stopwatch],
        send_metrics_to_platform=False,
    )
    if not all(bool(torch.isfinite(parameter).all()) for parameter in network.parameters()):
        raise RuntimeError(f"parameters are not finite after {arguments.rounds} rounds: no valid timing")
    if distributed.global_rank == 0:
        report("pfl_tuned" if arguments.tuned else "pfl", arguments, stopwatch.seconds, packages=("pfl", "numpy"))
    if torch.distributed.is_initialized():  # a rank that leaves first makes the other abort now and then
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    made = parser(__doc__)
    made.add_argument("--tuned", action="store_true", help="fused SGD, channels_last weights, autocast for bfloat16")
    run(parse(made))
