"""Collectives over tensors and ranks. The only package, with client/zero.py and runtime.py, that imports torch.distributed."""
