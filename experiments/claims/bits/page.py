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
from experiments.studies.figures import COLOURS
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

OURS = ("SignSGD()", CODED, "MedianSGD()")

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
    CODED: "the same; [the way down](both-ways.md) is coded in one bit too",
    "MedianSGD()": "the update and noise in that basis, float32",
}

_COLOURS = COLOURS | {
    "FedAvg, float16": "tab:olive",
    "QSGD, int8": "tab:green",
    "top 1 %, feedback": "tab:brown",
    "plain signs": "tab:red",
    "signs, feedback": "tab:pink",
    "z-SignFedAvg": "tab:cyan",
    CODED: "navy",
}

_SYMBOLS = {"plain signs": "δ", "z-SignFedAvg": "ση"}
"""The numbers that were tried of peers, a letter each."""

WHY = (
    "On the frontier are those of whom nobody is ahead: who sends as little and ends as high. "
    "Whoever is ahead of ours pays for it elsewhere. Top-k, signs with "
    "feedback and EDEN take a mean of what clients say, the length of an update included, so that "
    "one hostile client moves the model as far as it likes: EDEN ends where FedAvg does "
    "[under attack](noise.md#hostile-clients). Votes take no client's word for its length. The "
    "[level](noise.md#the-level) of noise that stands in for it is what they pay. Plain signs and "
    "z-SignFedAvg have numbers that were found on the test data; ours have none to find. With "
    "a step that suits, plain signs may even outrun FedAvg; but where clients hold one class each "
    "none that was tried keeps them from falling."
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


def _medians(outcomes: Mapping[str, Outcomes]) -> str:
    reached = sum(not ahead("MedianSGD()", found) for found in outcomes.values())
    return (
        "`MedianSGD()` sends about what FedAvg does, and is for robustness: it is on the frontier "
        f"in {reached} of {len(outcomes)}."
    )


def _lead(name: str, one: Outcome, own: Outcome) -> str:
    pairs = list(zip(one.ends, own.ends, strict=True))
    seeds = f" (from {sum(theirs >= ours for theirs, ours in pairs)} of {len(pairs)} seeds)"
    fewer, higher = own.uplink - one.uplink, one.end - own.end
    level = f"{higher:.4f} higher" if higher >= 5e-5 else "as high"
    said = f"{name} sends {fewer:,.0f} bytes less and ends {level}"
    return said + (seeds if len(pairs) > 1 else "")


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
    columns = ("who", "bytes up", "FedAvg's / its", "bytes down", "MB both ways", "seconds up")
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
    """Say what was kept of that which was tried."""
    first = next(iter(outcomes.values()))
    rows = [
        [f"{peer}, {symbol}", *(f"{found[peer].numbers[place]:g}" for found in outcomes.values())]
        for peer, symbols in _SYMBOLS.items()
        if peer in first
        for place, symbol in enumerate(symbols)
    ]
    return make_table(["kept", *outcomes], rows)


def draw(found: Findings) -> Figure:
    """Draw accuracy over bytes, and the frontier: the best that no more bytes can buy."""
    rows, columns = -(-len(found) // 2), min(len(found), 2)
    drawn = Figure(figsize=(10, 1 + 3.5 * rows), layout="constrained")
    panels = drawn.subplots(rows, columns, squeeze=False).flat
    for axes, (name, outcomes) in zip(panels, read(found).items(), strict=True):
        places = {peer: (one.rounds * one.sent, one.end) for peer, one in outcomes.items()}
        for peer, place in places.items():
            mark = "D" if peer in OURS else "o"
            axes.plot(*place, mark, color=_COLOURS[peer], label=peer)
        best = sorted(place for peer, place in places.items() if not ahead(peer, outcomes))
        axes.step(*zip(*best, strict=True), where="post", color="black", linewidth=0.8, zorder=0)
        axes.set(xscale="log", title=name)
        axes.grid(alpha=0.3)
    drawn.supylabel("test accuracy at the end")
    drawn.supxlabel("MB that all clients send up; the line joins the best for their bytes")
    drawn.legend(*drawn.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return drawn


def tabulate(found: Findings) -> str:
    """Return the tables of federations, and who is on the frontier."""
    outcomes = read(found)
    first = next(iter(outcomes.values()))
    return "\n\n".join(
        [
            "What a client sends in a round and what it is sent, with all headers; both ways, over "
            f"all {first['FedAvg'].rounds} rounds and clients; and the seconds that these take a "
            f"client to send at {UPLINK / 1e6:.0f} Mbit/s, all clients at once, training and "
            "downlink left out. The way down is the model as it is, of ours with an instruction; "
            "with the coded downlink it is a mean over rounds, of which the first sends the model:",
            bytes_table(first),
            f"Test accuracy, the mean over the last {LAST} rounds and all seeds:",
            accuracy_table(outcomes),
            f"The first round after which it is at {100 * TARGET:.0f} % of FedAvg's, and what all "
            "clients together have sent until then, up and both ways:",
            target_table(outcomes),
            "Of the numbers that were tried these were kept:",
            numbers_table(outcomes),
            say_where("SignSGD()", outcomes),
            _medians(outcomes),
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
            "Of the numbers that were tried these were kept:",
            numbers_table(outcomes),
            f"Plain signs, at the best of these steps, end {abs(fall):.3f} {where} FedAvg here.",
            say_where("SignSGD()", outcomes),
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
    setting: str,
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


def _split(title: str, part: Part, words: str, allowed: float) -> Claim:
    (one, *_) = part.federations.values()
    setting = one.setting
    return _claim(
        f"bits-{setting.num_clients}",
        title,
        f"{setting.examples:,} images of Fashion-MNIST, 784-128-10, {words}, batches of "
        f"{setting.batch_size} at a rate of {setting.learning_rate:g}, {setting.rounds} rounds; "
        f"seeds: {len(one.seeds)}.",
        part,
        allowed,
        "A server that knows its clients' noise needs one bit a parameter and no number of the "
        "user's, however their data differ. ",
    )


def _hole(name: str, images: str, part: Part, in_short: Mapping[str, Any] = ON_DIGITS) -> Claim:
    (one,) = part.federations.values()
    setting = one.setting
    return _claim(
        name,
        f"A published hole: {images}",
        f"A LeNet on the first {setting.examples:,} images of {images}, ten clients, "
        f"Dirichlet(.25), one batch of {setting.batch_size} a round at a rate of "
        f"{setting.learning_rate:g}, {setting.rounds:,} rounds, one seed; batch, rate and rounds "
        "are chosen, the table does not say them.",
        part,
        0.03,
        "In the table of [FedSMU](https://proceedings.mlr.press/v267/lu25u.html) (ICML 2025) "
        "methods of one bit match FedAvg where clients are alike, and fall from its 79.6 % to "
        "34.0 % and less where they are not: CIFAR-10, a LeNet of 797,248 weights, ten clients, "
        "one local update a round, Dirichlet(.25). With noise that the server knows, and no number "
        "to find, they need not: ",
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
            "What clients send, and how well the model learns of it, beside others who send few "
            "bits. `make figures` writes this page, its figures and the numbers behind them "
            "(JSON), and does again only what is missing. For the published hole on its own data "
            "there is `make figures ARGS=hole-cifar-10`, from the Hugging Face Hub or from a copy "
            "in the folder that the environment variable `CIFAR_10` names.",
            "## Who is compared",
            make_table(["who", "what goes up"], [list(row) for row in GOES_UP.items()]),
            "All are packed, the peers as one array of bytes. Of the numbers that are the user's "
            "to find, δ, σ and η, a few are tried in each federation from the first seed, and "
            "those that end best on the *test data* are kept, which is more than a user could "
            "know. All else is as it comes.",
            "All but one of them are sent the whole model. [Both ways](both-ways.md) has more of "
            "what is sent and learned where the way down is coded too, also where a tenth of a "
            "hundred clients is in a round.",
            WHY,
        ]
    ),
    (
        _split("Ten clients", TEN, "an epoch a round", 0.02),
        _split("A hundred clients", HUNDRED, "8 batches a round", 0.02),
        _hole("hole", "Fashion-MNIST", HOLE),
        BITS_CIFAR_10,
    ),
)
