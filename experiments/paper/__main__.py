"""``python -m experiments.paper [CLAIM …]`` writes docs/paper.md, its figures and their numbers."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

from experiments.paper.claims import Claim, page
from experiments.paper.theorems import THEOREMS
from experiments.paper.toy import TOY

DOCS = Path(__file__).resolve().parents[2] / "docs"

CLAIMS: tuple[Claim, ...] = (TOY, THEOREMS)


def main(arguments: Sequence[str] | None = None) -> None:
    """Find what the command line names, or all; a failed check is an exit status of 1."""
    parser = argparse.ArgumentParser(prog="python -m experiments.paper")
    parser.add_argument("claim", nargs="*", choices=[*(claim.name for claim in CLAIMS), []])
    parser.add_argument("--quick", action="store_true", help="fewer rounds and copies")
    parser.add_argument(
        "--into", type=Path, default=DOCS, help="where to write; docs/ if not given"
    )
    options = parser.parse_args(arguments)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    folder, failed = options.into / "paper", False
    for claim in CLAIMS:
        if options.claim and claim.name not in options.claim:
            continue
        start = monotonic()
        wrong = claim.check(claim.find(folder, quick=options.quick))
        verdict = "holds" if not wrong else "does not hold: " + "; ".join(wrong)
        print(f"{claim.title}: {verdict} ({monotonic() - start:.0f} s)", flush=True)
        failed |= bool(wrong)
    (options.into / "paper.md").write_text(page(CLAIMS, folder))
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
