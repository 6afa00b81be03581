#!/usr/bin/env python
"""What every rank runs: torchrun --nproc-per-node 4 launch/train.py CONFIG [key=value ...] [--run-dir DIR]

The same as `fedhpc run` in each process. srun, mpirun and torchrun tell it which rank it is (docs/cluster.md).
"""

from __future__ import annotations

import sys

from fedhpc.cli import app

if __name__ == "__main__":
    app(["run", *sys.argv[1:]])
