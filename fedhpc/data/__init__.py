"""Packed datasets: one HDF5 file each, how it is written, read, generated and dealt to clients."""
