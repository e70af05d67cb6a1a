"""The server: runs each strategy from the same start on the same clients, and compares them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from flwr.app import ArrayRecord, Context, MetricRecord, UserConfig
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, FedMedian, Strategy

from fedmedian import Adaptive, Majority, Rotation, TopUp
from fedmedian.rules.noise import NOISE_FAMILIES, Noise
from fedmedian.strategies import Checkpoint, MedianSGD, SignSGD

from .measuring import MeteredGrid, Run, Tell, measure
from .report import compare_uplinks, print_progress, write_report
from .task import evaluate, load_test_set, make_network

app = ServerApp()

S = TypeVar("S", bound=Strategy)


def for_all_clients(strategy: Callable[..., S], config: UserConfig) -> Callable[..., S]:
    """Return a strategy's class with the options that train all clients in every round."""
    clients = int(config["num-clients"])
    return partial(
        strategy, fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients
    )


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
    seed, folder = int(config["seed"]), str(config["checkpoint"])
    checkpoint = Checkpoint(Path(folder) / name) if folder else None
    sign, median = (
        partial(for_all_clients(ours, config), seed=seed, checkpoint=checkpoint)
        for ours in (SignSGD, MedianSGD)
    )
    rate = float(config["server-learning-rate"])
    vote_rate = float(config["majority-learning-rate"])
    basis = Rotation() if config["rotation"] else None
    strategies: dict[str, tuple[str, Callable[[], Strategy]]] = {
        "fedavg": ("FedAvg", for_all_clients(FedAvg, config)),
        "fedmedian": ("FedMedian", for_all_clients(FedMedian, config)),
        "sign-plain": (
            "SignSGD (no noise)",
            partial(sign, None, Majority(), vote_rate, rotation=None),
        ),
        "sign-majority": (
            "SignSGD (majority)",
            lambda: sign(make_noise(config), Majority(), vote_rate, rotation=basis),
        ),
        "sign": (
            "SignSGD",
            lambda: sign(make_noise(config), learning_rate=rate, rotation=basis),
        ),
        "median-plain": (
            "MedianSGD (no noise)",
            partial(median, None, learning_rate=rate, rotation=None),
        ),
        "median": (
            "MedianSGD",
            lambda: median(make_noise(config), learning_rate=rate, rotation=basis),
        ),
    }
    if name not in strategies:
        raise ValueError(f"strategy must be among {', '.join(strategies)}, got {name!r}")
    label, make = strategies[name]
    return label, make()


def make_noise(config: UserConfig) -> Noise:
    """Return the noise that the run configuration describes."""
    scale, rule = float(config["noise-scale"]), str(config["scale-rule"])
    family = NOISE_FAMILIES.find(str(config["noise"]))
    if rule == "fixed":
        return family(scale)
    if rule == "top-up":
        return family(TopUp(scale or None))
    return family(Adaptive(scale or 3.0, magnitude=rule))  # type: ignore[arg-type]  # it checks


def train(strategy: Strategy, grid: Grid, config: UserConfig, tell: Tell) -> None:
    """Train the network from the seed's start, and test it before the first round and after each.

    Parameters
    ----------
    strategy : Strategy
        The strategy.
    grid : Grid
        The clients.
    config : dict
        The run configuration.
    tell : callable
        Takes the number of each round and the test accuracy after it.
    """
    images, labels = load_test_set()
    model = make_network(int(config["seed"]))
    initial = {name: value.clone() for name, value in model.state_dict().items()}

    def test(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        model.load_state_dict(arrays.to_torch_state_dict())
        accuracy = evaluate(model, images, labels)
        tell(server_round, accuracy)
        return MetricRecord({"accuracy": accuracy})

    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(initial),
        num_rounds=int(config["rounds"]),
        evaluate_fn=test,
    )


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
        The runs.
    """
    names = [name.strip() for name in str(config["strategy"]).split(",")]
    strategies = [make_strategy(name, config) for name in names]  # a wrong name ends it here
    return [
        measure(label, int(config["seed"]), MeteredGrid(grid), partial(_serve, label, one, config))
        for label, one in strategies
    ]


def _serve(label: str, strategy: Strategy, config: UserConfig, grid: Grid, tell: Tell) -> None:
    rounds = int(config["rounds"])

    def tell_and_print(server_round: int, accuracy: float) -> None:
        tell(server_round, accuracy)
        if server_round % max(rounds // 10, 1) == 0:
            print_progress(label, server_round, rounds, accuracy)

    train(strategy, grid, config, tell_and_print)


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
    print(compare_uplinks(runs), flush=True)
    if config["output"]:
        write_report(Path(str(config["output"])), runs, dict(config), describe(config))


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the comparison that the run configuration describes."""
    run_comparison(grid, context.run_config)
