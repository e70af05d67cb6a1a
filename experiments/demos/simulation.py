"""The comparison in Flower's own Ray simulation, set up and taken down: ``make demo``.

``python -m experiments.demos.simulation [KEY=VALUE ...]``
"""

from pathlib import Path

from experiments.apps import HETEROGENEOUS, read_command_line
from experiments.apps.heterogeneous.fedmedian_heterogeneous import PROGRESS
from experiments.demos.flower_runtime import FlowerError, flower_runtime
from experiments.studies.report import report

_RESULTS = Path(__file__).resolve().parents[1] / "results" / "demo"


def main() -> None:
    """Run the app, show its progress, and print its table."""
    config = read_command_line("experiments.demos.simulation")
    folder = Path(str(config["output"] or _RESULTS)).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    results, log_file = folder / "results.json", folder / "flower.log"
    results.unlink(missing_ok=True)  # what is there afterwards is this run's
    config["output"] = str(folder)
    print("Starting Flower's simulation engine …", flush=True)
    try:
        with log_file.open("w") as log, flower_runtime() as runtime:
            for line in runtime.simulate(HETEROGENEOUS, config):
                print(line, file=log, flush=True)
                _, found, progress = line.partition(PROGRESS)
                if found:
                    print(progress, flush=True)
    except FlowerError as error:
        raise SystemExit(f"{error}; the log is in {log_file}") from error
    except KeyboardInterrupt:
        raise SystemExit("interrupted; everything that was started has been stopped") from None
    report(folder)
    print(f"Written: {folder / 'accuracy.png'} and {results.name}")


if __name__ == "__main__":
    main()
