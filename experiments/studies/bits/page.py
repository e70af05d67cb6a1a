"""The page of the study, docs/bits.md: all its numbers, and what is said of them, from findings."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from matplotlib.figure import Figure

from experiments.apps.heterogeneous.fedmedian_heterogeneous.tables import make_table
from experiments.studies.bits.study import (
    COHORTS,
    LAST,
    PARTITIONS,
    PARTS,
    Federation,
    Outcome,
    Outcomes,
    name_of,
)
from experiments.studies.figures import COLOURS

UPLINK = 10e6
"""The bits per second that each client's line carries up, all clients' at once."""

TARGET = 0.95
"""The share of FedAvg's accuracy at the end whose rounds and bytes are counted."""

OURS = ("SignSGD()", "MedianSGD()")

GOES_UP = {
    "FedAvg": "the model, float32",
    "FedMedian": "the model, float32; the server takes a median",
    "FedAvg, float16": "the update, float16",
    "QSGD, int8": "the update in 255 levels of each array's largest entry, rounded at random "
    "([arXiv 1610.02132](https://arxiv.org/abs/1610.02132))",
    "top 1 %, feedback": "the largest hundredth of the update and where it is; the rest later "
    "([arXiv 1809.07599](https://arxiv.org/abs/1809.07599))",
    "plain signs": "signs; the server takes a step δ along the majority, "
    "`SignSGD(None, Majority(), learning_rate=δ, rotation=None)`",
    "signs, feedback": "signs and each array's mean magnitude; what is rounded off later "
    "([arXiv 1901.09847](https://arxiv.org/abs/1901.09847))",
    "z-SignFedAvg": "signs of the update and Gaussian noise σ; the server, not told σ, takes a "
    "step η along their mean ([arXiv 2302.02589](https://arxiv.org/abs/2302.02589))",
    "EDEN, one bit": "signs of the update in a basis of the client's own, one scale, one seed "
    "([arXiv 2108.08842](https://arxiv.org/abs/2108.08842))",
    "SignSGD()": "signs of the update and noise in a basis that all share",
    "MedianSGD()": "the update and noise in that basis, float32",
}

_COLOURS = COLOURS | {
    "FedAvg, float16": "tab:olive",
    "QSGD, int8": "tab:green",
    "top 1 %, feedback": "tab:brown",
    "plain signs": "tab:red",
    "signs, feedback": "tab:pink",
    "z-SignFedAvg": "tab:cyan",
}

_SYMBOLS = {"plain signs": "δ", "z-SignFedAvg": "ση"}
"""The numbers that were tried of peers, a letter each."""

_COUNTS = {10: "Ten clients", 100: "A hundred clients"}

_WHY = (
    "Whoever is ahead of ours pays for it elsewhere. FedAvg in any precision, top-k, signs with "
    "feedback and EDEN take a mean of what clients say, the length of an update included, so that "
    "one hostile client moves the model as far as it likes: EDEN ends where FedAvg does "
    "[under attack](noise.md#hostile-clients). Votes take no client's word for its length. The "
    "[level](noise.md#the-level) of noise that stands in for it is what they pay. Plain signs and "
    "z-SignFedAvg have numbers that were found on the test data; ours have none to find."
)


def ahead(peer: str, outcomes: Outcomes) -> list[str]:
    """Return who sends no more than a peer and ends no lower, and is better in one of the two."""
    own = outcomes[peer]
    return [
        name
        for name, one in outcomes.items()
        if one.uplink <= own.uplink
        and one.end >= own.end
        and (one.uplink, one.end) != (own.uplink, own.end)
    ]


def say_where(peer: str, outcomes: Mapping[str, Outcomes]) -> str:
    """Say in which federations a peer is on the frontier, and who is ahead of it elsewhere."""
    lines, reached = [], 0
    for federation, found in outcomes.items():
        own, others = found[peer], ahead(peer, found)
        reached += not others
        leads = [_lead(name, found[name], own) for name in others]
        lines.append(f"- {federation}: {'; '.join(leads) or 'on the frontier'}.")
    return f"`{peer}` is on the frontier in {reached} of {len(lines)}:\n\n" + "\n".join(lines)


def _reached(outcomes: Mapping[str, Outcomes]) -> str:
    reached = sum(not ahead("MedianSGD()", found) for found in outcomes.values())
    return f"it is on the frontier in {reached} of {len(outcomes)}"


def _lead(name: str, one: Outcome, own: Outcome) -> str:
    pairs = list(zip(one.ends, own.ends, strict=True))
    seeds = f"from {sum(theirs >= ours for theirs, ours in pairs)} of {len(pairs)} seeds"
    fewer, higher = own.uplink - one.uplink, one.end - own.end
    return f"{name} sends {fewer:,.0f} bytes less and ends {higher:.4f} higher ({seeds})"


def bytes_table(federations: Mapping[str, Federation], outcomes: Mapping[str, Outcomes]) -> str:
    """Say what is sent, in federations that differ in their number of clients."""
    (first, setting), *_ = ((name, one.setting) for name, one in federations.items())
    rows = []
    for peer, one in outcomes[first].items():
        ratio = outcomes[first]["FedAvg"].uplink / one.uplink
        totals = [
            (outcomes[name][peer].uplink + outcomes[name][peer].downlink) * _trainings(federation)
            for name, federation in federations.items()
        ]
        rows.append(
            [
                peer,
                *(f"{one.uplink:,.0f}", f"{ratio:.1f}", f"{one.downlink:,.0f}"),
                *(f"{total / 1e6:,.1f}" for total in totals),
                f"{setting.rounds * one.uplink * 8 / UPLINK:.2f}",
            ]
        )
    clients = [one.setting.num_clients for one in federations.values()]
    return make_table(
        [
            *("who", "bytes up", "FedAvg's / its", "bytes down"),
            *(f"MB both ways, {number} clients" for number in clients),
            "seconds up",
        ],
        rows,
    )


def accuracy_table(outcomes: Mapping[str, Outcomes]) -> str:
    """Compare accuracy at the end."""
    peers = next(iter(outcomes.values()))
    rows = [[peer, *(f"{found[peer].end:.3f}" for found in outcomes.values())] for peer in peers]
    return make_table(["accuracy", *outcomes], rows)


def target_table(federations: Mapping[str, Federation], outcomes: Mapping[str, Outcomes]) -> str:
    """Compare the rounds, and the bytes that all clients send up, until a target is reached."""
    rows = []
    for peer in next(iter(outcomes.values())):
        row = [peer]
        for name, found in outcomes.items():
            rounds = found[peer].rounds_to(TARGET * found["FedAvg"].end)
            sent = found[peer].uplink * federations[name].setting.num_clients / 1e6
            row.append("–" if rounds is None else f"{rounds} / {rounds * sent:.2f}")
        rows.append(row)
    return make_table(["rounds / MB up", *outcomes], rows)


def numbers_table(outcomes: Mapping[str, Outcomes]) -> str:
    """Say what was kept of that which was tried."""
    first = next(iter(outcomes.values()))
    rows = [
        [f"{peer}, {symbol}", *(f"{found[peer].numbers[place]:g}" for found in outcomes.values())]
        for peer, symbols in _SYMBOLS.items()
        if peer in first
        for place, symbol in enumerate(symbols)
    ]
    return make_table(["kept", *outcomes], rows)


def figure(federations: Mapping[str, Federation], outcomes: Mapping[str, Outcomes]) -> Figure:
    """Draw accuracy over bytes, and the frontier: the best that no more bytes can buy."""
    drawn = Figure(figsize=(14, 7), layout="constrained")
    panels = drawn.subplots(len(COHORTS), len(PARTITIONS)).flat
    for axes, (name, found) in zip(panels, outcomes.items(), strict=True):
        trainings = _trainings(federations[name])
        places = {peer: (one.uplink * trainings / 1e6, one.end) for peer, one in found.items()}
        for peer, place in places.items():
            mark = "D" if peer in OURS else "o"
            axes.plot(*place, mark, color=_COLOURS[peer], label=peer)
        best = sorted(place for peer, place in places.items() if not ahead(peer, found))
        axes.step(*zip(*best, strict=True), where="post", color="black", linewidth=0.8, zorder=0)
        axes.set(xscale="log", title=name)
        axes.grid(alpha=0.3)
    drawn.supylabel("test accuracy at the end")
    drawn.supxlabel("MB that all clients send up; a line through those whom nobody is ahead of")
    drawn.legend(*drawn.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=6)
    return drawn


def _trainings(federation: Federation) -> int:
    return federation.setting.num_clients * federation.setting.rounds


def _federations_text(found: Mapping[str, Outcomes]) -> list[str]:
    federations = PARTS["federations"].federations
    alike = {name: federations[name] for name in (name_of("iid", number) for number in COHORTS)}
    rounds = next(iter(alike.values())).setting.rounds
    parts = [
        "## What is sent",
        "By a client and to it in a round, as sent, with all headers; both ways over all "
        f"{rounds} rounds and clients; and the seconds that these take a client to send at "
        f"{UPLINK / 1e6:.0f} Mbit/s, all clients at once, training and downlink left out. The way "
        "down is the model as it is, of ours with an instruction.",
        bytes_table(alike, found),
        "## What comes of it",
        f"Test accuracy, the mean over the last {LAST} rounds and all seeds; then the first round "
        f"after which it is at {100 * TARGET:.0f} % of FedAvg's, and what all clients together "
        "have sent up until then.",
    ]
    for clients in COHORTS:
        names = {partition: name_of(partition, clients) for partition in PARTITIONS}
        outcomes = {partition: found[name] for partition, name in names.items()}
        parts += [
            f"### {_COUNTS[clients]}",
            accuracy_table(outcomes),
            target_table({one: federations[name] for one, name in names.items()}, outcomes),
            "Of the numbers that were tried these were kept:",
            numbers_table(outcomes),
        ]
    return [
        *parts,
        "## The frontier",
        "![Accuracy over the bytes that all clients send up, a panel for each federation, and a "
        "line through those of whom nobody is both smaller and better](bits/federations.png)",
        say_where("SignSGD()", found),
        _WHY,
        f"`MedianSGD()` sends what FedAvg does, and is for robustness: {_reached(found)}.",
    ]


def _hole_text(found: Mapping[str, Outcomes]) -> list[str]:
    (federation,) = PARTS["hole"].federations.values()
    rounds = federation.setting.rounds
    return [
        "## A published hole",
        "In the table of [FedSMU](https://proceedings.mlr.press/v267/lu25u.html) (ICML 2025) "
        "methods of one bit match FedAvg where clients are alike, and fall from its 79.6 % to "
        "34.0 % and less where they are not: CIFAR-10, a LeNet of 797,248 weights, ten clients, "
        "one local update a round, Dirichlet(.25). The same here on 12,000 images of "
        "Fashion-MNIST, whose size makes that LeNet smaller: one batch of 50 a round at a rate of "
        f".1, {rounds} rounds, one seed; `.venv/bin/python -m experiments.studies.bits hole`:",
        accuracy_table(found),
        "Of the numbers that were tried these were kept:",
        numbers_table(found),
    ]


_TEXTS = {"federations": _federations_text, "hole": _hole_text}


def page(folder: Path) -> str:
    """Return the page of the parts that a folder has findings of, in Markdown."""
    ten, hundred = COHORTS.values()
    parts = [
        "# Bits against accuracy",
        "What clients send, and how well the model learns of it, beside others who send few bits. "
        "`.venv/bin/python -m experiments.studies.bits` writes this page, its figure and the "
        "numbers behind them (JSON), and does again only runs that are missing.",
        "Fashion-MNIST, 784-128-10, clients that count alike, batches of 32 at a rate of .05. Ten "
        f"clients hold {ten.setting.examples:,} images and train for an epoch a round; a hundred "
        f"hold {hundred.setting.examples:,} and train for {hundred.setting.local_steps} batches a "
        f"round. Runs are from {len(ten.seeds)} and {len(hundred.seeds)} seeds.",
        "## Who is compared",
        make_table(["who", "what goes up"], [list(row) for row in GOES_UP.items()]),
        "All are packed, the peers as one array of bytes. Of the numbers that are the user's to "
        "find, δ, σ and η, a few are tried in each federation from the first seed, and those that "
        "end best on the *test data* are kept, which is more than a user could know. All else is "
        "as it comes.",
    ]
    there = [name for name in PARTS if (folder / f"{name}.json").exists()]
    if not there:
        parts.append("Its runs have not been made yet.")
    for name in there:
        parts += _TEXTS[name](read(folder, name))
    return "\n\n".join(parts) + "\n"


def read(folder: Path, name: str) -> dict[str, Outcomes]:
    """Return what was found of a part."""
    found = json.loads((folder / f"{name}.json").read_text())["found"]
    return {
        federation: {peer: Outcome(**one) for peer, one in outcomes.items()}
        for federation, outcomes in found.items()
    }


def write(folder: Path, name: str, found: Mapping[str, Outcomes]) -> None:
    """Write what was found of a part, what it was found of, and the federations' figure."""
    federations = PARTS[name].federations
    folder.mkdir(parents=True, exist_ok=True)
    if name == "federations":
        figure(federations, found).savefig(folder / f"{name}.png", dpi=100)
    plain = {
        federation: {peer: asdict(one) for peer, one in outcomes.items()}
        for federation, outcomes in found.items()
    }
    findings = {"of": str(PARTS[name]), "found": plain}
    (folder / f"{name}.json").write_text(json.dumps(findings) + "\n")
