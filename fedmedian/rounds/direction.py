"""The direction of a round, made some blocks at a time."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from threading import local

import numpy as np

from fedmedian.aggregators.base import Aggregator, Answers
from fedmedian.aggregators.diagnostics import Seen, report_of
from fedmedian.checks import require_result
from fedmedian.kernels.threads import in_threads
from fedmedian.model.blocks import Blocks, Part
from fedmedian.model.layout import Layout
from fedmedian.rules.trust import agreed_size
from fedmedian.steps.instruction import Instruction
from fedmedian.wire.scalars import Float32

_SPAN = 1 << 19
"""The most coordinates that are aggregated at once, unless a single block has more."""

Make = Callable[[range], tuple[list[Float32], list[Seen]]]
Undo = Callable[[int, Float32], Iterable[tuple[Part, Float32]]]


@dataclass(frozen=True, eq=False)
class Direction:
    """The direction of a round, in the basis of the parameters.

    Where aggregator and client steps allow it, some blocks are aggregated at a time, and used while
    they are in the processor's cache.

    Parameters
    ----------
    aggregator : Aggregator
        The rule.
    answers : Answers
        The answers that it combines.
    instruction : Instruction
        What the clients were asked to do.
    layout : Layout
        The model's layout.
    rng : numpy.random.Generator
        Makes the rule's random choices.
    """

    aggregator: Aggregator
    answers: Answers
    instruction: Instruction
    layout: Layout
    rng: np.random.Generator

    def hand_out(self, use: Callable[[Part, Float32], None], threads: int) -> None:
        """Make the direction part by part, and report what the answers show.

        Parameters
        ----------
        use : callable
            Takes a part of an array of the flat vector, and the direction there, which it may
            overwrite. The order of the calls does not matter.
        threads : int
            The number of threads that `use` is called on at once.
        """
        blocks, make, undo = self._by_block()

        def hand_out_some(span: range) -> list[Seen]:
            with np.errstate(over="ignore", invalid="ignore"):  # other threads do not inherit it
                parts, seen = make(span)
                for number, part in zip(span, parts, strict=True):
                    for place, direction in undo(number, part):
                        use(place, direction)
            return seen

        found = in_threads(hand_out_some, _spans(blocks), threads)
        seen = [one for some in found for one in some]
        if self.answers.report is not None and seen:
            self.answers.report.update(report_of(seen))

    def _by_block(self) -> tuple[Blocks, Make, Undo]:
        """Return blocks, what makes the direction of some, and what undoes the steps of one."""
        layout, undoes_blocks = self.layout, self.instruction.undoes_blocks(self.layout)
        undo: Undo = partial(self.instruction.undo_block, layout=layout)
        if undoes_blocks and self.aggregator.is_separable(self.answers):
            return self.answers.blocks, self._of_some(), undo
        with np.errstate(over="ignore", invalid="ignore"):
            whole = self._of(self.answers)
            if undoes_blocks:
                blocks = self.answers.blocks
            else:
                blocks, undo = layout.blocks, _as_it_is
                whole = self.instruction.undo(whole, layout)
        parts = blocks.split(whole)
        return blocks, lambda span: (parts[span.start : span.stop], []), undo

    def _of_some(self) -> Make:
        """Return what makes the direction of some blocks, in memory that each thread uses again."""
        answers, own = self.answers, local()
        longest = max(sum(answers.blocks.sizes[i] for i in span) for span in _spans(answers.blocks))

        def make(span: range) -> tuple[list[Float32], list[Seen]]:
            if not hasattr(own, "memory"):
                own.memory = np.empty(longest, dtype=np.float32)
            some = answers.within(span, self.aggregator.encoding, own.memory)
            return some.blocks.split(self._of(some)), some.seen or []

        return make

    def _of(self, answers: Answers) -> Float32:
        """Return the direction of answers, 0 in blocks that at most t clients have moved.

        Otherwise noise, or t liars, would move a block that does not train.
        """
        made = self.aggregator.direction(answers, self.rng)
        direction: Float32 = require_result(self.aggregator, made, answers.blocks.dim)
        if answers.magnitudes is not None:
            sizes = agreed_size(answers.magnitudes)
            for part, size in zip(answers.blocks.split(direction), sizes, strict=True):
                if size == 0:
                    part[:] = 0
        return direction


def _spans(blocks: Blocks) -> list[range]:
    """Return consecutive blocks that are aggregated at once."""
    spans, first, length = list[range](), 0, 0
    for block, size in enumerate(blocks.sizes):
        if length and length + size > _SPAN:
            spans.append(range(first, block))
            first, length = block, 0
        length += size
    return [*spans, range(first, len(blocks.sizes))]


def _as_it_is(number: int, direction: Float32) -> Iterator[tuple[Part, Float32]]:
    yield Part(number, 0, direction.size), direction[None]
