"""Straight-line programs: what they compute, with which operations and how much scratch."""

import numpy as np

from fedmedian.kernels.programs import ProgramBuilder


def run(program, rows):
    scratch = [np.empty_like(rows[0]) for _ in range(program.num_scratch)]
    return program.run(list(rows), scratch)


class TestProgram:
    def test_computes_its_outputs(self):
        builder = ProgramBuilder(2)
        total = builder.apply(np.add, 0, 1)
        square = builder.apply(np.multiply, total, total)
        program = builder.compile([square, total, 0])
        outputs = run(program, np.array([[1, 2], [3, 4]]))
        assert [row.tolist() for row in outputs] == [[16, 36], [4, 6], [1, 2]]

    def test_leaves_out_what_no_output_needs(self):
        builder = ProgramBuilder(2)
        needed = builder.apply(np.add, 0, 1)
        builder.apply(np.multiply, needed, needed)
        assert [step[0] for step in builder.compile([needed]).steps] == [np.add]

    def test_uses_a_scratch_row_again_once_nobody_reads_it(self):
        builder = ProgramBuilder(1)
        row = 0
        for _ in range(9):
            row = builder.apply(np.add, row, 0)
        program = builder.compile([row])
        assert program.num_scratch == 1
        assert run(program, np.array([[2]]))[0].tolist() == [20]
