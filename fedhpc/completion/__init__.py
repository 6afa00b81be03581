"""What is computed from a packed file before training, and kept beside it: frozen features, completed rows."""
