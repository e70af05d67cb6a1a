"""A model's named arrays as one flat vector."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]

RUNNING_STATISTICS = ("*running_mean", "*running_var", "*num_batches_tracked")
"""Name patterns of normalisation layers' buffers, as torch spells them."""


@dataclass(frozen=True)
class ArraySpec:
    """One named array of a model: its shape, its dtype, and whether it is voted on."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    voted: bool

    @property
    def size(self) -> int:
        """The number of entries."""
        return prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """The number of bytes that the entries take in the array's own dtype."""
        return self.size * self.dtype.itemsize


@dataclass(frozen=True)
class Layout:
    """Which arrays a model has, and where each stands in the flat vector of an update.

    Floating-point arrays are *voted*: they make up the flat float32 vector of dimension d, in
    the order of their names in the model. All others, and those whose name matches a pattern,
    are *dense*: they travel in their own dtype, one after the other as bytes.

    Parameters
    ----------
    specs : tuple of ArraySpec
        The model's arrays, in order.
    """

    specs: tuple[ArraySpec, ...]

    @classmethod
    def of(cls, arrays: Arrays, dense: Iterable[str] = RUNNING_STATISTICS) -> "Layout":
        """Return the layout of a model.

        Parameters
        ----------
        arrays : mapping of str to array
            The model's arrays by name.
        dense : iterable of str (default: `RUNNING_STATISTICS`)
            Shell-style patterns of the names of floating-point arrays that are not voted on.

        Returns
        -------
        Layout
            The layout.
        """
        patterns = tuple(dense)
        return cls(
            tuple(
                ArraySpec(
                    name,
                    array.shape,
                    array.dtype,
                    voted=np.issubdtype(array.dtype, np.floating)
                    and not any(fnmatchcase(name, pattern) for pattern in patterns),
                )
                for name, array in arrays.items()
            )
        )

    @classmethod
    def at(cls, arrays: Arrays, dense: Iterable[int]) -> "Layout":
        """Return the layout of a model whose dense arrays somebody else has chosen.

        Parameters
        ----------
        arrays : mapping of str to array
            The model's arrays by name.
        dense : iterable of int
            The positions of the dense arrays, as `dense_positions` of the other's layout.

        Returns
        -------
        Layout
            The layout.

        Raises
        ------
        ValueError
            If a position is none of the model's, or an array that is not of floating point is
            to be voted on.
        """
        positions = set(dense)
        if positions and max(positions) >= len(arrays):
            raise ValueError(f"there is no array {max(positions)} in a model of {len(arrays)}")
        layout = cls(
            tuple(
                ArraySpec(name, array.shape, array.dtype, voted=position not in positions)
                for position, (name, array) in enumerate(arrays.items())
            )
        )
        for spec in layout.voted:
            if not np.issubdtype(spec.dtype, np.floating):
                raise ValueError(f"array {spec.name!r} of {spec.dtype} cannot be voted on")
        return layout

    @property
    def dense_positions(self) -> tuple[int, ...]:
        """Which of the model's arrays are dense, counted from 0."""
        return tuple(position for position, spec in enumerate(self.specs) if not spec.voted)

    @cached_property
    def voted(self) -> tuple[ArraySpec, ...]:
        """The L arrays that are voted on."""
        return tuple(spec for spec in self.specs if spec.voted)

    @cached_property
    def dense(self) -> tuple[ArraySpec, ...]:
        """The arrays that travel in full."""
        return tuple(spec for spec in self.specs if not spec.voted)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """The number of coordinates of each voted array, (L,)."""
        return tuple(spec.size for spec in self.voted)

    @property
    def dim(self) -> int:
        """d, the number of voted coordinates."""
        return sum(self.sizes)

    @property
    def dense_bytes(self) -> int:
        """The number of bytes of all dense arrays together."""
        return sum(spec.num_bytes for spec in self.dense)

    def split(self, flat: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Return views of a flat vector's parts, one per voted array, each (size,)."""
        ends = np.cumsum(self.sizes)
        return [flat[end - size : end] for size, end in zip(self.sizes, ends, strict=True)]

    def named(self, arrays: Arrays) -> Arrays:
        """Give arrays that are named "0", "1", …, as a NumPyClient's are, the model's names."""
        by_position = [str(position) for position in range(len(self.specs))]
        if list(arrays) != by_position:
            return arrays
        return dict(zip((spec.name for spec in self.specs), arrays.values(), strict=True))

    def require_match(self, arrays: Arrays) -> None:
        """Raise unless `arrays` are the arrays of this layout.

        Raises
        ------
        ValueError
            If names, order or shapes differ, naming the first difference.
        """
        if list(arrays) != [spec.name for spec in self.specs]:
            missing = [spec.name for spec in self.specs if spec.name not in arrays]
            extra = sorted(set(arrays) - {spec.name for spec in self.specs})
            if not missing and not extra:
                raise ValueError(f"arrays are not in the model's order: {list(arrays)}")
            raise ValueError(f"arrays differ from the model's: missing {missing}, extra {extra}")
        for spec in self.specs:
            if arrays[spec.name].shape != spec.shape:
                raise ValueError(
                    f"array {spec.name!r} has shape {arrays[spec.name].shape}, "
                    f"the model's is {spec.shape}"
                )

    def difference(self, before: Arrays, after: Arrays) -> NDArray[np.float32]:
        """Return the update `before` − `after` of the voted arrays, which points uphill.

        The difference is taken in each array's own precision and then rounded to float32.

        Parameters
        ----------
        before, after : mapping of str to array
            The model before and after local training, both of this layout.

        Returns
        -------
        (d,) float32
            The update.

        Raises
        ------
        ValueError
            If `after` does not match the layout.
        """
        self.require_match(after)
        update = np.empty(self.dim, dtype=np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # the caller refuses what is not finite
            for part, spec in zip(self.split(update), self.voted, strict=True):
                part[:] = np.subtract(before[spec.name], after[spec.name]).reshape(-1)
        return update

    def move(
        self, arrays: Arrays, step: NDArray[np.float32], dense: Arrays
    ) -> dict[str, NDArray[Any]]:
        """Return `arrays` − `step`, with the dense arrays replaced.

        Parameters
        ----------
        arrays : mapping of str to array
            The model, of this layout.
        step : (d,) float32
            What to subtract from the voted arrays.
        dense : mapping of str to array
            The dense arrays' new values.

        Returns
        -------
        dict of str to array
            A new model, each array in its own dtype.
        """
        moved = {
            spec.name: np.subtract(arrays[spec.name], part.reshape(spec.shape)).astype(
                spec.dtype, copy=False
            )
            for spec, part in zip(self.voted, self.split(step), strict=True)
        }
        # numpy turns the arithmetic of arrays without dimensions into scalars.
        return {
            spec.name: np.asarray((moved if spec.voted else dense)[spec.name])
            for spec in self.specs
        }

    def pack_dense(self, arrays: Arrays) -> NDArray[np.uint8]:
        """Return the dense arrays' bytes, one after the other, (dense_bytes,) uint8."""
        parts = (
            np.ascontiguousarray(arrays[spec.name], dtype=spec.dtype).tobytes()
            for spec in self.dense
        )
        return np.frombuffer(b"".join(parts), dtype=np.uint8)

    def unpack_dense(self, packed: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """Return the dense arrays that `packed`, of `dense_bytes` bytes, stands for."""
        arrays: dict[str, NDArray[Any]] = {}
        data, start = packed.tobytes(), 0
        for spec in self.dense:
            part = np.frombuffer(data, dtype=spec.dtype, count=spec.size, offset=start)
            arrays[spec.name] = part.reshape(spec.shape)
            start += spec.num_bytes
        return arrays

    def combine_dense(
        self,
        packed: Sequence[NDArray[np.uint8]],
        combine: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    ) -> dict[str, NDArray[Any]]:
        """Combine the clients' dense arrays into one model's.

        Parameters
        ----------
        packed : sequence of M (dense_bytes,) uint8
            The clients' dense arrays as `pack_dense` returns them.
        combine : callable
            Maps the clients' values of one array, (M, *shape) float64, to (*shape) float64;
            for a complex array both are complex128.

        Returns
        -------
        dict of str to array
            The combined arrays, each cast back to its dtype, integers rounded to the nearest.
        """
        clients = [self.unpack_dense(data) for data in packed]
        combined: dict[str, NDArray[Any]] = {}
        for spec in self.dense:
            wide = np.result_type(spec.dtype, np.float64)
            values = combine(np.stack([client[spec.name].astype(wide) for client in clients]))
            rounded = values if np.issubdtype(spec.dtype, np.inexact) else np.rint(values)
            combined[spec.name] = np.asarray(rounded).astype(spec.dtype)
        return combined
