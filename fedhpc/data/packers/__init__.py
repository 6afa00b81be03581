"""One module per kind of raw dataset; each writes a packed file (see :mod:`fedhpc.data.hdf5`)."""
