"""``python -m experiments.claims [CLAIM …]`` writes `PAGES` with figures and numbers to docs/."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

from experiments.claims.bits.page import BITS, BITS_CIFAR_10
from experiments.claims.claim import Claim, Page
from experiments.claims.figure2 import FIGURE_2, FIGURE_2_MNIST
from experiments.claims.figure3 import FIGURE_3, FIGURE_3_CIFAR_10
from experiments.claims.text import TEXT
from experiments.claims.theorems import THEOREMS
from experiments.claims.toy import TOY
from experiments.studies.commands import DOCS, parse_names
from experiments.studies.progress import say, tracked

IF_NAMED: tuple[Claim, ...] = (FIGURE_2_MNIST, FIGURE_3_CIFAR_10, BITS_CIFAR_10)
"""Claims that need a download and more time; see `experiments.studies.hub`."""

PAPER = Page(
    "paper",
    "# The paper, reproduced\n\n"
    "This page measures claims of Chen et al., *Distributed Training with Heterogeneous Data*, "
    "NeurIPS 2020 ([arXiv 1906.01736](https://arxiv.org/abs/1906.01736)), with this package's "
    "strategies; the last claim is ours. `make figures` writes the page, and measures only what is "
    "missing. `ARGS=figure2-mnist` and `ARGS=figure3-cifar-10` use the paper's own data, from the "
    "Hugging Face Hub or from the folders in the environment variables `MNIST` and `CIFAR_10`.",
    (TOY, FIGURE_2, FIGURE_3, THEOREMS, TEXT, FIGURE_2_MNIST, FIGURE_3_CIFAR_10),
)

PAGES: tuple[Page, ...] = (PAPER, BITS)


def main(arguments: Sequence[str] | None = None) -> None:
    """Check the claims on the command line, or all but `IF_NAMED`; a failed check exits with 1."""
    parser = argparse.ArgumentParser(prog="python -m experiments.claims")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and copies")
    parser.add_argument(
        "--into", type=Path, default=DOCS, help="where to write; docs/ if not given"
    )
    every = [claim for page in PAGES for claim in page.claims]
    usual = [claim.name for claim in every if claim not in IF_NAMED]
    names, options = parse_names(parser, "claim", [claim.name for claim in every], arguments, usual)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    failed = False
    for page in PAGES:
        chosen = [claim for claim in page.claims if claim.name in names]
        for claim in tracked(chosen, "claim"):
            start = monotonic()
            wrong = claim.check(claim.find(options.into / page.name, quick=options.quick))
            verdict = "does not hold: " + "; ".join(wrong) if wrong else "holds"
            say(f"{claim.title}: {verdict} ({monotonic() - start:.0f} s)")
            failed |= bool(wrong)
        if chosen:
            (options.into / f"{page.name}.md").write_text(page.text(options.into))
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
