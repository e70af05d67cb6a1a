"""The comparison of strategies on clients whose data differ, in this process, without Ray.

``python -m experiments.studies.heterogeneous "partition='dirichlet'" alpha=0.3 rounds=20``
"""

import logging
from pathlib import Path
from tempfile import TemporaryDirectory

from flwr.app import Context, RecordDict

from experiments.apps import read_command_line
from experiments.apps.heterogeneous.fedmedian_heterogeneous import client_app, server_app
from experiments.studies.report import report
from fedmedian.clients import InProcessGrid


def main() -> None:
    """Compare the strategies, print a table, and keep results and figure in ``output``, if any."""
    config = read_command_line("experiments.studies.heterogeneous")
    logging.getLogger("flwr").setLevel(logging.ERROR)
    grid = InProcessGrid(client_app.app, int(config["num-clients"]), run_config=config)
    with TemporaryDirectory() as temporary:
        config["output"] = config["output"] or temporary
        server_app.app(grid, Context(1, 1, {}, RecordDict(), config))
        report(Path(str(config["output"])))


if __name__ == "__main__":
    main()
