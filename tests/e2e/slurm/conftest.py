"""Tests here talk to the Slurm of slurm/local_cluster.sh, never to another one."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest


@pytest.fixture(scope="session")
def cluster() -> None:
    """Skips unless SLURM_CONF points to a local cluster that answers."""
    how = 'use `make test-slurm`, or eval "$(slurm/local_cluster.sh up)" first'
    if "SLURM_CONF" not in os.environ or shutil.which("scontrol") is None:
        pytest.skip(f"no local Slurm: {how}")
    answer = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, check=False, timeout=30)
    found = [line.split() for line in answer.stdout.splitlines()]
    if ["ClusterName", "=", "local"] not in found:
        pytest.skip(f"{os.environ['SLURM_CONF']} is not the local cluster, or it does not answer: {how}")
