"""A model's named arrays as one flat vector."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmedian.blocks import Blocks
from fedmedian.logs import shown

Arrays = Mapping[str, NDArray[Any]]
Centre = Callable[[NDArray[np.float64]], NDArray[np.float64]]

RUNNING_STATISTICS = ("*running_mean", "*running_var", "*num_batches_tracked")
"""Name patterns of normalisation layers' buffers, as torch spells them."""


_REAL = "biuf"
"""The kinds of dtypes that a model's arrays may have: booleans, integers and real numbers."""


@dataclass(frozen=True)
class ArraySpec:
    """One named array of a model: its shape, its dtype, and whether it is sent exactly.

    Raises
    ------
    ValueError
        If it is not of real numbers, integers or booleans, naming array and dtype.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    exact: bool

    def __post_init__(self) -> None:
        _require_real(self.name, self.dtype)

    @property
    def size(self) -> int:
        """The number of entries."""
        return prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """The number of bytes that the entries take in the array's own dtype."""
        return self.size * self.dtype.itemsize

    def combine(self, values: NDArray[Any], centre: Centre) -> NDArray[Any]:
        """Return the centre of clients' values; of integers exactly, to the nearest one.

        Parameters
        ----------
        values : (M, *shape) array
            The values, in the array's own dtype.
        centre : callable
            Returns the centre, (*shape), of (M, *shape) float64; where values move by a constant,
            so does the centre, and it lies between the least and the largest of them.

        Returns
        -------
        (*shape) array
            The centre, in the array's own dtype.
        """
        if np.issubdtype(self.dtype, np.inexact):
            return np.asarray(centre(values.astype(np.float64))).astype(self.dtype)
        # Float64 does not hold large integers, but small differences between them; those from one
        # in the middle stay small whatever a few clients send. Unsigned ones wrap around.
        middle = np.sort(values, axis=0)[(len(values) - 1) // 2]
        wide, base = values.astype(np.uint64), middle.astype(np.uint64)
        below = values < middle
        distances = np.where(below, base - wide, wide - base).astype(np.float64)
        moved = np.rint(centre(np.where(below, -distances, distances)))
        by = np.minimum(np.abs(moved), np.nextafter(2.0**64, 0)).astype(np.uint64)
        with np.errstate(over="ignore"):  # scalars warn where arrays do not
            return np.asarray(np.where(moved < 0, base - by, base + by)).astype(self.dtype)


@dataclass(frozen=True)
class Layout:
    """A model's arrays, and where each stands in the flat vector of an update.

    Floating-point arrays make up the *flat* float32 vector of dimension d, in the order of their
    names in the model: the vector that clients perturb and that is aggregated. All others, and
    those whose name matches a pattern, are *exact*: they travel as they are, in their own dtype,
    one after the other as bytes.

    Parameters
    ----------
    specs : tuple of ArraySpec
        The model's arrays, in order.
    """

    specs: tuple[ArraySpec, ...]

    @classmethod
    def of_model(cls, arrays: Arrays, exact: Iterable[str] = RUNNING_STATISTICS) -> "Layout":
        """Return the layout of a model whose exact arrays are given by name.

        Parameters
        ----------
        arrays : mapping of str to array
            The model's arrays by name.
        exact : iterable of str (default: `RUNNING_STATISTICS`)
            Shell-style patterns of the names of floating-point arrays that are exact.

        Returns
        -------
        Layout
            The layout.

        Raises
        ------
        ValueError
            If an array cannot be trained, naming it and its dtype.
        """
        patterns = tuple(exact)
        return cls(
            tuple(
                ArraySpec(
                    name,
                    array.shape,
                    array.dtype,
                    exact=not np.issubdtype(array.dtype, np.floating)
                    or any(fnmatchcase(name, pattern) for pattern in patterns),
                )
                for name, array in arrays.items()
            )
        )

    @classmethod
    def with_exact_positions(cls, arrays: Arrays, exact: Iterable[int]) -> "Layout":
        """Return the layout of a model whose exact arrays somebody else has chosen.

        Parameters
        ----------
        arrays : mapping of str to array
            The model's arrays by name.
        exact : iterable of int
            The positions of the exact arrays, as `exact_positions` of the other's layout.

        Returns
        -------
        Layout
            The layout.

        Raises
        ------
        ValueError
            If a position is none of the model's, an array cannot be trained, or one that is not
            of floating point is to be part of the flat vector.
        """
        positions = set(exact)
        if positions and max(positions) >= len(arrays):
            raise ValueError(f"there is no array {max(positions)} in a model of {len(arrays)}")
        layout = cls(
            tuple(
                ArraySpec(name, array.shape, array.dtype, exact=position in positions)
                for position, (name, array) in enumerate(arrays.items())
            )
        )
        for spec in layout.flat:
            if not np.issubdtype(spec.dtype, np.floating):
                raise ValueError(f"array {spec.name!r} of {spec.dtype} cannot be perturbed")
        return layout

    @property
    def exact_positions(self) -> tuple[int, ...]:
        """The positions of the exact arrays in the model, counted from 0."""
        return tuple(position for position, spec in enumerate(self.specs) if spec.exact)

    @cached_property
    def flat(self) -> tuple[ArraySpec, ...]:
        """The arrays that make up the flat vector."""
        return tuple(spec for spec in self.specs if not spec.exact)

    @cached_property
    def exact(self) -> tuple[ArraySpec, ...]:
        """The arrays that travel as they are."""
        return tuple(spec for spec in self.specs if spec.exact)

    @cached_property
    def blocks(self) -> Blocks:
        """The flat vector's blocks, one per array."""
        return Blocks(tuple(spec.size for spec in self.flat))

    @property
    def dim(self) -> int:
        """d, the length of the flat vector."""
        return self.blocks.dim

    @property
    def exact_bytes(self) -> int:
        """The number of bytes of all exact arrays together."""
        return sum(spec.num_bytes for spec in self.exact)

    def tied(self, arrays: Arrays) -> tuple[tuple[int, ...], ...]:
        """Return the arrays that may be one and the same, as a model's tied weights are.

        Parameters
        ----------
        arrays : mapping of str to array
            The model.

        Returns
        -------
        tuple of tuple of int
            Groups of two or more arrays of the flat vector, by their index in `flat`, that are
            equal bit for bit; those of one value only, which many start with, are left out.
        """
        groups: dict[tuple[Any, ...], list[int]] = {}
        for index, spec in enumerate(self.flat):
            # A few entries tell most arrays apart, and no others are read.
            few = arrays[spec.name].reshape(-1)[:8].tobytes()
            groups.setdefault((spec.shape, spec.dtype, few), []).append(index)
        found = []
        for first, *others in groups.values():
            array = arrays[self.flat[first].name]
            equal = [i for i in others if np.array_equal(arrays[self.flat[i].name], array)]
            if equal and array.size and array.min() < array.max():
                found.append((first, *equal))
        return tuple(found)

    def average_tied(self, direction: NDArray[np.float32], groups: Iterable[Sequence[int]]) -> None:
        """Give the arrays of each group of tied ones, as `tied` has them, their mean direction.

        Parameters
        ----------
        direction : (d,) float32
            The direction, changed in place.
        groups : iterable of sequence of int
            The groups.
        """
        parts = list(self.blocks.split(direction))
        for group in groups:
            mean = np.mean([parts[index] for index in group], axis=0, dtype=np.float32)
            for index in group:
                parts[index][:] = mean

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
            If names, order or shapes differ, naming the first difference, or an array is not of
            real numbers, integers or booleans.
        """
        if list(arrays) != [spec.name for spec in self.specs]:
            missing = [spec.name for spec in self.specs if spec.name not in arrays]
            extra = sorted(set(arrays) - {spec.name for spec in self.specs})
            if not missing and not extra:
                raise ValueError(f"arrays are not in the model's order: {shown(list(arrays))}")
            raise ValueError(
                f"arrays differ from the model's: missing {shown(missing)}, extra {shown(extra)}"
            )
        for spec in self.specs:
            _require_real(spec.name, arrays[spec.name].dtype)
            if arrays[spec.name].shape != spec.shape:
                raise ValueError(
                    f"array {spec.name!r} has shape {arrays[spec.name].shape}, "
                    f"the model's is {spec.shape}; models whose arrays change their shape, as "
                    "those of trees do, cannot be averaged"
                )

    def difference(self, before: Arrays, after: Arrays) -> NDArray[np.float32]:
        """Return the update `before` − `after` of the flat vector, which points uphill.

        The difference is taken in each array's own precision, of halves in float32, and then
        rounded to float32.

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
            for part, spec in zip(self.blocks.split(update), self.flat, strict=True):
                old, new = before[spec.name], after[spec.name]
                precision = np.result_type(old.dtype, new.dtype, np.float32)
                part[:] = np.subtract(old, new, dtype=precision).reshape(-1)
        return update

    def move(
        self, arrays: Arrays, direction: NDArray[np.float32], rate: float, exact: Arrays
    ) -> dict[str, NDArray[Any]]:
        """Return a model moved by −`rate` · `direction`, with its exact arrays replaced.

        Parameters
        ----------
        arrays : mapping of str to array
            The model, of this layout.
        direction : (d,) float32
            The direction, pointing uphill.
        rate : float
            The step size.
        exact : mapping of str to array
            The exact arrays' new values.

        Returns
        -------
        dict of str to array
            A new model, each array in its own dtype.
        """
        moved = {}
        for spec, part in zip(self.flat, self.blocks.split(direction), strict=True):
            step = np.asarray(part.reshape(spec.shape) * np.float32(rate))
            out = step if spec.dtype == step.dtype else None  # one temporary array less
            new = np.subtract(arrays[spec.name], step, out=out)
            # numpy turns the arithmetic of arrays without dimensions into scalars.
            moved[spec.name] = np.asarray(new).astype(spec.dtype, copy=False)
        return {
            spec.name: np.asarray((exact if spec.exact else moved)[spec.name])
            for spec in self.specs
        }

    def pack_exact(self, arrays: Arrays) -> NDArray[np.uint8]:
        """Return the exact arrays' bytes, one after the other, (exact_bytes,) uint8."""
        parts = (
            np.ascontiguousarray(arrays[spec.name], dtype=spec.dtype).tobytes()
            for spec in self.exact
        )
        return np.frombuffer(b"".join(parts), dtype=np.uint8)

    def unpack_exact(self, packed: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """Return the exact arrays that `packed`, of `exact_bytes` bytes, stands for."""
        arrays: dict[str, NDArray[Any]] = {}
        data, start = packed.tobytes(), 0
        for spec in self.exact:
            part = np.frombuffer(data, dtype=spec.dtype, count=spec.size, offset=start)
            arrays[spec.name] = part.reshape(spec.shape)
            start += spec.num_bytes
        return arrays

    def stack_exact(
        self, packed: Sequence[NDArray[np.uint8]]
    ) -> Iterator[tuple[ArraySpec, NDArray[Any]]]:
        """Yield each exact array with its values in the models of several clients.

        Parameters
        ----------
        packed : sequence of M (exact_bytes,) uint8
            The clients' exact arrays as `pack_exact` returns them.

        Yields
        ------
        spec : ArraySpec
            The array.
        values : (M, *shape) array
            The clients' values, in the array's own dtype.
        """
        clients = [self.unpack_exact(data) for data in packed]
        for spec in self.exact:
            yield spec, np.stack([client[spec.name] for client in clients])


def _require_real(name: str, dtype: np.dtype[Any]) -> None:
    if dtype.kind not in _REAL:
        # Flower's .npy bytes know no bfloat16: it arrives as two bytes without a meaning.
        remedy = (
            "; bfloat16 arrives as |V2 and must be cast to float32" if dtype.kind == "V" else ""
        )
        raise ValueError(
            f"array {name!r} of {dtype} cannot be trained, only numbers that are real can{remedy}"
        )
