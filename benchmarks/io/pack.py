"""How much sooner `fedhpc pack` is done with several ranks: serial against --ranks N (and mpirun), interleaved.

    python benchmarks/io/pack.py --pictures 2000 --size 1000 --ranks 2 --repetitions 3 [--mpi] [--output FOLDER]

Grey JPEGs of SIZE x SIZE px are packed at 256 px, as chest X-ray archives are (--image-size 0 keeps their size). Every
pack must give the same checksum. Writes pack_<hardware>_<date>.md and .json. Run nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from fedhpc.data.hdf5 import PackedFile

DISTINCT = 50  # pictures; the others are links to them, which costs no disk and as much decoding


def make_pictures(folder: Path, count: int, size: int) -> None:
    """Smooth shapes with some noise, about as large as JPEGs of radiographs are."""
    random = np.random.default_rng(0)
    lines = ["file,set"]
    for k in range(count):
        if k < DISTINCT:
            coarse = Image.fromarray(random.integers(0, 256, (24, 24), dtype=np.uint8)).resize((size, size), 3)
            noisy = np.asarray(coarse, np.float32) + random.normal(0, 6, (size, size))
            buffer = io.BytesIO()
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
            (folder / f"{k}.jpg").write_bytes(buffer.getvalue())
        else:
            os.link(folder / f"{k % DISTINCT}.jpg", folder / f"{k}.jpg")
        lines.append(f"{k}.jpg,{('train', 'val', 'test')[k % 3]}")
    (folder / "rows.csv").write_text("\n".join(lines))


def pack(arm: str, folder: Path, ranks: int, image_size: int) -> tuple[float, str]:
    """Seconds of the whole command, and the checksum."""
    out = folder / f"{arm}.h5"
    command = [sys.executable, "-m", "fedhpc.cli", "pack", "table", str(folder / "rows.csv"), "-o", str(out)]
    command += ["--name", "bench", "--source", "generated", "--licence", "CC0", "--image-column", "file"]
    command += ["--split-column", "set", "--channels", "1", "--overwrite"]
    command += ["--image-size", str(image_size)] if image_size else []
    if arm == "ranks":
        command += ["--ranks", str(ranks)]
    if arm == "mpirun":
        command = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", str(ranks), *command]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    seconds = time.perf_counter() - start
    with PackedFile(out) as packed:
        checksum = packed.checksum
    out.unlink()
    return seconds, checksum


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--size", type=int, default=1000, help="height and width of the raw pictures in pixels")
    parser.add_argument("--image-size", type=int, default=256, help="of the packed ones; 0 keeps their size")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--mpi", action="store_true", help="also under mpirun")
    parser.add_argument("--scratch", type=Path, help="folder for pictures and packed files; default: the system's")
    parser.add_argument("--output", type=Path, help="folder of the report; default: print only")
    arguments = parser.parse_args()
    arms = ["serial", "ranks", *(["mpirun"] if arguments.mpi else [])]
    if arguments.mpi and shutil.which("mpirun") is None:
        sys.exit("--mpi: no mpirun here; apt-get install openmpi-bin, or leave it out")
    measured: dict[str, list[float]] = {arm: [] for arm in arms}
    checksums: set[str] = set()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as name:
        folder = Path(name)
        make_pictures(folder, arguments.pictures, arguments.size)
        kib = sum((folder / f"{k}.jpg").stat().st_size for k in range(DISTINCT)) / DISTINCT / 1024
        pack("serial", folder, 1, arguments.image_size)  # warms the file cache
        for repetition in range(arguments.repetitions):
            turn = repetition % len(arms)
            for arm in arms[turn:] + arms[:turn]:
                seconds, checksum = pack(arm, folder, arguments.ranks, arguments.image_size)
                measured[arm].append(seconds)
                checksums.add(checksum)
                print(f"repetition {repetition + 1}  {arm}: {seconds:.1f} s", flush=True)
    if len(checksums) != 1:
        sys.exit(f"the packs differ: {checksums}")
    write_report(arguments, measured, kib, load)


def write_report(arguments: argparse.Namespace, measured: dict[str, list[float]], kib: float, load: float) -> None:
    root = Path(__file__).parents[2]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=root).stdout.strip()
    hardware = f"{os.cpu_count()}-cores"
    packed = f"{arguments.image_size} px" if arguments.image_size else "their own size"
    lines = [
        f"# Packing on {hardware}, {datetime.date.today()}",
        "",
        f"{arguments.pictures} grey JPEGs of {arguments.size} px ({kib:.0f} KiB each) packed at {packed}; whole "
        f"commands, {arguments.repetitions} interleaved repetitions, commit {commit[:12]}, load before {load:.2f}, "
        f"after {os.getloadavg()[0]:.2f}. All packs have one checksum. Ratios are taken within a repetition.",
        "",
        "| | s (repetitions) | images/s | times as fast as serial, median | repetitions |",
        "|---|---|---|---|---|",
    ]
    ratios = {arm: [a / b for a, b in zip(measured["serial"], runs, strict=True)] for arm, runs in measured.items()}
    names = {"serial": "serial", "ranks": f"--ranks {arguments.ranks}", "mpirun": f"mpirun -n {arguments.ranks}"}
    for arm, runs in measured.items():
        lines.append(
            f"| {names[arm]} | {', '.join(f'{s:.1f}' for s in runs)} | "
            f"{arguments.pictures / statistics.median(runs):.0f} | **{statistics.median(ratios[arm]):.2f}** | "
            f"{', '.join(f'{r:.2f}' for r in ratios[arm])} |"
        )
    given = (
        f"--pictures {arguments.pictures} --size {arguments.size} --image-size {arguments.image_size} --ranks "
        f"{arguments.ranks} --repetitions {arguments.repetitions}{' --mpi' if arguments.mpi else ''}"
    )
    lines += ["", "```", f"python benchmarks/io/pack.py {given}", "```", ""]
    print("\n".join(lines))
    if arguments.output is not None:
        arguments.output.mkdir(parents=True, exist_ok=True)
        stem = arguments.output / f"pack_{hardware}_{datetime.date.today()}"
        stem.with_suffix(".md").write_text("\n".join(lines))
        config = {k: str(v) for k, v in vars(arguments).items()}
        numbers = {"python": platform.python_version(), "commit": commit, "config": config, "seconds": measured}
        stem.with_suffix(".json").write_text(json.dumps({**numbers, "ratios": ratios}, indent=1))


if __name__ == "__main__":
    main()
