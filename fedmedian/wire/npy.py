"""Arrays as the bytes of ``.npy`` files, the form in which Flower's records carry them."""

from functools import lru_cache
from io import BytesIO
from math import prod
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from fedmedian.wire.scalars import WireError

_LONGEST_HEADER = 10_000
"""numpy's own limit, in bytes."""


def read_npy(data: bytes) -> NDArray[Any]:
    """Return the array in the bytes of an ``.npy`` file, without copying it.

    Parameters
    ----------
    data : bytes
        What ``numpy.save`` writes, as Flower's Array carries it.

    Returns
    -------
    array
        A read-only view into `data`.

    Raises
    ------
    WireError
        If the bytes are not such a file, or are fewer or more than its header says; nothing
        is allocated on the header's word.
    """
    try:
        return _parse_npy(data)
    # The header is a Python literal, which fails to parse in more ways than numpy translates.
    except Exception as error:
        raise WireError(f"not in .npy format: {error}") from error


def write_npy(array: NDArray[Any]) -> bytes:
    """Return an array as the bytes of an ``.npy`` file, copied once; ``numpy.save`` copies twice.

    Parameters
    ----------
    array : array
        The array.

    Returns
    -------
    bytes
        What `read_npy` reads.
    """
    array, header = np.asarray(array, order="C"), BytesIO()
    npy.write_array_header_1_0(header, npy.header_data_from_array_1_0(array))
    return b"".join((header.getvalue(), array.data))


def _parse_npy(data: bytes) -> NDArray[Any]:
    length_bytes = 2 if data[6:7] == b"\x01" else 4
    start = 8 + length_bytes + int.from_bytes(data[8 : 8 + length_bytes], "little")
    if start > _LONGEST_HEADER:
        raise ValueError(f"its header is said to have {start} bytes")
    shape, fortran_order, dtype = _parse_npy_header(data[:start])
    if prod(shape) * dtype.itemsize != len(data) - start:
        raise ValueError(f"it is said to be {dtype} of shape {shape}, its bytes are not that")
    flat = np.frombuffer(data, dtype=dtype, count=prod(shape), offset=start)
    return flat.reshape(shape, order="F" if fortran_order else "C")


@lru_cache(maxsize=256)  # parsing takes 0.1 ms, and all clients' headers are alike
def _parse_npy_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    file = BytesIO(header)
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"its version is {version}")
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran_order, dtype = read_header(file)
    if dtype.hasobject or min(shape, default=0) < 0:
        raise ValueError(f"it cannot be {dtype} of shape {shape}")
    return shape, fortran_order, dtype
