"""Fuzzing of what reads files: packed HDF5, checkpoints, configs. `python -m tests.fuzz --help`."""
