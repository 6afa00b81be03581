"""One federated method a file: one round, written over per-client values."""
