"""Arrays as bytes of ``.npy`` files, the format in Flower's records."""

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
    """Return the array in the bytes of an ``.npy`` file without copying it.

    Parameters
    ----------
    data : bytes
        The output of ``numpy.save``, as in Flower's Array.

    Returns
    -------
    array
        A read-only view into `data`.

    Raises
    ------
    WireError
        If the bytes are not such a file, or do not match its header. Allocates nothing based on
        the header alone.

    Examples
    --------
    >>> read_npy(write_npy(np.array([1.0, 2.0]))).tolist()
    [1.0, 2.0]
    """
    try:
        return _parse_npy(data)
    # The header is a Python literal, which can fail to parse in ways that numpy does not catch.
    except Exception as error:
        raise WireError(f"not in .npy format: {error}") from error


def write_npy(array: NDArray[Any]) -> bytes:
    """Return an array as bytes of an ``.npy`` file with one copy; ``numpy.save`` makes two.

    Parameters
    ----------
    array : array
        The array.

    Returns
    -------
    bytes
        Input for `read_npy`.
    """
    array, header = np.asarray(array, order="C"), BytesIO()
    npy.write_array_header_1_0(header, npy.header_data_from_array_1_0(array))
    return b"".join((header.getvalue(), array.data))


def _parse_npy(data: bytes) -> NDArray[Any]:
    length_bytes = 2 if data[6:7] == b"\x01" else 4
    start = 8 + length_bytes + int.from_bytes(data[8 : 8 + length_bytes], "little")
    if start > _LONGEST_HEADER:
        raise ValueError(f"its header claims {start} bytes, more than {_LONGEST_HEADER}")
    shape, fortran_order, dtype = _parse_npy_header(data[:start])
    if prod(shape) * dtype.itemsize != len(data) - start:
        raise ValueError(f"its header claims {dtype} of shape {shape}, its bytes do not match")
    flat = np.frombuffer(data, dtype=dtype, count=prod(shape), offset=start)
    return flat.reshape(shape, order="F" if fortran_order else "C")


@lru_cache(maxsize=256)  # parsing takes 0.1 ms, and all clients send the same headers
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
