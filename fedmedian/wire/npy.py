"""Arrays as bytes of ``.npy`` files, the format in Flower's records."""

import ctypes
import sys
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

_RAW = np.dtype("V2")
"""How bfloat16 is stored in the .npy format, which has no name for it."""


def bfloat16() -> np.dtype[Any]:
    """Return the dtype bfloat16.

    Raises
    ------
    WireError
        If ml_dtypes, which has it, is not installed.
    """
    try:
        import ml_dtypes  # only where a model needs it
    except ModuleNotFoundError as error:
        raise WireError(
            "bfloat16, which needs ml_dtypes: pip install ml_dtypes, or cast to float32"
        ) from error
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


def is_floating(dtype: np.dtype[Any]) -> bool:
    """Return whether a dtype is of real floating-point numbers, bfloat16 included."""
    return np.issubdtype(dtype, np.floating) or dtype.name == "bfloat16"


def as_numbers(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array as it was before it was stored: bfloat16 comes back as raw bytes.

    Raises
    ------
    WireError
        As for `bfloat16`.
    """
    return array.view(bfloat16()) if array.dtype == _RAW else array


def bytes_of(array: NDArray[Any]) -> memoryview:
    """Return an array's bytes in order, without a copy if it is contiguous."""
    # Bytes of their own dtype: bfloat16 has no buffer.
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


_HUGE, _PAGE, _MADV_HUGEPAGE = 1 << 22, 1 << 12, 14


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
        the header alone. Also as for `bfloat16`.

    Examples
    --------
    >>> read_npy(write_npy(np.array([1.0, 2.0]))).tolist()
    [1.0, 2.0]
    """
    try:
        array = _parse_npy(data)
    # The header is a Python literal, which can fail to parse in ways that numpy does not catch.
    except Exception as error:
        raise WireError(f"not in .npy format: {error}") from error
    return as_numbers(array)


def write_npy(array: NDArray[Any]) -> bytes:
    """Return an array as bytes of an ``.npy`` file with one copy; ``numpy.save`` makes two.

    An array that `read_npy` or `NewArray.finish` has returned is not copied.

    Parameters
    ----------
    array : array
        The array.

    Returns
    -------
    bytes
        Input for `read_npy`.
    """
    array = np.asarray(array, order="C")
    file = _file_of(array)
    return b"".join((_header(array.shape, array.dtype), bytes_of(array))) if file is None else file


class NewArray:
    """An array under construction, in the bytes of the ``.npy`` file that it will be sent as.

    Parameters
    ----------
    shape : tuple of int
        Its shape.
    dtype : numpy.dtype
        Its dtype.

    Attributes
    ----------
    flat : (n,) array
        Its entries, to be written to.

    Examples
    --------
    >>> new = NewArray((2,), np.dtype(np.float32))
    >>> new.flat[:] = 1
    >>> array = new.finish()
    >>> write_npy(array) is write_npy(array)
    True
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        header, size = _header(shape, dtype), prod(shape)
        # Zeros take no memory before they are written to.
        self._file = BytesIO(bytes(len(header) + size * dtype.itemsize))
        self._file.write(header)
        self.flat: NDArray[Any] = np.frombuffer(
            self._file.getbuffer(), dtype, count=size, offset=len(header)
        )
        if self.flat.nbytes >= _HUGE:
            _use_huge_pages(self.flat)

    def finish(self) -> NDArray[Any]:
        """Return the array, read-only; `flat` is gone."""
        del self.flat
        # Without a copy, as the memory has no other user.
        return read_npy(self._file.getvalue())


def _use_huge_pages(array: NDArray[Any]) -> None:
    """Ask Linux for huge pages, as NumPy does for its arrays of this size.

    Writing to new memory in pages of 4 KiB takes three times as long.
    """
    if sys.platform == "linux":
        start = -(-array.ctypes.data // _PAGE) * _PAGE
        length = array.ctypes.data + array.nbytes - start
        advise = ctypes.CDLL(None).madvise
        advise(ctypes.c_void_p(start), ctypes.c_size_t(length), _MADV_HUGEPAGE)


def _header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    header, shown = BytesIO(), npy.dtype_to_descr(dtype)
    npy.write_array_header_1_0(header, {"descr": shown, "fortran_order": False, "shape": shape})
    return header.getvalue()


def _file_of(array: NDArray[Any]) -> bytes | None:
    """Return the bytes of the ``.npy`` file that an array is all of, if there are any."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if type(owner) is not bytes:
        return None
    try:
        held = read_npy(owner)
    except WireError:  # other bytes
        return None
    is_same = held.__array_interface__ == array.__array_interface__
    return owner if is_same else None


def _parse_npy(data: bytes) -> NDArray[Any]:
    length_bytes = 2 if data[6:7] == b"\x01" else 4
    start = 8 + length_bytes + int.from_bytes(data[8 : 8 + length_bytes], "little")
    if start > _LONGEST_HEADER:
        raise ValueError(f"its header claims {start} bytes, more than {_LONGEST_HEADER}")
    shape, fortran_order, dtype = _parse_npy_header(data[:start])
    if prod(shape) * dtype.itemsize != len(data) - start:
        raise ValueError(f"its header claims {dtype} of shape {shape}, but its bytes do not match")
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
