"""Bits against accuracy: the claims, docs/bits.md, and all its numbers, from findings."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from experiments.claims.bits.study import (
    CODED,
    HOLE,
    HOLE_CIFAR_10,
    HUNDRED,
    LAST,
    TEN,
    Outcome,
    Outcomes,
    Part,
    measure,
    shortened,
)
from experiments.claims.claim import Claim, Findings, Page
from experiments.studies.figures import COLORS
from experiments.studies.tables import make_table

UPLINK = 10e6
"""The bits per second that each client's line carries up, all clients' at once."""

TARGET = 0.95
"""The share of FedAvg's accuracy at the end whose rounds and bytes are counted."""

SAVED = 15
"""The least factor, of what FedAvg sends up, that votes are to save."""

ON_DIGITS: dict[str, Any] = {
    "dataset": "digits",
    "examples": 0,
    "network": "mlp",
    "num_clients": 10,
    "rounds": 8,
    "local_steps": 0,
    "batch_size": 32,
    "learning_rate": 0.1,
}
"""The quick variant of a federation."""

GOES_UP = {
    "FedAvg": "the model, float32",
    "FedMedian": "the model, float32; the server takes a median",
    "FedAvg, float16": "the update, float16",
    "QSGD, int8": "the update, quantized at random to 255 levels up to each array's largest entry "
    "([arXiv 1610.02132](https://arxiv.org/abs/1610.02132))",
    "top 1 %, feedback": "the largest 1 % of the update's entries and their positions; the "
    "rest is added to the next update ([arXiv 1809.07599](https://arxiv.org/abs/1809.07599))",
    "plain signs": "signs; the server takes a step δ along the majority, "
    "`SignSGD(None, Majority(), learning_rate=δ, rotation=None)`",
    "signs, feedback": "signs and each array's mean magnitude; the rounding error is added to "
    "the next update ([arXiv 1901.09847](https://arxiv.org/abs/1901.09847))",
    "z-SignFedAvg": "signs of the update plus Gaussian noise σ; the server, not told σ, takes a "
    "step η along their mean ([arXiv 2302.02589](https://arxiv.org/abs/2302.02589))",
    "EDEN, one bit": "signs of the update in a random basis per client, one scale, one seed "
    "([arXiv 2108.08842](https://arxiv.org/abs/2108.08842))",
    "SignSGD()": "signs of the update plus noise, in a random basis that all clients share",
    CODED: "the same; the server sends one bit per parameter too, see [Both ways](both-ways.md)",
    "MedianSGD()": "the update plus noise in that basis, float32",
}

_COLORS = COLORS | {
    "FedAvg, float16": "tab:olive",
    "QSGD, int8": "tab:green",
    "top 1 %, feedback": "tab:brown",
    "plain signs": "tab:red",
    "signs, feedback": "tab:pink",
    "z-SignFedAvg": "tab:cyan",
    CODED: "navy",
}

_MARKERS = dict(zip(GOES_UP, "os^vPX<>*Ddp", strict=True))
"""Methods also differ in shape, to be told apart in gray."""

_SYMBOLS = {"plain signs": "δ", "z-SignFedAvg": "ση"}
"""The numbers that were tried of peers, a letter each."""

READING = {
    "bytes up, bytes down": "of one client in one round, with all headers; with the coded downlink "
    "a mean over rounds, of which the first sends the model",
    "FedAvg's / its": "FedAvg's bytes up over the method's",
    "MB both ways": "of all clients in all rounds",
    "seconds up": f"a client's time to send its bytes of all rounds at {UPLINK / 1e6:.0f} Mbit/s",
    "accuracy": f"on test data, the mean over the last {LAST} rounds and all seeds",
    "rounds / MB up / both ways": f"the first round at {100 * TARGET:.0f} % of FedAvg's final "
    "accuracy, and what all clients have sent until then",
    "kept": "the values of δ, σ and η with the best test accuracy of those that were tried",
    "ahead of it": "a method that sends no more than `SignSGD()` and ends no lower; by how much, "
    "and with how many of the seeds",
}
"""What the columns of the tables mean."""

PRICES = {
    "top 1 %, signs with feedback, EDEN": "They use the length that a client claims, so one "
    "hostile client moves the model as far as it likes: [under attack](noise.md#hostile-clients) "
    "EDEN ends where FedAvg does. Votes use a [level](noise.md#the-level) of noise instead, which "
    "costs accuracy.",
    "plain signs, z-SignFedAvg": "Their δ, σ and η were found on the test data; `SignSGD()` has "
    "none to find. Plain signs can end above FedAvg, but with one class each no δ that was tried "
    "keeps them from falling.",
}
"""What methods that are ahead of ours pay for it."""


def ahead(peer: str, outcomes: Outcomes) -> list[str]:
    """Return which peers send no more than this one and end no lower, and do better in either."""
    own = outcomes[peer]
    return [
        name
        for name, one in outcomes.items()
        if one.uplink <= own.uplink
        and one.end >= own.end
        and (one.uplink, one.end) != (own.uplink, own.end)
    ]


def count_frontier(peer: str, outcomes: Mapping[str, Outcomes]) -> str:
    """Return in how many federations a peer is on the frontier, as a sentence."""
    reached = sum(not ahead(peer, found) for found in outcomes.values())
    return f"`{peer}` is on the frontier in {reached} of {len(outcomes)} federations."


def ahead_table(peer: str, outcomes: Mapping[str, Outcomes]) -> str:
    """Compare a peer with those that are ahead of it."""
    rows = []
    for federation, found in outcomes.items():
        for name in ahead(peer, found):
            one, own = found[name], found[peer]
            pairs = list(zip(one.ends, own.ends, strict=True))
            rows.append(
                [
                    federation,
                    name,
                    f"{own.uplink - one.uplink:,.0f}",
                    f"+{one.end - own.end:.4f}",
                    f"{sum(theirs >= ours for theirs, ours in pairs)} of {len(pairs)}",
                ]
            )
    return make_table(["federation", "ahead of it", "fewer bytes", "accuracy", "seeds"], rows)


def bytes_table(outcomes: Outcomes) -> str:
    """Say what is sent."""
    rows = []
    for peer, one in outcomes.items():
        rows.append(
            [
                peer,
                f"{one.uplink:,.0f}",
                f"{outcomes['FedAvg'].uplink / one.uplink:.1f}",
                f"{one.downlink:,.0f}",
                f"{sum(one.both_ways):,.1f}",
                f"{one.rounds * one.uplink * 8 / UPLINK:.2f}",
            ]
        )
    columns = ("method", "bytes up", "FedAvg's / its", "bytes down", "MB both ways", "seconds up")
    return make_table(columns, rows)


def accuracy_table(outcomes: Mapping[str, Outcomes]) -> str:
    """Compare accuracy at the end."""
    peers = next(iter(outcomes.values()))
    rows = [[peer, *(f"{found[peer].end:.3f}" for found in outcomes.values())] for peer in peers]
    return make_table(["accuracy", *outcomes], rows)


def target_table(outcomes: Mapping[str, Outcomes]) -> str:
    """Compare the rounds, and the bytes of all clients, until a target is reached."""
    rows = []
    for peer in next(iter(outcomes.values())):
        row = [peer]
        for found in outcomes.values():
            one, rounds = found[peer], found[peer].rounds_to(TARGET * found["FedAvg"].end)
            row.append(
                "–"
                if rounds is None
                else f"{rounds} / {rounds * one.sent:.2f} / {sum(one.both_ways[:rounds]):.1f}"
            )
        rows.append(row)
    return make_table(["rounds / MB up / both ways", *outcomes], rows)


def numbers_table(outcomes: Mapping[str, Outcomes]) -> str:
    """List the values of δ, σ and η that were kept."""
    first = next(iter(outcomes.values()))
    rows = [
        [f"{peer}, {symbol}", *(f"{found[peer].numbers[place]:g}" for found in outcomes.values())]
        for peer, symbols in _SYMBOLS.items()
        if peer in first
        for place, symbol in enumerate(symbols)
    ]
    return make_table(["kept", *outcomes], rows)


def draw(found: Findings) -> Figure:
    """Draw accuracy over bytes, and the frontier: the best accuracy for so many bytes."""
    rows, columns = -(-len(found) // 2), min(len(found), 2)
    drawn = Figure(figsize=(10, 1 + 3.5 * rows), layout="constrained")
    panels = drawn.subplots(rows, columns, squeeze=False).flat
    for axes, (name, outcomes) in zip(panels, read(found).items(), strict=True):
        places = {peer: (one.rounds * one.sent, one.end) for peer, one in outcomes.items()}
        for peer, place in places.items():
            axes.plot(*place, _MARKERS[peer], color=_COLORS[peer], label=peer)
        best = sorted(place for peer, place in places.items() if not ahead(peer, outcomes))
        axes.step(*zip(*best, strict=True), where="post", color="black", linewidth=0.8, zorder=0)
        axes.set(xscale="log", title=name)
        axes.grid(alpha=0.3)
    drawn.supylabel("test accuracy at the end")
    drawn.supxlabel("MB that all clients send up; the line is the frontier")
    drawn.legend(*drawn.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return drawn


def tabulate(found: Findings) -> str:
    """Return the tables of federations, and who is on the frontier."""
    outcomes = read(found)
    return "\n\n".join(
        [
            bytes_table(next(iter(outcomes.values()))),
            accuracy_table(outcomes),
            target_table(outcomes),
            numbers_table(outcomes),
            f"{count_frontier('MedianSGD()', outcomes)} {count_frontier('SignSGD()', outcomes)}",
            ahead_table("SignSGD()", outcomes),
        ]
    )


def tabulate_hole(found: Findings) -> str:
    """Return the tables of the published setting, and whether plain signs fall in it."""
    outcomes = read(found)
    (only,) = outcomes.values()
    fall = only["FedAvg"].end - only["plain signs"].end
    where = "below" if fall > 0 else "above"
    return "\n\n".join(
        [
            accuracy_table(outcomes),
            numbers_table(outcomes),
            f"With this δ plain signs end {abs(fall):.3f} {where} FedAvg here.",
            count_frontier("SignSGD()", outcomes),
            ahead_table("SignSGD()", outcomes),
        ]
    )


def check(allowed: float, found: Findings) -> list[str]:
    """Return what of a claim does not hold, if votes may end so much below FedAvg."""
    wrong = []
    for federation, outcomes in read(found).items():
        reference, ours = outcomes["FedAvg"], outcomes["SignSGD()"]
        if ours.end < reference.end - allowed:
            wrong.append(
                f"{federation}: SignSGD() ends at {ours.end:.3f}, FedAvg at {reference.end:.3f}"
            )
        if reference.uplink < SAVED * ours.uplink:
            wrong.append(
                f"{federation}: SignSGD() saves a factor of {reference.uplink / ours.uplink:.1f}"
            )
    return wrong


def read(found: Findings) -> dict[str, Outcomes]:
    """Return findings as outcomes."""
    return {
        federation: {peer: Outcome(**one) for peer, one in outcomes.items()}
        for federation, outcomes in found.items()
    }


def _measure(part: Part, in_short: Mapping[str, Any], quick: bool) -> Findings:
    outcomes = measure(shortened(part, **in_short) if quick else part)
    return {
        federation: {peer: asdict(one) for peer, one in found.items()}
        for federation, found in outcomes.items()
    }


def _claim(
    name: str,
    title: str,
    setting: Mapping[str, str],
    part: Part,
    allowed: float,
    says: str,
    tables: Callable[[Findings], str] = tabulate,
    in_short: Mapping[str, Any] = ON_DIGITS,
) -> Claim:
    """Return the claim that votes end at most so much below FedAvg in a part's federations."""
    return Claim(
        name=name,
        title=title,
        says=f"{says}`SignSGD()` ends at most {allowed:g} below FedAvg, and sends less than "
        f"1/{SAVED} of its bytes.",
        setting=setting,
        measure=partial(_measure, part, in_short),
        draw=draw,
        tabulate=tables,
        check=partial(check, allowed),
    )


def _split(title: str, part: Part, work: str, allowed: float) -> Claim:
    (one, *_) = part.federations.values()
    setting = one.setting
    return _claim(
        f"bits-{setting.num_clients}",
        title,
        {
            "data": f"{setting.examples:,} images of Fashion-MNIST",
            "model": "784-128-10",
            "rounds": f"{setting.rounds} of {work} of {setting.batch_size}, rate "
            f"{setting.learning_rate:g}",
            "seeds": f"{len(one.seeds)}",
        },
        part,
        allowed,
        "A server that knows its clients' noise needs only one bit per parameter, and no tuning, "
        "however much their data differ. ",
    )


def _hole(name: str, images: str, part: Part, in_short: Mapping[str, Any] = ON_DIGITS) -> Claim:
    (one,) = part.federations.values()
    setting = one.setting
    return _claim(
        name,
        f"A published failure of one-bit methods: {images}",
        {
            "data": f"the first {setting.examples:,} images of {images}, Dirichlet(.25)",
            "model": "LeNet",
            "clients": "ten",
            "rounds": f"{setting.rounds:,} of one batch of {setting.batch_size}, rate "
            f"{setting.learning_rate:g}, one seed",
            "not in their table": "batch, rate and rounds",
        },
        part,
        0.03,
        "In the table of [FedSMU](https://proceedings.mlr.press/v267/lu25u.html) (ICML 2025), "
        "one-bit methods match FedAvg where clients are alike; where they differ, they fall from "
        "its 79.6 % to 34.0 % or less: CIFAR-10, a LeNet of 797,248 weights, ten clients, one "
        "local update per round, Dirichlet(.25). With noise that the server knows they need not "
        "fall, and nothing needs tuning: ",
        tabulate_hole,
        in_short,
    )


BITS_CIFAR_10 = _hole(
    "hole-cifar-10", "CIFAR-10", HOLE_CIFAR_10, {"examples": 300, "num_clients": 3, "rounds": LAST}
)

BITS = Page(
    "bits",
    "\n\n".join(
        [
            "# Bits against accuracy",
            "This page compares what clients send, and how accurate the model becomes. `make "
            "figures` writes it, and measures only what is missing. `make figures "
            "ARGS=hole-cifar-10` runs the published failure on its own data, from the Hugging Face "
            "Hub or from the folder in the environment variable `CIFAR_10`.",
            "## The methods",
            make_table(["method", "what a client sends"], [list(row) for row in GOES_UP.items()]),
            "Bits are packed. In each federation we try a few values of δ, σ and η with the first "
            "seed, and keep those with the best *test* accuracy, which a user could not know. All "
            "other settings are defaults. [Both ways](both-ways.md) has more runs with a coded "
            "downlink, also with a tenth of a hundred clients in a round.",
            "## The tables",
            make_table(["column", "meaning"], [list(row) for row in READING.items()]),
            "A method is on the frontier if every other one sends more or ends lower. This is what "
            "the methods ahead of ours pay for it:",
            make_table(["method", "price"], [list(row) for row in PRICES.items()]),
        ]
    ),
    (
        _split("Ten clients", TEN, "one epoch in batches", 0.02),
        _split("A hundred clients", HUNDRED, "8 batches", 0.02),
        _hole("hole", "Fashion-MNIST", HOLE),
        BITS_CIFAR_10,
    ),
)
