"""The workload that every contender runs, and the line that it prints at the end.

Imports torch only, so that a peer's venv can use it.

3x32x32 images, 50 samples a client, batches of 10, one local epoch, SGD lr 0.1, 100 clients, cohorts of 10:
what pfl-research (arXiv 2404.06430; benchmarks/image_classification) uses to compare frameworks, on generated images.
"""

from __future__ import annotations

import argparse
import json
import platform
from importlib.metadata import version
from typing import NamedTuple

import torch
from torch import Tensor, nn

NUM_CLASSES = 10
IMAGE_SIZE = 32  # pixels a side
NUM_SAMPLES = 50  # a client
BATCH_SIZE = 10
COHORT_SIZE = 10
LEARNING_RATE = 0.1
CHANNELS = {"cnn": (32, 64, 128), "tiny": (8, 16, 32)}  # first convolution, second convolution, dense
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def build_network(model: str) -> nn.Sequential:
    """Images [B,3,32,32] to logits [B,10]: two 3x3 convolutions without padding, two dense layers, dropout.

    `cnn` has 1,626,442 parameters; `tiny` shows what a framework costs when the network costs little.
    """
    first, second, dense = CHANNELS[model]
    side = (IMAGE_SIZE - 4) // 2
    return nn.Sequential(
        nn.Conv2d(3, first, 3),
        nn.ReLU(),
        nn.Conv2d(first, second, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(second * side * side, dense),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(dense, NUM_CLASSES),
    )


class ClientData(NamedTuple):
    """One client's samples: images float32 [50,32,32,3] (mean 0, deviation 1), labels int64 [50]."""

    images: Tensor
    labels: Tensor


def generate_client(client: int, seed: int) -> ClientData:
    """Random images and labels from (seed, client): the same for every contender and number of ranks."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + client)
    images = torch.randn(NUM_SAMPLES, IMAGE_SIZE, IMAGE_SIZE, 3, generator=generator)
    labels = torch.randint(NUM_CLASSES, (NUM_SAMPLES,), generator=generator)
    return ClientData(images, labels)


def draw_cohort(round_index: int, num_clients: int, seed: int) -> list[int]:
    """The clients of a round, without repetition; a function of (seed, round) alone."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + round_index)
    cohort: list[int] = torch.randperm(num_clients, generator=generator)[:COHORT_SIZE].tolist()
    return cohort


def parser(description: str | None) -> argparse.ArgumentParser:
    """The arguments that every contender takes."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--model", choices=sorted(CHANNELS), default="cnn")
    made.add_argument("--ranks", type=int, choices=(1, 2), default=2)
    made.add_argument("--rounds", type=int, default=8)
    made.add_argument("--precision", choices=sorted(PRECISIONS), default="float32")
    made.add_argument("--num-clients", type=int, default=100)
    made.add_argument("--seed", type=int, default=0)
    return made


def parse(made: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse and check what argparse cannot.

    Raises: SystemExit with the reason, as argparse does.
    """
    arguments = made.parse_args()
    if arguments.num_clients < COHORT_SIZE:
        made.error(
            f"--num-clients {arguments.num_clients} is less than the cohort of {COHORT_SIZE}; set {COHORT_SIZE} or more"
        )
    if arguments.rounds < 2:
        made.error(f"--rounds {arguments.rounds} leaves no steady round after the first; set 2 or more")
    return arguments


def announce_round(number: int) -> None:
    """Tell the driver that round `number` (from 1) has ended, so that it measures memory while rounds are steady."""
    print(json.dumps({"round": number}), flush=True)


def report(
    contender: str, arguments: argparse.Namespace, seconds_per_round: list[float], packages: tuple[str, ...] = ()
) -> None:
    """Print the contender's one result line (its format is in benchmarks/README.md).

    Raises: ValueError when the number of times is not the number of rounds.
    """
    if len(seconds_per_round) != arguments.rounds:
        raise ValueError(
            f"{contender} timed {len(seconds_per_round)} rounds but --rounds is {arguments.rounds}; time each round"
        )
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    versions |= {name: version(name) for name in packages}
    result = {
        "contender": contender,
        "model": arguments.model,
        "ranks": arguments.ranks,
        "precision": arguments.precision,
        "num_clients": arguments.num_clients,
        "seconds_per_round": [round(seconds, 5) for seconds in seconds_per_round],
        "pss_mib": None,  # the driver measures it from outside
        "versions": versions,
    }
    print(json.dumps(result), flush=True)
