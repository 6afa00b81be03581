"""How much differential privacy a run has spent, and where its noise comes from."""
