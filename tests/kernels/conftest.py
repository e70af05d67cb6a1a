"""What the kernels' tests share: vectors that are not contiguous, programs, and memory."""

import tracemalloc

import numpy as np
import pytest


@pytest.fixture(scope="session")
def strided():
    """Returns the same values, not contiguous."""

    def copy_to_strided(x):
        wide = np.empty((x.size, 3), x.dtype)
        wide[:, 1] = x
        return wide[:, 1]

    return copy_to_strided


@pytest.fixture(scope="session")
def run_program():
    """Runs a program on rows, with scratch of its own."""

    def run(program, rows):
        scratch = [np.empty_like(rows[0]) for _ in range(program.num_scratch)]
        return program.run(list(rows), scratch)

    return run


@pytest.fixture(scope="session")
def scratch_bytes():
    """Measures the most memory that a call takes beyond its arguments and its result."""

    def measure(function, *arguments):
        function(*arguments)  # what is kept between calls
        tracemalloc.start()
        result = function(*arguments)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak - result.nbytes

    return measure
