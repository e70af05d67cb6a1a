"""The comparison in Flower's own Ray simulation, set up and taken down: what ``make demo`` runs.

``python -m experiments.heterogeneous.simulate [KEY=VALUE ...]``
"""

import json
import sys
from pathlib import Path

from experiments.flower_runtime import FlowerError, SimulationRuntime, ending_on_signals
from experiments.heterogeneous.cli import APP, read_config
from experiments.heterogeneous.fedmedian_heterogeneous.report import PROGRESS, Run, print_table

_RESULTS = APP.parent / "results" / "demo"


def main() -> None:
    """Run the app, show its progress, and print its table."""
    config = read_config(sys.argv[1:])
    folder = Path(str(config["output"] or _RESULTS)).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    results, log_file = folder / "results.json", folder / "flower.log"
    results.unlink(missing_ok=True)  # what is there afterwards is this run's
    config["output"] = str(folder)
    print("Starting Flower's simulation engine …", flush=True)
    with ending_on_signals(), log_file.open("w") as log:

        def show(line: str) -> None:
            print(line, file=log, flush=True)
            _, found, progress = line.partition(PROGRESS)
            if found:
                print(progress, flush=True)

        try:
            with SimulationRuntime() as runtime:
                runtime.run(APP, config, int(config["num-clients"]), show)
        except FlowerError as error:
            raise SystemExit(f"{error}; the log is in {log_file}") from error
        except KeyboardInterrupt:
            raise SystemExit("interrupted; everything that was started has been stopped") from None
    print_table([Run(**run) for run in json.loads(results.read_text())["runs"]])
    print(f"Written: {folder / 'accuracy.png'} and {results.name}")


if __name__ == "__main__":
    main()
