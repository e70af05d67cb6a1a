"""The study of bits against accuracy: what is sent, and how well the model learns of it.

``python -m experiments.studies.bits`` writes docs/bits.md, its figure and the numbers behind it,
docs/bits/*.json; ``python -m experiments.studies.bits federations`` does its tables alone; so does
hole, a published setting in which signs fail. Results are kept in experiments/results, and a study
that was killed goes on where it was.
"""

from collections.abc import Sequence

from experiments.studies.bits.page import page, write
from experiments.studies.bits.study import PARTS, measure
from experiments.studies.commands import DOCS, chosen_parts


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the parts that the command line names, or all, and write the page."""
    folder = DOCS / "bits"
    for name in chosen_parts("bits", PARTS, arguments):
        write(folder, name, measure(PARTS[name]))
    (DOCS / "bits.md").write_text(page(folder))
    print("Written: docs/bits.md")


if __name__ == "__main__":
    main()
