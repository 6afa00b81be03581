"""The round loop, and all that an algorithm sees of the cluster."""
