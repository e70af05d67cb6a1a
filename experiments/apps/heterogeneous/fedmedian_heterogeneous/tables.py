"""Tables in Markdown whose columns line up, for the terminal and for documents."""

from collections.abc import Sequence


def make_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table, its first column to the left and the others, numbers, to the right.

    Parameters
    ----------
    headings : sequence of str
        The columns' headings.
    rows : sequence of sequence of str
        The cells, as many in each row as there are headings.

    Returns
    -------
    str
        The lines of the table.
    """
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = []
    for first, *others in (headings, rule, *rows):
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        lines.append(f"| {' | '.join([first.ljust(widths[0]), *cells])} |")
    return "\n".join(lines)
