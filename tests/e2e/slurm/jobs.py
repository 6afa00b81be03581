"""Jobs on the local cluster, as users submit them: sbatch, srun, scancel, scontrol."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from tests.conftest import ROOT

PATIENCE_S = 400.0  # machines that test are busy
DONE = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


def environment() -> dict[str, str]:
    """Of the checkout under test; as root, which mpirun has to be told."""
    as_root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return {
        **os.environ, **as_root, "FEDHPC_ROOT": str(ROOT), "PYTHON": sys.executable, "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip


def call(folder: Path, *command: str) -> str:
    """Standard output; fails with the standard error."""
    done = subprocess.run(
        command, cwd=folder, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def sbatch(folder: Path, name: str, *arguments: str, options: tuple[str, ...] = ()) -> str:
    """Job id of slurm/NAME.sbatch; its output goes into FOLDER/slurm-JOB-NAME.out."""
    script = str(ROOT / "slurm" / f"{name}.sbatch")
    out = call(folder, "sbatch", "--parsable", "--output=job-%j.out", *options, script, *arguments)
    return out.strip()


def show(job: str) -> dict[str, str]:
    """What `scontrol show job` says of a job that is no array."""
    text = call(Path(), "scontrol", "show", "job", "--oneliner", job)
    return dict(re.findall(r"(\w+)=(\S*)", text))


def wait_for_end(folder: Path, job: str) -> str:
    """The job's output, once Slurm is done with it."""
    deadline = time.monotonic() + PATIENCE_S
    while (state := show(job))["JobState"] not in DONE or state["EndTime"] == "Unknown":
        assert time.monotonic() < deadline, (state, output(folder, job))
        time.sleep(0.5)
    return output(folder, job)


def output(folder: Path, job: str) -> str:
    path = folder / f"job-{job}.out"
    return path.read_text() if path.exists() else ""


def rounds_of(run_dir: Path) -> int:
    """Finished rounds, by metrics.jsonl."""
    metrics = run_dir / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.exists() else 0


def process_of_rank(job: str, rank: int) -> int:
    """On this machine, which is both nodes."""
    wanted = {f"SLURM_JOB_ID={job}".encode(), f"SLURM_PROCID={rank}".encode()}
    for entry in Path("/proc").iterdir():
        try:
            command, variables = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        is_step = any(variable.startswith(b"SLURM_STEP_ID=") for variable in variables)
        if b"launch/train.py" in command and not command.startswith(b"srun") and is_step and wanted <= set(variables):
            return int(entry.name)
    raise AssertionError(f"job {job} has no rank {rank} here")
