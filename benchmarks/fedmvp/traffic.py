"""What a client hands over in a round, from the ledger: against clients, rows of a client and public rows.

    python benchmarks/fedmvp/traffic.py OUT

One-round runs of configs/smoke/fedmvp.yaml on generated data. An exchange has the length of one client's values, so a
round of N clients moves N times what is shown.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

CONFIG = Path(__file__).parents[2] / "configs" / "smoke" / "fedmvp.yaml"
ALGORITHMS = {
    "fedavg": "{name: fedavg}",
    "fedmvp, cka: linear": "{name: fedmvp, cka: linear}",
    "fedmvp, cka: unbiased_minibatch": "{name: fedmvp, cka: unbiased_minibatch}",
    "creamfl": "{name: creamfl}",
}
SETTINGS = {  # clients, patients, public rows
    "4 clients": (4, 200, 40),
    "8 clients": (8, 200, 40),
    "twice the rows": (4, 400, 40),
    "twice the public rows": (4, 200, 80),
}
FEW = ("rounds=1", "evaluation.every=null", "report.plots=false", "report.tensorboard=false", "~fit.epochs")


def main() -> None:
    out = Path(sys.argv[1])
    print("| algorithm |", " | ".join(SETTINGS), "|\n|---|" + "---|" * len(SETTINGS))
    for name, algorithm in ALGORITHMS.items():
        cells = []
        for place, (clients, patients, public) in enumerate(SETTINGS.values()):
            data = (f"data.path={out / f'phantom_{patients}.h5'}", f"data.phantom.num_patients={patients}")
            shape = (f"partition.num_clients={clients}", f"public.size={public}", "fit.steps=1")
            held = ("objective={name: fedmvp}",) if algorithm == "{name: fedavg}" else ()
            folder = out / f"{name.split()[-1]}_{place}"
            run([*FEW, *data, *shape, *held, f"algorithm={algorithm}"], folder)
            cells.append(f"{per_client(folder):,}")
        print(f"| {name} |", " | ".join(cells), "|", flush=True)


def run(overrides: list[str], folder: Path) -> None:
    import torch

    from fedhpc.config.load import load_config
    from fedhpc.task import RunTask

    config = load_config(CONFIG, overrides)
    torch.set_num_threads(config.runtime.threads_per_rank)
    RunTask(config, folder)()


def per_client(folder: Path) -> int:
    """Bytes that a client put into sums in the run's only round."""
    page = json.loads((folder / "ledger.jsonl").read_text().splitlines()[0])
    return sum(entry["num_bytes"] for entry in page["entries"] if entry["operation"] in ("sum", "reduce", "mean"))


if __name__ == "__main__":
    main()
