"""fedhpc: federated learning over medical data, on torch.distributed, without a server process."""

__version__ = "0.1.0"
