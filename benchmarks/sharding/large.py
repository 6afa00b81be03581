"""A model of 300 million parameters through two rounds on four CPU ranks, and the memory of all processes together.

    nice -n 10 python benchmarks/sharding/large.py --run-dir DIR [--out benchmarks/results/NAME] [KEY=VALUE ...]

Memory is what Linux charges to the run: the proportional set size of all of its processes (a page that four ranks share
counts once), sampled every second. Needs 20 GiB, and minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GIB = 1 << 30


def family(parent: int) -> list[int]:
    """A process and all below it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                ppid = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(ppid, []).append(int(entry.name))
    found, todo = [], [parent]
    while todo:
        found.append(todo.pop())
        todo += children.get(found[-1], [])
    return found


def proportional(process: int) -> int:
    """Bytes; 0 for a process that has just ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    command = [sys.executable, "-m", "fedhpc.cli", "run", str(ROOT / "benchmarks" / "sharding" / "large.yaml")]
    command += [*args.overrides, f"data.path={args.run_dir / 'phantom.h5'}", "--run-dir", str(args.run_dir)]
    args.run_dir.mkdir(parents=True, exist_ok=True)
    start, load = time.perf_counter(), os.getloadavg()[0]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    samples = []
    with subprocess.Popen([*command, "--ranks", "4"], env=environment) as process:
        while process.poll() is None:
            sizes = sorted((proportional(p) for p in family(process.pid)), reverse=True)
            samples.append((time.perf_counter() - start, sum(sizes), sizes[0]))
            time.sleep(1.0)
    if process.returncode:
        sys.exit(process.returncode)
    from safetensors import safe_open

    count = 0
    for path in sorted((args.run_dir / "checkpoints").glob("*/shared.shard_*.safetensors")):
        with safe_open(path, framework="pt") as file:
            sizes = [file.get_slice(key).get_shape()[0] for key in file.keys()]  # noqa: SIM118
            count += sum(sizes)
    rounds = [json.loads(line) for line in (args.run_dir / "metrics.jsonl").read_text().splitlines()]
    pages = [json.loads(line) for line in (args.run_dir / "ledger.jsonl").read_text().splitlines()]
    result = {
        "parameters_exchanged": count,
        "ranks": 4,
        "peak_gib_of_all": max(total for _, total, _ in samples) / GIB,
        "peak_gib_of_a_process": max(largest for _, _, largest in samples) / GIB,
        "seconds": time.perf_counter() - start,
        "seconds_a_round": [r["seconds"] for r in rounds],
        "losses": [r["loss"] for r in rounds],
        "reduced_bytes_of_rank_0": [
            sum(e["num_bytes"] for e in p["entries"] if e["operation"] == "reduce") for p in pages
        ],
        "load_at_start": load,
        "gib_by_second": [[round(t), round(total / GIB, 2)] for t, total, _ in samples],
        "overrides": args.overrides,
    }
    print(json.dumps({k: v for k, v in result.items() if k != "gib_by_second"}, indent=1))
    if args.out is not None:
        args.out.with_suffix(".json").write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
