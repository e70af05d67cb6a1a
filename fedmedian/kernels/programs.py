"""Straight-line programs of elementwise operations on rows, which the fast kernels run.

A selection network for medians and a carry-save adder for votes are both a fixed sequence of
binary ufuncs on rows, the same for every block of columns. A program is such a sequence, compiled
once: without the operations that no output needs, and with few scratch rows, so that a block and
its scratch fit the processor's cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Row = int
"""A row in a `ProgramBuilder`: an input or the result of an operation."""


@dataclass(frozen=True)
class Program:
    """A compiled program.

    Parameters
    ----------
    num_scratch : int
        The number of scratch rows that it needs.
    steps : tuple of (ufunc, int, int, int)
        An operation, its two operands and its result, as positions in inputs + scratch.
    outputs : tuple of int
        The positions of the results.
    """

    num_scratch: int
    steps: tuple[tuple[np.ufunc, int, int, int], ...]
    outputs: tuple[int, ...]

    def run(
        self, inputs: Sequence[NDArray[Any]], scratch: Sequence[NDArray[Any]]
    ) -> list[NDArray[Any]]:
        """Run the program on one block.

        Parameters
        ----------
        inputs : sequence of (n,) arrays
            The rows to read, as many as the program was built for.
        scratch : sequence of `num_scratch` (n,) arrays
            Rows to write to.

        Returns
        -------
        list of (n,) arrays
            The outputs, which are scratch rows or inputs.
        """
        rows = [*inputs, *scratch]
        for operation, first, second, result in self.steps:
            operation(rows[first], rows[second], out=rows[result])
        return [rows[position] for position in self.outputs]


class ProgramBuilder:
    """Builds a program, one operation at a time.

    Parameters
    ----------
    num_inputs : int
        The number of rows that the program reads: rows 0 to `num_inputs` − 1.
    """

    def __init__(self, num_inputs: int) -> None:
        self._num_inputs = num_inputs
        self._operations: list[tuple[np.ufunc, Row, Row]] = []

    def apply(self, operation: np.ufunc, first: Row, second: Row) -> Row:
        """Return the row that holds ``operation(first, second)``."""
        self._operations.append((operation, first, second))
        return self._num_inputs + len(self._operations) - 1

    def compile(self, outputs: Sequence[Row]) -> Program:
        """Return the program that computes `outputs` and nothing else."""
        last_use = self._last_uses(outputs)
        place = dict(enumerate(range(self._num_inputs)))
        free: list[int] = []
        end = self._num_inputs
        steps = []
        for index, (operation, first, second) in enumerate(self._operations):
            row = self._num_inputs + index
            if row not in last_use:
                continue
            # Elementwise operations may overwrite their operands. The row freed last is the most
            # likely one in the cache.
            operands = place[first], place[second]
            free += [
                place[operand]
                for operand in {first, second}
                if last_use[operand] == index and operand >= self._num_inputs
            ]
            if not free:
                free.append(end)
                end += 1
            place[row] = free.pop()
            steps.append((operation, *operands, place[row]))
        return Program(end - self._num_inputs, tuple(steps), tuple(place[one] for one in outputs))

    def _last_uses(self, outputs: Sequence[Row]) -> dict[Row, int]:
        """Return the index of the last operation that needs each row; unneeded rows are absent."""
        last_use = dict.fromkeys(outputs, len(self._operations))
        for index in range(len(self._operations) - 1, -1, -1):
            if self._num_inputs + index in last_use:
                for operand in self._operations[index][1:]:
                    last_use.setdefault(operand, index)
        return last_use
