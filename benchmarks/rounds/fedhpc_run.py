"""The workload through fedhpc's public interface: a packed file, a YAML, `fedhpc run --ranks N`.

    python benchmarks/rounds/fedhpc_run.py --model cnn --ranks 2 --rounds 8 --precision float32 [--num-clients 1000]

Round times are those of metrics.jsonl: from choosing the cohort to the shared weights of the next round on every rank.
"""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import yaml
from workload import (
    BATCH_SIZE,
    COHORT_SIZE,
    LEARNING_RATE,
    NUM_CLASSES,
    NUM_SAMPLES,
    announce_round,
    generate_client,
    parse,
    parser,
    report,
)

from fedhpc.data.writer import PackWriter


def pack(path: Path, num_clients: int, seed: int) -> None:
    """The generated images as bytes (mean 0 and deviation 1 become 128 and 32), a client a label value."""
    rows = num_clients * NUM_SAMPLES
    with PackWriter(path, name="random", source="generated random numbers", licence="CC0-1.0", generated=True) as pack:
        labels = []
        for client in range(num_clients):
            data = generate_client(client, seed)
            pack.add_images((data.images * 32 + 128).round().clamp(0, 255).byte().numpy())
            labels.append(data.labels.numpy())
        pack.set_label("class", np.concatenate(labels).astype(np.int32), [str(c) for c in range(NUM_CLASSES)])
        pack.set_label(
            "client",
            np.repeat(np.arange(num_clients, dtype=np.int32), NUM_SAMPLES),
            [str(c) for c in range(num_clients)],
        )
        pack.set_row_ids([str(row) for row in range(rows)])
        pack.set_split(np.zeros(rows, dtype=np.int8))
        pack.set_present("image", np.ones(rows, dtype=bool))


def config(arguments: Namespace, path: Path) -> dict[str, object]:
    """The run's config; nothing but the workload and what its papers' settings leave open."""
    return {
        "name": f"bench-{arguments.model}",
        "rounds": arguments.rounds,
        "random_seed": arguments.seed,
        "data": {"path": str(path), "label": "class", "image_mean": [0.502], "image_std": [0.1255]},
        "partition": {"kind": "column", "column": "client"},
        "model": {"kind": "classifier", "image": {"name": "cnn" if arguments.model == "cnn" else "cnn_tiny"}},
        "fit": {
            "epochs": 1,
            "batch_size": BATCH_SIZE,
            "precision": arguments.precision,
            "optimizer": {"name": "sgd", "learning_rate": LEARNING_RATE},
        },
        "cohort": {"size": COHORT_SIZE},
        "algorithm": {"name": "fedavg"},
        "checkpoint": {"every": arguments.rounds},
        "report": {"tensorboard": False, "plots": False},
        "runtime": {"device": "cpu", "threads_per_rank": 1},
    }


def main() -> None:
    arguments = parse(parser(__doc__))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # In a process of its own: what packing leaves on the heap is not the run's memory.
        packing = multiprocessing.get_context("spawn").Process(
            target=pack, args=(folder / "random.h5", arguments.num_clients, arguments.seed)
        )
        packing.start()
        packing.join()
        if packing.exitcode:
            sys.exit(f"packing ended with {packing.exitcode}")
        (folder / "run.yaml").write_text(yaml.safe_dump(config(arguments, folder / "random.h5")))
        command = [sys.executable, "-m", "fedhpc.cli", "run", str(folder / "run.yaml")]
        command += ["--run-dir", str(folder / "run"), "--ranks", str(arguments.ranks)]
        log = folder / "log"
        with log.open("w") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out)
            lines: list[str] = []
            announced = 0
            while process.poll() is None or announced < len(lines):
                metrics = folder / "run" / "metrics.jsonl"
                lines = metrics.read_text().splitlines() if metrics.exists() else []
                for number in range(announced, len(lines)):
                    announce_round(number + 1)
                announced = len(lines)
                time.sleep(0.1)
        if process.returncode:
            sys.exit(f"fedhpc run ended with {process.returncode}:\n{log.read_text()}")
        seconds = [json.loads(line)["seconds"] for line in lines]
    report("fedhpc", arguments, seconds)


if __name__ == "__main__":
    main()
