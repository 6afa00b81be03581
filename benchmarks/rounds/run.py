"""Run the contenders side by side, interleaved, and write benchmarks/results/rounds_<hardware>_<date>.md and .json.

python benchmarks/rounds/run.py --contenders bare,bare_heap,pfl,pfl_tuned,fedhpc --repetitions 3
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from contenders import FOLDER, PFL_PYTHON, Cell, Contender, choose, choose_cells
from processes import process_tree, tree_cpu_seconds, tree_pss_mib
from summary import markdown, steady

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 600  # seconds for one run
# One thread a process whatever the contender sets; gloo on the loopback, where the host's name may not resolve.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONUNBUFFERED": "1"}


def run_contender(contender: Contender, cell: Cell, arguments: argparse.Namespace) -> dict[str, Any]:
    """One run of one contender: its result line with what is measured from outside added.

    Processor seconds are read when rounds 1 and rounds - 1 end. Memory is sampled once, when round rounds // 2 ends: at
    most one round pays for it.

    Raises: RuntimeError with the end of its error output when the contender fails or prints no valid result.
    """
    command = contender.command(cell, arguments.ranks, arguments.rounds, arguments.num_clients)
    start = [sys.executable if command[0] == "python" else str(ROOT / command[0]), *command[1:]]
    sample_at = max(2, arguments.rounds // 2)
    memory: tuple[float, int] | None = None
    processor: dict[int, float] = {}
    result: dict[str, Any] | None = None
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            start,
            cwd=ROOT,
            env=os.environ | ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        guard = threading.Timer(TIMEOUT, stop, (process,))
        guard.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                said = parse_line(line)
                if said.get("round") in (1, arguments.rounds - 1):
                    processor[said["round"]] = tree_cpu_seconds(process.pid)
                if said.get("round") == sample_at:
                    memory = tree_pss_mib(process.pid)
                if "contender" in said:
                    result = said
            code = process.wait()
        finally:
            guard.cancel()
            stop(process)
        errors.seek(0)
        tail = errors.read()[-4000:]
    shown = shlex.join(command)
    if code != 0 or result is None:
        raise RuntimeError(f"{shown}\nended with {code}, result line: {result is not None}\n{tail}")
    check_result(result, contender, cell, arguments, shown)
    pss, processes = memory or (None, 0)
    if pss is None:
        print(
            f"warning: {contender.name} never announced round {sample_at}: its memory is not measured", file=sys.stderr
        )
    result |= {
        "pss_mib": None if pss is None else round(pss, 1),
        "processes": processes,
        "cpu_seconds_per_round": per_round(processor, arguments.rounds),
        "wall_seconds": round(time.monotonic() - began, 2),
        "command": command,
    }
    return result


def stop(process: subprocess.Popen[str]) -> None:
    """End a contender and all that it started, if it still runs; only processes of its own tree are signalled."""
    if process.poll() is not None:
        return
    tree = process_tree(process.pid)
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in tree[1:]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def per_round(processor: dict[int, float], rounds: int) -> float | None:
    """Processor seconds of one steady round, of all processes; None when a round was not announced."""
    if not {1, rounds - 1} <= processor.keys():
        return None
    return round((processor[rounds - 1] - processor[1]) / (rounds - 2), 4)


def parse_line(line: str) -> dict[str, Any]:
    """A JSON object printed by a contender, or an empty dict for any other line."""
    if not line.startswith("{"):
        return {}
    try:
        said = json.loads(line)
    except json.JSONDecodeError:
        return {}
    assert isinstance(said, dict)
    return said


def check_result(
    result: dict[str, Any], contender: Contender, cell: Cell, arguments: argparse.Namespace, shown: str
) -> None:
    """Refuse a result that is not of the run that was asked for.

    Raises: RuntimeError naming the field.
    """
    expected = {
        "contender": contender.name,
        "model": cell.model,
        "ranks": arguments.ranks,
        "precision": contender.precision(cell),
        "num_clients": arguments.num_clients,
    }
    for key, value in expected.items():
        if result.get(key) != value:
            raise RuntimeError(f"{shown}\nreported {key} {result.get(key)!r}, not {value!r}")
    if len(result.get("seconds_per_round", [])) != arguments.rounds:
        raise RuntimeError(f"{shown}\nreported {result.get('seconds_per_round')}, not {arguments.rounds} rounds")


def run_all(contenders: list[Contender], cells: list[Cell], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All runs: cell by cell, contenders next to each other, and the first to run changes with every repetition."""
    runs: list[dict[str, Any]] = []
    for repetition in range(arguments.repetitions):
        shift = repetition % len(contenders)
        done: set[tuple[str, str, str]] = set()
        for cell in cells:
            for contender in contenders[shift:] + contenders[:shift]:
                key = (contender.name, cell.model, contender.precision(cell))
                if key in done:
                    continue  # float32 only: its float32 run of this repetition stands for this cell too
                done.add(key)
                result = run_contender(contender, cell, arguments) | {"repetition": repetition}
                runs.append(result)
                print(
                    f"repetition {repetition + 1}/{arguments.repetitions}  {cell.model} {result['precision']}  "
                    f"{contender.name}: {steady(result):.3f} s/round, first {result['seconds_per_round'][0]:.2f} s, "
                    f"PSS {result['pss_mib']} MiB in {result['processes']} processes",
                    flush=True,
                )
    return runs


def cpu_name() -> str:
    """The processor's model name."""
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


def describe_machine(hardware: str) -> dict[str, Any]:
    """What of the machine matters to the numbers; no host or user name."""
    return {
        "hardware": hardware,
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "kernel": platform.release(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def git_commit() -> str:
    """The commit, with `-dirty` when tracked files differ from it."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return described.stdout.strip()


def parse_arguments() -> tuple[argparse.Namespace, list[Contender], list[Cell]]:
    """Arguments, checked before anything runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contenders", default="bare,pfl,fedhpc", help="also: bare_heap, pfl_tuned")
    parser.add_argument("--models", default="cnn,tiny")
    parser.add_argument("--precisions", default="float32,bfloat16", help="bfloat16 is run with cnn only")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--ranks", type=int, choices=(1, 2), default=2)
    parser.add_argument("--num-clients", type=int, default=100)
    parser.add_argument("--hardware", default=None, help="for the file name; default: the processor and its cores")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the two files")
    arguments = parser.parse_args()
    try:
        contenders = choose(arguments.contenders)
        cells = choose_cells(arguments.models, arguments.precisions)
        if arguments.repetitions < 1 or arguments.rounds < 4:
            raise ValueError(
                f"--repetitions {arguments.repetitions} --rounds {arguments.rounds}: set at least 1 and 4 "
                "(the first round is reported apart, memory and processor time are read in the later ones)"
            )
        for contender in contenders:
            if not (ROOT / FOLDER / contender.script).exists():
                raise ValueError(
                    f"contender {contender.name} needs {FOLDER}/{contender.script}; leave it out of --contenders"
                )
            if contender.python == PFL_PYTHON and not (ROOT / PFL_PYTHON).exists():
                raise ValueError(
                    f"contender {contender.name} needs {PFL_PYTHON}; install it as benchmarks/README.md says"
                )
    except ValueError as error:
        parser.error(str(error))
    if arguments.hardware is None:
        arguments.hardware = f"{cpu_name()} {os.cpu_count()} cores"
    return arguments, contenders, cells


def main() -> None:
    """Run, then write both files; an existing file is never overwritten."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a running contender is ended too
    arguments, contenders, cells = parse_arguments()
    machine = describe_machine(arguments.hardware)
    runs = run_all(contenders, cells, arguments)
    machine["load_after"] = round(os.getloadavg()[0], 2)
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    document = {
        "date": date,
        "commit": git_commit(),
        "command": shlex.join(["python", f"{FOLDER}/run.py", *sys.argv[1:]]),
        "machine": machine,
        "config": {
            "contenders": [contender.name for contender in contenders],
            "cells": [asdict(cell) for cell in cells],
            "repetitions": arguments.repetitions,
            "rounds": arguments.rounds,
            "ranks": arguments.ranks,
            "num_clients": arguments.num_clients,
            "environment": ENVIRONMENT,
        },
        "runs": runs,
    }
    slug = re.sub(r"[^a-z0-9]+", "-", arguments.hardware.lower()).strip("-")
    arguments.output.mkdir(parents=True, exist_ok=True)
    stem = f"rounds_{slug}_{date}"
    number = 1
    while (arguments.output / f"{stem}.json").exists():
        number += 1
        stem = f"rounds_{slug}_{date}_{number}"
    (arguments.output / f"{stem}.json").write_text(json.dumps(document, indent=1) + "\n")
    text = markdown(document)
    (arguments.output / f"{stem}.md").write_text(text)
    print(f"\n{text}\nwrote {stem}.md and {stem}.json")


if __name__ == "__main__":
    main()
