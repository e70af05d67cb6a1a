"""Three apps as Flower's quickstarts are, with FedAvg and with two lines changed.

``python -m experiments.quickstarts [REPETITIONS]``
"""

import argparse
import logging

from datasets import disable_progress_bars
from rich.console import Console

from experiments.quickstarts import comparison


def main() -> None:
    """Run every app both ways, and print a table of the means over repetitions."""
    parser = argparse.ArgumentParser(prog="python -m experiments.quickstarts")
    parser.add_argument("repetitions", type=_at_least_one, nargs="?", default=1)
    repetitions = parser.parse_args().repetitions
    logging.getLogger("flwr").setLevel(logging.ERROR)
    disable_progress_bars()
    pairs = [comparison.compare(folder, repetitions) for folder in comparison.APPS]
    Console(width=100).print(comparison.make_table(pairs))


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number >= 1, got {text!r}")
    return number


if __name__ == "__main__":
    main()
