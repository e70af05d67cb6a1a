"""The server: runs each strategy from the same start on the same clients, and compares them."""

import time
from collections.abc import Callable
from pathlib import Path

from flwr.app import ArrayRecord, Context, MetricRecord, UserConfig
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, FedMedian, Strategy

from fedmedian import Adaptive
from fedmedian.noise import NOISE_FAMILIES, Noise
from fedmedian.strategies import Checkpoint, MedianSGD, SignSGD
from fedmedian.strategies.options import CoreOptions, FedAvgOptions

from .metered import MeteredGrid
from .report import Run, print_progress, print_table, write_report
from .task import evaluate, load_test_set, make_network

app = ServerApp()


def make_strategy(name: str, config: UserConfig) -> tuple[str, Strategy]:
    """Return a strategy and the name it has in tables.

    Parameters
    ----------
    name : str
        "fedavg", "fedmedian", "sign-plain", "sign-majority", "sign", "median-plain" or "median".
    config : dict
        The run configuration.

    Returns
    -------
    label : str
        The name in tables and figures.
    strategy : Strategy
        The strategy, for all clients in every round.

    Raises
    ------
    ValueError
        If there is no such strategy.
    """
    clients = int(config["num-clients"])
    everyone: FedAvgOptions = {
        "fraction_evaluate": 0.0,
        "min_train_nodes": clients,
        "min_available_nodes": clients,
    }
    ours: CoreOptions = {"seed": int(config["seed"])}
    if config["checkpoint"]:
        ours["checkpoint"] = Checkpoint(Path(str(config["checkpoint"])) / name)
    rate, vote_rate = (
        float(config["server-learning-rate"]),
        float(config["majority-learning-rate"]),
    )
    strategies: dict[str, tuple[str, Callable[[], Strategy]]] = {
        "fedavg": ("FedAvg", lambda: FedAvg(**everyone)),
        "fedmedian": ("FedMedian", lambda: FedMedian(**everyone)),
        "sign-plain": (
            "SignSGD (no noise)",
            lambda: SignSGD(None, "majority", vote_rate, **ours, **everyone),
        ),
        "sign-majority": (
            "SignSGD (majority)",
            lambda: SignSGD(make_noise(config, 3.0), "majority", vote_rate, **ours, **everyone),
        ),
        "sign": (
            "SignSGD",
            lambda: SignSGD(make_noise(config, 3.0), learning_rate=rate, **ours, **everyone),
        ),
        "median-plain": (
            "MedianSGD (no noise)",
            lambda: MedianSGD(None, learning_rate=rate, **ours, **everyone),
        ),
        "median": (
            "MedianSGD",
            lambda: MedianSGD(make_noise(config, 6.0), learning_rate=rate, **ours, **everyone),
        ),
    }
    if name not in strategies:
        raise ValueError(f"strategy must be among {', '.join(strategies)}, got {name!r}")
    label, make = strategies[name]
    return label, make()


def make_noise(config: UserConfig, default_scale: float) -> Noise:
    """Return the noise that the run configuration describes.

    Parameters
    ----------
    config : dict
        The run configuration.
    default_scale : float
        What a noise-scale of 0 stands for.

    Returns
    -------
    Noise
        The noise.
    """
    scale, rule = float(config["noise-scale"]) or default_scale, str(config["scale-rule"])
    family = NOISE_FAMILIES[str(config["noise"])]
    if rule == "fixed":
        return family(scale)
    return family(Adaptive(scale, of=rule))  # type: ignore[arg-type]  # Adaptive checks it


def compare(grid: Grid, config: UserConfig) -> list[Run]:
    """Run every strategy that the configuration names, one after the other.

    Parameters
    ----------
    grid : Grid
        The clients.
    config : dict
        The run configuration.

    Returns
    -------
    list of Run
        What was measured.
    """
    rounds = int(config["rounds"])
    images, labels = load_test_set()
    model = make_network(int(config["seed"]))
    initial = {name: value.clone() for name, value in model.state_dict().items()}
    names = [name.strip() for name in str(config["strategy"]).split(",")]
    strategies = [make_strategy(name, config) for name in names]  # a wrong name ends it here
    runs = []
    for label, strategy in strategies:
        history: list[float] = []

        def test(server_round: int, arrays: ArrayRecord) -> MetricRecord:
            model.load_state_dict(arrays.to_torch_state_dict())
            accuracy = evaluate(model, images, labels)
            history.append(accuracy)  # noqa: B023  # called before the next strategy's turn
            if server_round % max(rounds // 10, 1) == 0:
                print_progress(label, server_round, rounds, accuracy)  # noqa: B023
            return MetricRecord({"accuracy": accuracy})

        metered, start = MeteredGrid(grid), time.perf_counter()
        strategy.start(
            grid=metered,
            initial_arrays=ArrayRecord(initial),
            num_rounds=rounds,
            evaluate_fn=test,
        )
        runs.append(
            Run(
                strategy=label,
                accuracy=history[-1],
                rounds=rounds,
                uplink_bytes=metered.bytes_up / metered.replies,
                seconds=time.perf_counter() - start,
                history=history,
            )
        )
    return runs


def describe(config: UserConfig) -> str:
    """Return the clients and their data in words."""
    classes = int(config["classes-per-client"])
    kinds = {
        "classes": f"{classes} {'class' if classes == 1 else 'classes'} each",
        "dirichlet": f"Dirichlet({config['alpha']})",
        "iid": "iid",
    }
    return f"Digits, {config['num-clients']} clients, {kinds[str(config['partition'])]}"


def run_comparison(grid: Grid, config: UserConfig) -> None:
    """Compare the strategies, print a table, and write the report if a folder is given."""
    runs = compare(grid, config)
    print_table(runs)
    if config["output"]:
        write_report(Path(str(config["output"])), runs, dict(config), describe(config))


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the comparison that the run configuration describes."""
    run_comparison(grid, context.run_config)
