#!/usr/bin/env python
"""A run as a Slurm job, the same as `fedhpc submit`: launch/submit.py CONFIG --cluster FILE [key=value ...]"""

from __future__ import annotations

import sys

from fedhpc.cli import app

if __name__ == "__main__":
    app(["submit", *sys.argv[1:]])
