"""Exact sums, plain and masked: writes benchmarks/results/collectives_<hardware>_<date>.md and .json.

    python benchmarks/collectives/run.py [--repetitions 3] [--hardware 2-cores]

Everything is repeated, one kind after the other, so that what slows the machine for a while slows all of them; ratios
are taken within a repetition.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import cryptography
import measure
import torch

RESULTS = Path(__file__).resolve().parents[1] / "results"
SIZES = (13, 128)  # MiB
CLIENTS = (10, 32, 100, 320, 1000)
NUM_PAIRS = 12


def collect(repetitions: int) -> dict[str, Any]:
    """All numbers, by repetition."""
    found: dict[str, list[Any]] = {"plain": [], "rounds": [], "streams": [], "clients": []}
    with tempfile.TemporaryDirectory() as name:
        config = measure.workload(Path(name))
        found["rounds"] = measure.on_ranks(2, measure.rounds, str(config), name, NUM_PAIRS)
    for _ in range(repetitions):
        found["streams"].append(measure.streams())
        found["plain"].append({size: measure.on_ranks(2, measure.plain, size, 5) for size in SIZES})
        found["clients"].append({n: measure.on_ranks(2, measure.masked, n, 1024, 1) for n in CLIENTS})
        print("one repetition done", file=sys.stderr, flush=True)
    return found


def spread(values: list[float]) -> str:
    return f"**{median(values):.2f}** ({', '.join(f'{v:.2f}' for v in values)})"


def markdown(document: dict[str, Any]) -> str:
    """The report."""
    found = document["found"]
    lines = [
        f"# Collectives on {document['hardware']}, {document['date']}",
        "",
        f"{document['repetitions']} interleaved repetitions, 2 gloo ranks of one thread, {document['cpu']}, "
        f"{os.cpu_count()} cores. Load average before {document['load_before']}, after {document['load_after']}: the "
        f"machine was shared, so read the ratios. torch {torch.__version__}, cryptography {cryptography.__version__}. "
        f"Commit {document['commit']}.",
        "",
        "Ratios are taken within a repetition; bold is the median.",
        "",
        "## A plain exact sum beside a raw all_reduce of the same bytes",
        "",
        "| MiB of int64 | raw, GB/s | all_sum: bandwidth against raw | 5 clients a rank encoded, summed, decoded |",
        "| --- | --- | --- | --- |",
    ]
    for size in SIZES:
        runs = [run[size] for run in found["plain"]]
        rate = median(size * 2**20 / run["raw"] / 1e9 for run in runs)
        ratios = [run["raw"] / run["all_sum"] for run in runs]
        whole = [run["whole"] / run["raw"] for run in runs]
        lines.append(f"| {size} | {rate:.2f} | {spread(ratios)} | {spread(whole)} times raw |")
    lines += [
        "",
        "## A masked round beside a plain one",
        "",
        "The workload of benchmarks/rounds: cnn (1,626,442 parameters), 10 clients a round, 2 ranks. Masks are put on "
        f"and taken off within one run, the same clients in both rounds of a pair; {len(found['rounds'])} pairs after "
        "the first. Processor seconds are rank 0's.",
        "",
        "| | plain | masked | masked / plain |",
        "| --- | --- | --- | --- |",
    ]
    for place, name in enumerate(("s a round, wall", "s a round, processor")):
        plain, masked = ([pair[how][place] for pair in found["rounds"]] for how in ("plain", "masked"))
        ratios = [m / p for m, p in zip(masked, plain, strict=True)]
        lines.append(f"| {name} | {spread(plain)} | {spread(masked)} | {spread(ratios)} |")
    made, openssl = ([run[kind] for run in found["streams"]] for kind in ("add_streams", "openssl"))
    ratios = [m / o for m, o in zip(made, openssl, strict=True)]
    lines += [
        "",
        "## Mask words",
        "",
        "| made and added, GB a processor second | openssl speed aes-128-ctr | against openssl |",
        "| --- | --- | --- |",
        f"| {spread(made)} | {spread(openssl)} | {spread(ratios)} |",
        "",
        "## Keys and shares against the number of clients",
        "",
        "One exchange of 1,024 words on 2 ranks, so that only the protocol costs. Up to 49 clients all are neighbours; "
        "above, each has 8 log2 n, rounded up.",
        "",
        "| clients | s, wall | s, processor of rank 0 | KiB of keys and shares | processor microseconds / (n log2 n) |",
        "| --- | --- | --- | --- | --- |",
    ]
    for n in CLIENTS:
        seconds, processor = ([run[n][kind] for run in found["clients"]] for kind in ("seconds", "cpu_seconds"))
        scaled = median(processor) / (n * math.log2(n)) * 1e6
        handed = found["clients"][0][n]["mask_bytes"] / 1024
        lines.append(f"| {n} | {median(seconds):.3f} | {median(processor):.3f} | {handed:.0f} | {scaled:.1f} |")
    return "\n".join([*lines, "", "```", document["command"], "```", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--hardware", default=f"{os.cpu_count()}-cores")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    before = os.getloadavg()
    found = collect(arguments.repetitions)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=RESULTS).stdout
    cpu = next(line.split(":")[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line)
    document = {
        "hardware": arguments.hardware,
        "date": datetime.date.today().isoformat(),
        "repetitions": arguments.repetitions,
        "cpu": cpu.strip(),
        "python": platform.python_version(),
        "load_before": [round(x, 1) for x in before],
        "load_after": [round(x, 1) for x in os.getloadavg()],
        "commit": commit.strip(),
        "command": f"python benchmarks/collectives/run.py --repetitions {arguments.repetitions}",
        "sizes": SIZES,
        "found": found,
    }
    stem = f"collectives_{arguments.hardware}_{document['date']}"
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / f"{stem}.json").write_text(json.dumps(document, indent=1))
    (arguments.output / f"{stem}.md").write_text(markdown(document))
    print(markdown(document))


if __name__ == "__main__":
    main()
