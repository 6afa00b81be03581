"""Pure functions from predictions to numbers. They know tensors, neither models nor clients."""
