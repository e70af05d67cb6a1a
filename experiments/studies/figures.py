"""The figures of docs/, from the runs of `random_basis`, and from docs/tables.

``python -m experiments.studies.figures`` writes them into docs/, after the runs that are missing;
``python -m experiments.studies.figures attacks`` writes one; so do votes, bases, curves,
robustness and privacy. Those of attacks, robustness and privacy show the tables that commands have
printed.
"""

from collections.abc import Callable, Sequence
from statistics import fmean
from textwrap import fill

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from matplotlib.figure import Figure
from PIL import Image

from experiments.studies import privacy as studied
from experiments.studies.commands import DOCS, chosen_parts, printed_table, printed_tables
from experiments.studies.federation import ATTACKS, Clients, Setting, make_network
from experiments.studies.random_basis import CURVES, run_all
from experiments.studies.robustness import STUDIES, rules
from fedmedian import Gaussian
from fedmedian.clients import InProcessGrid
from fedmedian.kernels.rotation import rotate
from fedmedian.privacy import noise_multiplier_for

COLORS = {
    "FedAvg": "black",
    "FedMedian": "tab:gray",
    "FedTrimmedAvg (told)": "tab:brown",
    "Krum (told)": "tab:pink",
    "EDEN, one bit": "tab:purple",
    "SignSGD()": "tab:blue",
    "MedianSGD()": "tab:orange",
    "SignSGD, parameters' basis": "tab:cyan",
    "MedianSGD, parameters' basis": "tab:red",
}
"""A strategy has one color in all figures."""

STYLES = ("-", "--", "-.", ":")
"""The lines of a panel also differ in dashes, to be told apart in gray."""


_LINES = {
    "FedAvg": "-",
    "FedMedian": ":",
    "EDEN, one bit": "-.",
    "SignSGD()": "-",
    "MedianSGD()": "--",
    "SignSGD, parameters' basis": "o-",
    "MedianSGD, parameters' basis": "s--",
}
"""The lines of many strategies in a panel, which `STYLES` are too few for."""


def accuracies(table: str) -> dict[str, dict[str, float]]:
    """Return the accuracies of a table that a command has printed, by rule and attack."""
    (_, *attacks), rows = printed_table(table)
    return {rule: dict(zip(attacks, map(float, ends), strict=True)) for rule, *ends in rows}


def two_bases() -> Figure:
    """Draw two clients' updates against each other, coordinate by coordinate, in two bases."""
    setting = Setting(dataset="digits", partition="classes", learning_rate=0.1)
    app = ClientApp()
    app.train()(Clients(setting, 0).train)
    grid = InProcessGrid(app, setting.num_clients)
    model = ArrayRecord(make_network("mlp", "digits", 0).state_dict())
    content = RecordDict({"arrays": model, "config": ConfigRecord({"server-round": 1})})
    nodes = grid.get_node_ids()[:2]
    replies = grid.send_and_receive([Message(content, node, MessageType.TRAIN) for node in nodes])
    updates = [
        (model["1.weight"].numpy() - reply.content.array_records["arrays"]["1.weight"].numpy())
        for reply in replies
    ]
    own = [update.ravel() / np.sqrt(np.mean(np.square(update))) for update in updates]
    rotated = [rotate(update, np.random.default_rng(0)) for update in own]
    figure = Figure(figsize=(9, 5), layout="constrained")
    panels = zip(
        figure.subplots(1, 2), (own, rotated), ("parameters", "a random basis"), strict=True
    )
    shown = np.random.default_rng(0).permutation(own[0].size)[:20_000]
    for axes, (first, second), title in panels:
        axes.plot(first[shown], second[shown], ".", markersize=1.5, alpha=0.3)
        axes.axhline(0, color="black", linewidth=0.5)
        axes.axvline(0, color="black", linewidth=0.5)
        axes.set(
            title=f"coordinates are {title}",
            xlabel="client 1's update over its RMS",
            ylabel="client 2's",
            xlim=(-5, 5),
            ylim=(-5, 5),
            aspect="equal",
        )
    return figure


def three_votes() -> Figure:
    """Draw the mean vote of three clients over where they are asked, without noise and with it."""
    updates = np.array([1.0, 2.0, 10.0])  # the example of Chen et al. (arXiv 1906.01736)
    asked = np.linspace(-2, 13, 1501)
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    silent = np.sign(updates[:, None] - asked).mean(axis=0)
    axes.plot(asked, silent, color="tab:gray", label="no noise: crosses zero at the median")
    for scale, color, style in ((3.0, "tab:cyan", "-."), (10.0, "tab:blue", "-")):
        away = (updates[:, None] - asked) / scale
        votes = np.mean(2 * Gaussian(scale).cdf(away) - 1, axis=0)
        crossed = asked[np.argmin(np.abs(votes))]
        label = f"Gaussian noise, b = {scale:.0f}: crosses zero at {crossed:.1f}"
        axes.plot(asked, votes, style, color=color, label=label)
    for center, name in ((np.median(updates), "median"), (updates.mean(), "mean")):
        axes.axvline(center, color="black", linewidth=0.8, linestyle="--")
        axes.annotate(f" {name} {center:.3g}", (center, -0.95))
    axes.axhline(0, color="black", linewidth=0.8)
    axes.plot(updates, np.zeros(3), "o", color="black", label="the clients' updates: 1, 2, 10")
    axes.set(xlabel="x", ylabel="mean of sign(u_i − x + b·ξ_i)", xlim=(-2, 13), ylim=(-1.05, 1.05))
    axes.legend(loc="upper right", fontsize="small")
    return figure


def curves() -> Figure:
    """Draw accuracy over rounds, ten clients with alike and unlike data."""
    names = list(_LINES)
    found = run_all((n, s, seed) for n in names for s in CURVES.values() for seed in (0, 1))
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    both = figure.subplots(1, 2)
    for axes, (title, setting) in zip(both, CURVES.items(), strict=True):
        for name in names:
            runs = [found[name, setting, seed]["accuracy"] for seed in (0, 1)]
            mean = [fmean(seeds) for seeds in zip(*runs, strict=True)]
            style, marked = _LINES[name], {"markevery": 5, "markersize": 4}
            axes.plot(
                range(1, len(mean) + 1), mean, style, color=COLORS[name], label=name, **marked
            )
        axes.set(title=title, xlabel="round", ylabel="test accuracy")
        axes.grid(alpha=0.3)
    both[0].legend(loc="lower right", fontsize="small")
    return figure


def worst_cases() -> Figure:
    """Draw each strategy's accuracy under each attack, and the worst of them."""
    table = accuracies("random_basis-attacks")
    ends = {name: [table[name][attack] for attack in ATTACKS] for name in COLORS}
    ranked = sorted(ends, key=lambda name: min(ends[name]))
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    for row, name in enumerate(ranked):
        axes.barh(row, min(ends[name]), color=COLORS[name], alpha=0.6)
        axes.plot(ends[name], [row] * len(ATTACKS), "o", color=COLORS[name], markersize=4)
    axes.set_yticks(range(len(ranked)), ranked)
    axes.set(xlim=(0, 0.85), xlabel="test accuracy: the worst of seven attacks (bar), and each")
    axes.grid(alpha=0.3, axis="x")
    return figure


def robustness() -> Figure:
    """Draw each rule's accuracy under each attack, and the worst of them, setting by setting."""
    figure = Figure(figsize=(10, 16), layout="constrained")
    rows = [len(rules(study)) for study in STUDIES.values()]
    panels = figure.subplots(len(STUDIES), 1, height_ratios=rows)
    for axes, (title, study) in zip(panels, STUDIES.items(), strict=True):
        found = accuracies(f"robustness-{title}")
        ends = np.array([list(row.values()) for row in found.values()])
        # The lighter the better, also in gray.
        axes.imshow(ends, vmin=0, vmax=0.85, cmap="viridis", aspect="auto")
        for (row, column), end in np.ndenumerate(ends):
            shade = "white" if end < 0.5 else "black"
            axes.text(column, row, f"{end:.2f}", color=shade, ha="center", va="center")
        columns = ["none", *study.attacks, "worst"]
        axes.set_xticks(
            range(len(columns)), [fill(column, 10) for column in columns], fontsize="small"
        )
        axes.set_yticks(range(len(found)), found)
        axes.axvline(len(columns) - 1.5, color="black")
        hostile, clients = study.num_hostile, study.honest.num_clients
        axes.set(title=f"{title}: {hostile} hostile clients of {clients}, test accuracy")
    return figure


def privacy() -> Figure:
    """Draw ε over rounds, and accuracy over ε against the server and against readers."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    rounds, *panels = figure.subplots(1, 1 + len(studied.STUDIES))
    numbers = range(1, 101)
    for style, (name, kind) in zip(STYLES, studied.KINDS.items(), strict=False):
        sigma = noise_multiplier_for(
            studied.EPSILONS[-1], studied.DELTA, numbers[-1], kind="vector"
        )
        losses = [studied.epsilon_of(kind, sigma, n) for n in numbers]
        rounds.plot(numbers, losses, style, label=name)
    rounds.set(title=f"σ = {sigma:.1f}", xlabel="round", ylabel=f"ε at δ = {studied.DELTA:g}")
    tables = printed_tables("privacy-accuracy")
    for axes, title, (_, rows) in zip(panels, studied.STUDIES, tables, strict=True):
        for style, (rule, *ends) in zip(STYLES, rows, strict=True):
            axes.plot(studied.EPSILONS, [*map(float, ends)], f"o{style}", label=rule)
        axes.set(title=title, xlabel="ε", ylabel="test accuracy")
        axes.legend(loc=(0.03, 0.67), fontsize="small")  # between the lines
    rounds.legend(fontsize="small")
    for axes in (rounds, *panels):
        axes.grid(alpha=0.3)
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    "votes": three_votes,
    "bases": two_bases,
    "curves": curves,
    "attacks": worst_cases,
    "robustness": robustness,
    "privacy": privacy,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the figures that the command line names, or all."""
    for name in chosen_parts("figures", FIGURES, arguments):
        path = DOCS / f"{name}.png"
        FIGURES[name]().savefig(path, dpi=110)
        # A third of the bytes, of which the repository keeps every version.
        Image.open(path).convert("RGB").quantize().save(path, optimize=True)
        print(f"Written: docs/{name}.png")


if __name__ == "__main__":
    main()
