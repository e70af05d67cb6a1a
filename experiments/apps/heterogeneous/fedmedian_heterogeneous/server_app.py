"""The server: runs each strategy from the same start on the same clients, and compares them."""

import json
import random
from collections.abc import Callable, Iterable
from functools import partial
from math import nan
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, UserConfig
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, FedMedian, Result, Strategy

from fedmedian import Adaptive, CodedSteps, Majority, Rotation, TopUp
from fedmedian.records import serialized_sizes
from fedmedian.rules.noise import NOISE_FAMILIES, Noise
from fedmedian.strategies import Checkpoint, MedianSGD, SignSGD

from . import PROGRESS
from .task import evaluate, load_test_set, make_network

app = ServerApp()

S = TypeVar("S", bound=Strategy)


def for_all_clients(strategy: Callable[..., S], config: UserConfig) -> Callable[..., S]:
    """Return a strategy's class with the options that train all clients in every round."""
    clients = int(config["num-clients"])
    return partial(
        strategy,
        fraction_evaluate=0.0,
        min_train_nodes=clients,
        min_available_nodes=clients,
    )


def make_strategy(name: str, config: UserConfig) -> tuple[str, Strategy]:
    """Return a strategy and the name it has in tables.

    Parameters
    ----------
    name : str
        "fedavg", "fedmedian", "sign-plain", "sign-majority", "sign", "sign-coded", "median-plain"
        or "median".
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
        "sign-coded": (
            "SignSGD (coded downlink)",
            lambda: sign(
                make_noise(config), learning_rate=rate, rotation=basis, downlink=CodedSteps()
            ),
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


def train(
    strategy: Strategy, grid: Grid, config: UserConfig, tell: Callable[[int, float], None]
) -> Result:
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

    Returns
    -------
    Result
        What the strategy returns.
    """
    images, labels = load_test_set()
    model = make_network(int(config["seed"]))
    initial = {name: value.clone() for name, value in model.state_dict().items()}

    def test(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        model.load_state_dict(arrays.to_torch_state_dict())
        accuracy = evaluate(model, images, labels)
        tell(server_round, accuracy)
        return MetricRecord({"accuracy": accuracy})

    return strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(initial),
        num_rounds=int(config["rounds"]),
        evaluate_fn=test,
    )


def compare(grid: Grid, config: UserConfig) -> list[dict[str, Any]]:
    """Run every strategy that the configuration names, one after the other.

    Parameters
    ----------
    grid : Grid
        The clients.
    config : dict
        The run configuration.

    Returns
    -------
    list of dict
        Of each run ``strategy``, ``seed``, ``history`` (pairs of a round and the test accuracy
        after it), ``uplink_bytes`` and ``downlink_bytes``, the means over clients and rounds.
    """
    names = [name.strip() for name in str(config["strategy"]).split(",")]
    strategies = [make_strategy(name, config) for name in names]  # a wrong name ends it here
    return [_run(label, one, grid, config) for label, one in strategies]


def _run(label: str, strategy: Strategy, grid: Grid, config: UserConfig) -> dict[str, Any]:
    seed, rounds = int(config["seed"]), int(config["rounds"])
    history: list[tuple[int, float]] = []

    def tell(server_round: int, accuracy: float) -> None:
        history.append((server_round, accuracy))
        if server_round % max(rounds // 10, 1) == 0:
            progress = f"round {server_round:3}/{rounds}  accuracy {accuracy:.3f}"
            print(f"{PROGRESS}{label:24} {progress}", flush=True)

    configure, aggregate = strategy.configure_train, strategy.aggregate_train
    up, down = list[int](), list[int]()

    def asking(
        server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        messages = list(configure(server_round, arrays, config, grid))
        down.extend(serialized_sizes(messages))
        return messages

    def hearing(server_round: int, replies: Iterable[Message]) -> Any:
        replies = list(replies)
        up.extend(serialized_sizes(reply for reply in replies if reply.has_content()))
        return aggregate(server_round, replies)

    strategy.configure_train = asking  # type: ignore[method-assign]
    strategy.aggregate_train = hearing  # type: ignore[method-assign]
    random.seed(seed)  # Flower's choice of nodes follows it
    train(strategy, grid, config, tell)
    return {
        "strategy": label,
        "seed": seed,
        "history": history,
        "uplink_bytes": fmean(up or [nan]),
        "downlink_bytes": fmean(down or [nan]),
    }


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the comparison that the run configuration describes, and write results.json."""
    config = context.run_config
    results = json.dumps({"runs": compare(grid, config), "config": dict(config)}, indent=1)
    if config["output"]:
        folder = Path(str(config["output"]))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text(results + "\n")
