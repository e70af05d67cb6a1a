"""``python -m experiments.paper [CLAIM …]`` writes docs/paper.md, its figures and their numbers."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

from experiments.paper.claims import Claim, page
from experiments.paper.figure2 import FIGURE_2, FIGURE_2_MNIST
from experiments.paper.figure3 import FIGURE_3, FIGURE_3_CIFAR_10
from experiments.paper.text import TEXT
from experiments.paper.theorems import THEOREMS
from experiments.paper.toy import TOY
from experiments.studies.commands import DOCS

CLAIMS: tuple[Claim, ...] = (TOY, FIGURE_2, FIGURE_3, THEOREMS, TEXT)

IF_NAMED: tuple[Claim, ...] = (FIGURE_2_MNIST, FIGURE_3_CIFAR_10)
"""Claims on data that is not everywhere, and for longer; see `experiments.studies.hub`."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Find what the command line names, or `CLAIMS`; a failed check is an exit status of 1."""
    every = {claim.name: claim for claim in (*CLAIMS, *IF_NAMED)}
    parser = argparse.ArgumentParser(prog="python -m experiments.paper")
    parser.add_argument("claim", nargs="*", choices=[*every, []])
    parser.add_argument("--quick", action="store_true", help="fewer rounds and copies")
    parser.add_argument(
        "--into", type=Path, default=DOCS, help="where to write; docs/ if not given"
    )
    options = parser.parse_args(arguments)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    folder, failed = options.into / "paper", False
    for name, claim in every.items():
        if name not in (options.claim or [usual.name for usual in CLAIMS]):
            continue
        start = monotonic()
        wrong = claim.check(claim.find(folder, quick=options.quick))
        verdict = "holds" if not wrong else "does not hold: " + "; ".join(wrong)
        print(f"{claim.title}: {verdict} ({monotonic() - start:.0f} s)", flush=True)
        failed |= bool(wrong)
    (options.into / "paper.md").write_text(page([*every.values()], folder))
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
