"""Stop glibc from handing freed memory back between steps."""

from __future__ import annotations

import ctypes
import platform

# Parameter numbers of mallopt(3).
TRIM_THRESHOLD = -1
MMAP_THRESHOLD = -3
# The largest mmap threshold that glibc takes on 64 bits is 32 MiB; more is refused.
MMAP_BYTES = 32 * 2**20
TRIM_BYTES = 2**30


def keep_heap() -> None:
    """Keep up to 1 GiB of freed memory in the process, for the rest of its life.

    What `cnn` frees at the end of a step is enough for glibc to shrink the heap and to grow it again in the next step:
    430 to 1140 page faults a step were counted in the bare loop, up to a tenth of the round. How many depends on what
    else happens to lie on the heap, so that without this call two loops that do the same work differ by chance.

    Raises: RuntimeError where the C library is not glibc or refuses.
    """
    if platform.libc_ver()[0] != "glibc":
        raise RuntimeError(
            f"keeping the heap needs glibc, this is {platform.libc_ver()[0] or 'unknown'}; leave it out here"
        )
    mallopt = ctypes.CDLL(None).mallopt
    for parameter, value in ((MMAP_THRESHOLD, MMAP_BYTES), (TRIM_THRESHOLD, TRIM_BYTES)):
        if mallopt(parameter, value) != 1:
            raise RuntimeError(f"mallopt({parameter}, {value}) was refused by {' '.join(platform.libc_ver())}")
