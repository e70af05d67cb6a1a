"""Straight-line programs: what they compute, with which operations and how much scratch."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedmedian.kernels.programs import ProgramBuilder


@st.composite
def programs(draw):
    """The number of inputs, operations on earlier rows, and which rows are the outputs."""
    inputs = draw(st.integers(1, 4))
    operations = []
    for number in range(draw(st.integers(0, 12))):
        row = st.integers(0, inputs + number - 1)
        operation = draw(st.sampled_from([np.add, np.subtract, np.maximum, np.bitwise_xor]))
        operations.append((operation, draw(row), draw(row)))
    rows = st.integers(0, inputs + len(operations) - 1)
    return inputs, operations, draw(st.lists(rows, min_size=1, max_size=4))


@given(case=programs())
def test_a_program_computes_its_outputs_and_leaves_its_inputs_as_they_were(case, run_program):
    num_inputs, operations, outputs = case
    builder = ProgramBuilder(num_inputs)
    inputs = np.arange(1, 3 * num_inputs + 1).reshape(num_inputs, 3) ** 2
    rows = list(inputs.copy())
    for operation, first, second in operations:
        assert builder.apply(operation, first, second) == len(rows)
        rows.append(operation(rows[first], rows[second]))
    results = run_program(builder.compile(outputs), inputs)
    assert np.array_equal(results, [rows[output] for output in outputs])
    assert np.array_equal(inputs, rows[:num_inputs])


def test_a_program_leaves_out_what_no_output_needs():
    builder = ProgramBuilder(2)
    needed = builder.apply(np.add, 0, 1)
    builder.apply(np.multiply, needed, needed)
    assert [step[0] for step in builder.compile([needed]).steps] == [np.add]


def test_a_program_uses_a_scratch_row_again_once_nobody_reads_it(run_program):
    builder = ProgramBuilder(1)
    row = 0
    for _ in range(9):
        row = builder.apply(np.add, row, 0)
    program = builder.compile([row])
    assert program.num_scratch == 1
    assert run_program(program, np.array([[2]]))[0].tolist() == [20]
