"""Tables in Markdown whose columns line up, for the terminal and for documents."""

from collections.abc import Sequence


def make_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table, words to the left and numbers to the right of their columns.

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
    columns = []
    for heading, *cells in zip(headings, *rows, strict=True):
        width = max(3, len(heading), *map(len, cells))
        if any(cell[0].isalpha() for cell in cells if cell):
            columns.append([text.ljust(width) for text in (heading, "-" * width, *cells)])
        else:
            rule = "-" * (width - 1) + ":"
            columns.append([text.rjust(width) for text in (heading, rule, *cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in zip(*columns, strict=True))
