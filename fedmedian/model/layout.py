"""A model's named arrays as one flat vector."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import product
from math import inf, isfinite, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmedian.logs import shown
from fedmedian.model.blocks import Blocks, Part, Read
from fedmedian.rules.trust import clip_two
from fedmedian.wire.npy import NewArray, is_floating
from fedmedian.wire.scalars import LARGEST, Float32, Float64, WireError, require_vector

Arrays = Mapping[str, NDArray[Any]]
Center = Callable[[Float64], Float64]
Groups = tuple[tuple[int, ...], ...]
"""Groups of tied arrays, by their index in the flat vector."""

RUNNING_STATISTICS = ("*running_mean", "*running_var", "*num_batches_tracked")
"""Name patterns of normalization layers' buffers, as torch spells them."""

WITHOUT_EXACT = (
    "leave arrays of integers out of the model, and pass exact=() to train those of floating-point "
    "numbers like others, or use layers without running statistics, such as GroupNorm"
)
"""What to do where no array may be exact."""

_SCIKIT_LEARN = re.compile(r"coef|intercept|^\d+$")
"""Names that the arrays of a scikit-learn linear model may have: attributes or positions."""

_CHUNK = 1 << 19

_HALF = float(np.finfo(np.float64).max) / 2
"""The sum, or the difference, of two larger numbers is infinite."""

_REAL = "biuf"
"""The kinds of dtypes that a model's arrays may have: booleans, integers, real numbers."""


@dataclass(frozen=True)
class ArraySpec:
    """One named array of a model: its shape, its dtype, and whether it is sent exactly.

    Raises
    ------
    ValueError
        If the dtype is not real, integer or boolean, naming array and dtype.
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

    def combine(self, values: NDArray[Any], center: Center, before: NDArray[Any]) -> NDArray[Any]:
        """Return the center of clients' values; integers are rounded once, at the end.

        An entry of `before` that is not finite, such as a range that has seen no data, stays
        unchanged until most clients have a finite value for it.

        Parameters
        ----------
        values : (M, *shape) array
            The values, in the array's own dtype.
        center : callable
            Returns the center, (*shape), of (M, *shape) float64. It must lie between the smallest
            and the largest value, and shift with values that all shift by a constant.
        before : (*shape) array
            The model's values. If some are infinite or NaN, those of clients may be, too.

        Returns
        -------
        (*shape) array
            The center, in the array's own dtype.
        """
        start = before if len(values) == 2 else None  # of two, each bounds the other
        if is_floating(self.dtype):
            numbers, known = values.astype(np.float64), np.asarray(True)
            if not is_finite(before):  # filling takes longer than most centers
                numbers, known = _fill(numbers)
            combined = _rounded(_center_of(numbers, center, start), self.dtype)
            return np.where(known, combined, before)
        # Float64 cannot hold large integers, but it holds small differences between them. Those
        # from a middle value stay small whatever a few clients send. Unsigned ones wrap around.
        middle = np.sort(values, axis=0)[(len(values) - 1) // 2] if start is None else start
        wide, base = values.astype(np.uint64), middle.astype(np.uint64)
        below = values < middle
        distances = np.where(below, base - wide, wide - base).astype(np.float64)
        distances = np.where(below, -distances, distances)
        if start is not None:
            distances = clip_two(distances, np.zeros(self.shape))
        moved = np.rint(center(distances))
        by = np.minimum(np.abs(moved), np.nextafter(2.0**64, 0)).astype(np.uint64)
        with np.errstate(over="ignore"):  # scalars warn where arrays do not
            return np.asarray(np.where(moved < 0, base - by, base + by)).astype(self.dtype)


def _center_of(numbers: Float64, center: Center, start: NDArray[Any] | None) -> Float64:
    """Return the center of floating-point values; two are clipped where their start is known."""
    if _HALF < max(numbers.max(initial=0), -numbers.min(initial=0)) < inf:
        # As in a mask of the lowest float64.
        less = None if start is None else start.astype(np.float64) / 8
        # Rounding must not make it larger than all of them.
        return np.clip(_center_of(numbers / 8, center, less), -_HALF / 4, _HALF / 4) * 8
    if start is None:
        return center(numbers)
    wide = start.astype(np.float64)
    wide = np.where(np.isfinite(wide), wide, 0)
    clipped = clip_two(numbers, wide)
    combined = center(clipped)
    # A variance must stay positive: the larger of two may be the honest one.
    larger = clipped.max(axis=0)
    return np.where((combined <= 0) & (wide > 0) & (larger > 0), larger, combined)


@dataclass(frozen=True)
class Layout:
    """A model's arrays, and their places in the flat vector of an update.

    Floating-point arrays make up the *flat* float32 vector of dimension d, in the order of their
    names in the model: the vector that clients perturb and that is aggregated. All others, and
    those whose name matches a pattern, are *exact*: they are sent unchanged, in their own dtype,
    as concatenated bytes.

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
            Patterns of the names of floating-point arrays that are exact; see `matches`.

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
        positions = [
            position
            for position, (name, array) in enumerate(arrays.items())
            if not is_floating(array.dtype) or any(matches(pattern, name) for pattern in patterns)
        ]
        return cls.with_exact_positions(arrays, positions)

    @classmethod
    def with_exact_positions(cls, arrays: Arrays, exact: Iterable[int]) -> "Layout":
        """Return the layout of a model whose exact arrays are given by position.

        Parameters
        ----------
        arrays : mapping of str to array
            The model's arrays by name.
        exact : iterable of int
            The positions of the exact arrays: `exact_positions` of the server's layout.

        Returns
        -------
        Layout
            The layout.

        Raises
        ------
        ValueError
            If a position is not in the model, an array cannot be trained, or the flat vector would
            contain an array that is not floating point.
        """
        positions = set(exact)
        if beyond := positions - {*range(len(arrays))}:
            raise ValueError(f"there is no array {max(beyond)} in a model of {len(arrays)}")
        specs = (
            ArraySpec(name, array.shape, array.dtype, exact=position in positions)
            for position, (name, array) in enumerate(arrays.items())
        )
        layout = cls(tuple(specs))
        for spec in layout.flat:
            if not is_floating(spec.dtype):
                raise ValueError(f"array {spec.name!r} of {spec.dtype} cannot be perturbed")
        return layout

    def in_order(self, names: Iterable[str]) -> "Layout":
        """Return the layout of the same arrays in the order of these names."""
        specs = {spec.name: spec for spec in self.specs}
        ordered = tuple(specs[name] for name in names)
        return self if ordered == self.specs else Layout(ordered)

    def recast(self, arrays: Arrays) -> Arrays:
        """Return a model whose exact arrays have the dtypes of this layout.

        Clients return exact arrays in the dtype in which they are sent. A model whose other arrays
        are not of floating-point numbers stays as it is: it is a code that clients decode.
        """
        if not all(is_floating(arrays[spec.name].dtype) for spec in self.flat):
            return arrays
        cast = {
            spec.name: arrays[spec.name].astype(spec.dtype)
            for spec in self.exact
            if arrays[spec.name].dtype != spec.dtype
        }
        return {**arrays, **cast} if cast else arrays

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
        """The arrays that are sent unchanged."""
        return tuple(spec for spec in self.specs if spec.exact)

    @cached_property
    def blocks(self) -> Blocks:
        """The flat vector's blocks, one per array."""
        sizes = tuple(spec.size for spec in self.flat)
        return Blocks(sizes, tuple((spec.name,) for spec in self.flat))

    @property
    def dim(self) -> int:
        """d, the length of the flat vector."""
        return self.blocks.dim

    @property
    def exact_bytes(self) -> int:
        """The number of bytes of all exact arrays together."""
        return sum(spec.num_bytes for spec in self.exact)

    def tied(self, arrays: Arrays) -> Groups:
        """Return groups of arrays that may be one and the same, such as tied weights.

        Parameters
        ----------
        arrays : mapping of str to array
            The model.

        Returns
        -------
        tuple of tuple of int
            Groups of two or more arrays of the flat vector, by their index in `flat`, that are
            equal bit for bit. Constant arrays, a common initialization, are left out.
        """
        groups: dict[tuple[Any, ...], list[int]] = {}
        for index, spec in enumerate(self.flat):
            # A few entries distinguish most arrays, so only similar ones are read in full.
            few = arrays[spec.name].reshape(-1)[:8].tobytes()
            groups.setdefault((spec.shape, spec.dtype, few), []).append(index)
        found = []
        for first, *others in groups.values():
            array = arrays[self.flat[first].name]
            equal = [i for i in others if np.array_equal(arrays[self.flat[i].name], array)]
            # Masks of −inf are equal in all layers but not trained.
            if equal and array.size and -np.inf < array.min() < array.max() < np.inf:
                found.append((first, *equal))
        return tuple(found)

    def own_names(self, arrays: Arrays, *, unnamed: bool = False) -> list[str]:
        """Return the names that a client gives to the model's arrays, in the model's order.

        They are the model's names, whatever the order of `arrays`. A client without names, such
        as a NumPyClient, sends positions instead: "0", "1", and so on.

        Parameters
        ----------
        arrays : mapping of str to array
            The client's arrays.
        unnamed : bool (default: False)
            Whether the client's names are known to be positions. If not, they count as positions
            only if they are not the model's names.

        Returns
        -------
        list of str
            The names. They are those of `arrays` if it matches this layout.
        """
        names, positions = [spec.name for spec in self.specs], _positions(len(self.specs))
        has_names = arrays.keys() == set(names) and not unnamed
        return positions if arrays.keys() == set(positions) and not has_names else names

    def named(self, arrays: Arrays, *, unnamed: bool = False) -> Arrays:
        """Return a client's arrays by the model's names; see `own_names`.

        Arrays that do not match this layout are returned unchanged, for `require_match` to reject.
        """
        own = self.own_names(arrays, unnamed=unnamed)
        if arrays.keys() != set(own):
            return arrays
        return {spec.name: arrays[name] for spec, name in zip(self.specs, own, strict=True)}

    def require_match(self, arrays: Arrays) -> None:
        """Raise unless `arrays` are the arrays of this layout, in any order.

        A single number may have any number of axes of length 1: some conversions add or drop one.

        Raises
        ------
        ValueError
            If names or shapes differ, naming the first difference, or an array is not real, integer
            or boolean.
        """
        if arrays.keys() != {spec.name for spec in self.specs}:
            missing = [spec.name for spec in self.specs if spec.name not in arrays]
            extra = sorted(set(arrays) - {spec.name for spec in self.specs})
            is_part = len(arrays) < len(self.specs) and (is_by_position(arrays) or not extra)
            # Comes before the names, which may be many and get truncated in the log.
            cause = ", which must hold only the arrays that clients send" if is_part else ""
            if len(arrays) == len(missing) and missing == _positions(len(missing)):
                cause = ", which has no names: start with an ArrayRecord of those that clients send"
            if prefix := _prefix(extra, missing) or _prefix(missing, extra):
                cause = f" by the prefix {shown(prefix)} of a wrapped model, send the one inside"
            raise ValueError(
                f"arrays differ from the model's{cause}: missing {shown(missing)}, "
                f"extra {shown(extra)}"
            )
        for spec in self.specs:
            _require_real(spec.name, arrays[spec.name].dtype)
            own = arrays[spec.name].shape
            is_number = spec.size == arrays[spec.name].size == 1
            if own != spec.shape and not is_number:
                raise ValueError(
                    f"array {spec.name!r} has shape {own}, the model's is {spec.shape}"
                    f"{_cause_of_shapes(spec.name, own, spec.shape)}"
                )

    def reader_of_difference(self, before: Arrays, after: Arrays) -> Read:
        """Return a function that writes parts of the update `before` − `after`.

        The update points uphill. The difference is taken in each array's own precision, but at
        least in float32, and then rounded to float32. It is 0 for an array that is not finite
        before, such as a mask with −inf: `move` leaves it unchanged.

        Parameters
        ----------
        before, after : mapping of str to array
            The model before and after local training, both of this layout.

        Returns
        -------
        callable
            Writes a part of one array's update; the block is the array's index in `flat`.

        Raises
        ------
        ValueError
            If `after` does not match this layout.
        """
        self.require_match(after)
        names = [spec.name for spec in self.flat]
        pairs = [(before[name].reshape(-1), after[name].reshape(-1)) for name in names]
        is_trained = [is_finite(old) for old, _ in pairs]

        def read(part: Part, out: Float32) -> None:
            old, new = (part.view(array) for array in pairs[part.block])
            # One by one: NumPy knows no common dtype of bfloat16 and float16.
            dtypes = (np.result_type(one.dtype, np.float32) for one in (old, new))
            precision, update = np.result_type(*dtypes), out.reshape(part.runs, part.length)
            with np.errstate(over="ignore", invalid="ignore"):  # callers refuse what is not finite
                np.subtract(old, new, out=update, dtype=precision, casting="same_kind")
            if not is_trained[part.block]:
                out[:] = 0

        return read

    def difference(self, before: Arrays, after: Arrays) -> Float32:
        """Return the update `before` − `after`, (d,) float32; see `reader_of_difference`."""
        read, update = self.reader_of_difference(before, after), np.empty(self.dim, np.float32)
        for index, part in enumerate(self.blocks.split(update)):
            read(Part(index, 0, part.size), part)
        return update

    def move(
        self, arrays: Arrays, direction: Float32, rate: float, exact: Arrays
    ) -> dict[str, NDArray[Any]]:
        """Return a model moved by −`rate` · `direction`, with its exact arrays replaced.

        An array of the flat vector that is not finite stays unchanged.

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
        moving = Moving(self, arrays, rate)
        for index, part in enumerate(self.blocks.split(direction)):
            moving.move(Part(index, 0, part.size), part[None])
        return moving.finish(exact)

    def pack_exact(self, arrays: Arrays) -> NDArray[np.uint8]:
        """Return the exact arrays' concatenated bytes, (exact_bytes,) uint8.

        Raises
        ------
        ValueError
            If one has values that the model's dtype cannot hold, naming it and both dtypes.
            Rounding to the model's precision is allowed.
        """
        parts = (_as_in_model(spec, arrays[spec.name]).tobytes() for spec in self.exact)
        return np.frombuffer(b"".join(parts), dtype=np.uint8)

    def require_exact(self, packed: NDArray[Any], before: Arrays) -> None:
        """Raise unless `packed` is what `pack_exact` makes of usable arrays.

        Parameters
        ----------
        packed : array
            What a client sent.
        before : mapping of str to array
            The model that it was sent: what is not finite there may stay so.

        Raises
        ------
        WireError
            If `packed` is not (exact_bytes,) uint8, or has become NaN, infinite or too large.
        """
        require_vector("exact arrays", packed, self.exact_bytes, np.uint8)
        if (spoiled := first_spoiled(before, self.unpack_exact(packed), LARGEST)) is not None:
            raise WireError(
                f"array {spoiled!r} holds NaN or infinity, or an entry above {LARGEST:g}"
            )

    def unpack_exact(self, packed: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """Return the exact arrays in packed bytes, (exact_bytes,) uint8, by name."""
        arrays: dict[str, NDArray[Any]] = {}
        data, start = packed.tobytes(), 0
        for spec in self.exact:
            part = np.frombuffer(data, dtype=spec.dtype, count=spec.size, offset=start)
            arrays[spec.name] = part.reshape(spec.shape)
            start += spec.num_bytes
        return arrays

    def combine_exact(
        self, packed: Sequence[NDArray[np.uint8]], center: Center, before: Arrays
    ) -> dict[str, NDArray[Any]]:
        """Return the center of each exact array of several clients; see `ArraySpec.combine`.

        Parameters
        ----------
        packed : sequence of M (exact_bytes,) uint8
            The clients' exact arrays as `pack_exact` returns them.
        center : callable
            Returns the center of an array's values.
        before : mapping of str to array
            The model.

        Returns
        -------
        dict of str to array
            The centers by name, each in the array's own dtype.
        """
        clients, centers = [self.unpack_exact(data) for data in packed], {}
        for spec in self.exact:
            # One by one, since all of them take as much memory as the replies.
            values = np.stack([own[spec.name] for own in clients])
            centers[spec.name] = spec.combine(values, center, before[spec.name])
        return centers


class Moving:
    """A model under construction: another one, moved part by part.

    Different parts may be moved on several threads at once.

    Parameters
    ----------
    layout : Layout
        The model's layout.
    before : mapping of str to array
        The model that is moved.
    rate : float
        The step size δ, in x ← x − δ·direction.
    """

    def __init__(self, layout: Layout, before: Arrays, rate: float) -> None:
        self._layout, self._before = layout, before
        with np.errstate(over="ignore"):
            self._rate = np.float32(rate)
        self._old = [before[spec.name].reshape(-1) for spec in layout.flat]
        self._new = [NewArray(spec.shape, spec.dtype) for spec in layout.flat]
        self._doubtful = set[int]()

    def move(self, part: Part, direction: Float32) -> None:
        """Move a part of an array of the flat vector.

        Parameters
        ----------
        part : Part
            The part.
        direction : (runs, length) float32
            The direction, pointing uphill.
        """
        old, new = part.view(self._old[part.block]), part.view(self._new[part.block].flat)
        rows, columns = max(_CHUNK // max(part.length, 1), 1), min(part.length, _CHUNK)
        starts = product(range(0, part.runs, rows), range(0, part.length, columns or 1))
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            for row, column in starts:
                chunk = slice(row, row + rows), slice(column, column + columns)
                step = direction[chunk] if self._rate == 1 else direction[chunk] * self._rate
                moved = np.subtract(old[chunk], step, out=new[chunk], casting="same_kind")
                # Twice as fast as a sum, but bfloat16 has none.
                total = np.einsum("ij->", moved) if moved.dtype.kind == "f" else moved.sum()
                if not isfinite(total):
                    self._doubtful.add(part.block)

    def finish(self, exact: Arrays) -> dict[str, NDArray[Any]]:
        """Return the model, whose flat arrays must have been moved, with these exact arrays."""
        moved = {}
        for index, (spec, new) in enumerate(zip(self._layout.flat, self._new, strict=True)):
            old = self._before[spec.name]
            stays = index in self._doubtful and not is_finite(old)
            moved[spec.name] = old if stays else new.finish()
        return {
            spec.name: np.asarray((exact if spec.exact else moved)[spec.name])
            for spec in self._layout.specs
        }

    def first_spoiled(self, model: Arrays) -> str | None:
        """Return the name of the first array of the finished model that became NaN or infinite."""
        flat = {spec.name: index for index, spec in enumerate(self._layout.flat)}
        names = [name for name in model if name not in flat or flat[name] in self._doubtful]
        return first_spoiled(self._before, {name: model[name] for name in names})


def matches(pattern: str, name: str) -> bool:
    """Return whether a shell-style pattern matches a name.

    A name always matches itself, even with brackets, which have a meaning in patterns.
    """
    return name == pattern or fnmatchcase(name, pattern)


def is_same_model(model: Arrays, other: Arrays) -> bool:
    """Return whether two models have the same arrays, NaN for NaN."""
    return model is other or (
        model.keys() == other.keys()
        and all(is_same_array(array, other[name]) for name, array in model.items())
    )


def forms_of(model: Arrays) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Return shape and dtype of each array of a model."""
    return {name: (array.shape, array.dtype) for name, array in model.items()}


def in_order(arrays: Arrays, names: Iterable[str]) -> Arrays:
    """Return a model in the order of these names; the same object if it has that order."""
    ordered = {name: arrays[name] for name in names}
    return arrays if [*arrays] == [*ordered] else ordered


def is_same_array(array: NDArray[Any], other: NDArray[Any]) -> bool:
    """Return whether two arrays have the same shape and entries, NaN for NaN."""
    # Views of one record's bytes need no comparison.
    return array.__array_interface__ == other.__array_interface__ or np.array_equal(
        array, other, equal_nan=True
    )


def is_finite(array: NDArray[Any]) -> bool:
    """Return whether all entries of an array of floats are finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        # The sum nearly always shows it, in one pass.
        return isfinite(array.sum()) or bool(np.isfinite(array).all())


def first_spoiled(before: Arrays, after: Arrays, largest: float | None = None) -> str | None:
    """Return the name of the first array that became NaN or too large, or None.

    Parameters
    ----------
    before : mapping of str to array
        The arrays before, whose entries need not be finite. A missing array counts as finite.
    after : mapping of str to array
        The arrays after: an entry that was in range must still be, and a finite one finite.
    largest : float, optional
        The largest magnitude that is in range; by default any finite one.

    Returns
    -------
    str or None
        The name.
    """
    for name, array in after.items():
        if is_floating(array.dtype):
            is_bad = ~_is_in_range(array, largest)
            if is_bad.any():
                old = np.asarray(before.get(name, 0.0))
                # What was too large may stay so, but not become NaN.
                is_lost = np.isfinite(old) & ~np.isfinite(array)
                if (is_bad & _is_in_range(old, largest) | is_lost).any():
                    return name
    return None


def _prefix(longer: Collection[str], shorter: Collection[str]) -> str | None:
    """Return the prefix that names of one model have and those of another lack, if there is one."""
    if not longer or len(longer) != len(shorter):
        return None
    prefix = min(longer).removesuffix(min(shorter))
    is_common = prefix.endswith(".") and {prefix + name for name in shorter} == {*longer}
    return prefix if is_common else None


def is_by_position(arrays: Arrays) -> bool:
    """Return whether arrays are named by their positions, as those of a list are."""
    return arrays.keys() == set(_positions(len(arrays)))


def _positions(number: int) -> list[str]:
    """Return Flower's names for the arrays of a list: "0", "1", and so on."""
    return [str(position) for position in range(number)]


def _is_in_range(array: NDArray[Any], largest: float | None) -> NDArray[np.bool_]:
    is_finite = np.asarray(np.isfinite(array))
    # A float64, because float16 ends at 65504.
    return is_finite if largest is None else is_finite & (np.abs(array) <= np.float64(largest))


def _fill(values: Float64) -> tuple[Float64, NDArray[np.bool_]]:
    """Replace infinities and NaN in clients' values, (M, *shape), by the median of the others.

    Also return where most clients have finite values, (*shape); elsewhere all values become 0.
    """
    finite = np.isfinite(values)
    count = finite.sum(axis=0)
    known = np.asarray(2 * count > len(values))
    in_order = np.sort(np.where(finite, values, np.nan), axis=0)  # NaN comes last
    middle = np.take_along_axis(in_order, np.maximum(count - 1, 0)[None] // 2, axis=0)
    return np.where(known, np.where(finite, values, middle), 0.0), known


def _rounded(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Round values to a floating-point dtype, but no nonzero value to 0."""
    wide = np.asarray(values)
    rounded = wide.astype(dtype)
    # A variance must not become zero because the dtype cannot hold it.
    lost = (rounded == 0) & (wide != 0)
    return np.where(lost, np.nextafter(rounded, np.where(wide < 0, -1, 1).astype(dtype)), rounded)


def _as_in_model(spec: ArraySpec, array: NDArray[Any]) -> NDArray[Any]:
    """Convert a client's exact array to the model's dtype, which must hold its values."""
    if array.dtype == spec.dtype:
        return array
    with np.errstate(all="ignore"):
        if is_floating(spec.dtype):
            cast = _rounded(array, spec.dtype)
            is_held = np.isfinite(cast) | ~np.isfinite(array)
        else:
            cast = array.astype(spec.dtype)
            is_held = cast == array
    if not is_held.all():
        raise ValueError(
            f"array {spec.name!r} is {spec.dtype} in the model and {array.dtype} in the reply, "
            f"with values that {spec.dtype} cannot hold: send a model in which it is {array.dtype}"
        )
    return cast


def _require_real(name: str, dtype: np.dtype[Any]) -> None:
    if dtype.kind not in _REAL and not is_floating(dtype):
        raise ValueError(f"array {name!r} of {dtype} cannot be trained, only real numbers can")


def _cause_of_shapes(name: str, own: tuple[int, ...], models: tuple[int, ...]) -> str:
    """Return the likely cause of an array's shape that is not the model's."""
    causes = []
    if own and models and own[1:] == models[1:]:
        # Both causes are short enough that the log does not truncate them.
        if own[0] < models[0] and len(own) <= 2 and _SCIKIT_LEARN.search(name):
            causes.append("scikit-learn drops classes that a client lacks: pass it all classes")
        if len(own) == 1:
            causes.append("trees change the shapes of their arrays and cannot be averaged")
    return f"; {', or '.join(causes)}" if causes else "; do server and clients have the same model?"
