"""The comparison of strategies on clients whose data differ, in this process, without Ray.

``python -m experiments.studies.heterogeneous "partition='dirichlet'" alpha=0.3 rounds=20``
"""

import logging
import sys

from experiments.apps import HETEROGENEOUS, read_config
from experiments.apps.heterogeneous.fedmedian_heterogeneous import client_app, server_app
from fedmedian.clients import InProcessGrid


def main() -> None:
    """Compare the strategies, and print and write what the app does."""
    config = read_config(HETEROGENEOUS, sys.argv[1:])
    logging.getLogger("flwr").setLevel(logging.ERROR)
    grid = InProcessGrid(client_app.app, int(config["num-clients"]), run_config=config)
    server_app.run_comparison(grid, config)


if __name__ == "__main__":
    main()
