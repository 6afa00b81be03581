#!/usr/bin/env python
"""N ranks on this machine, without torchrun: launch/local.py N CONFIG [key=value ...] [--run-dir DIR]"""

from __future__ import annotations

import sys

from fedhpc.cli import app

if __name__ == "__main__":
    if len(sys.argv) < 3 or not sys.argv[1].isdigit():
        sys.exit(__doc__)
    app(["run", *sys.argv[2:], "--ranks", sys.argv[1]])
