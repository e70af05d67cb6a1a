"""Measurements in the sentences of README and docs, held to the tables that commands have printed.

A number of two digits or more behind the point is of such a table, or said not to be measured here.
"""

import re

import pytest

pytest.importorskip("torch")

from experiments.claims.__main__ import PAGES
from experiments.studies import robustness
from experiments.studies.commands import DOCS, printed_table
from fedmedian import SecureSum
from fedmedian.secure.cohort import Place

WRITTEN_WHOLE = {page.name for page in PAGES}
"""Pages whose sentences a command writes from what it has found."""

TEXTS = {
    path.stem: path.read_text()
    for path in [DOCS.parent / "README.md", *DOCS.glob("*.md")]
    if path.stem not in WRITTEN_WHOLE
}


def cells(table, column, *row):
    """Return a column of the rows of a printed table that begin so, as numbers."""
    head, rows = printed_table(table)
    at = head.index(column)
    return [float(one[at].replace(",", "")) for one in rows if tuple(one[: len(row)]) == row]


def cell(table, column, *row):
    (value,) = cells(table, column, *row)
    return value


def is_rounded(said, value):
    """Tell whether a number is a value to as many digits as it has."""
    return said == f"{value:.{len(said.partition('.')[2])}f}".lstrip("0")


def is_error(said, cohort):
    return is_rounded(said, cell("nmse-errors", cohort, "SignSGD()"))


def is_worst(said, name):
    return is_rounded(said, cell("random_basis-levels", name, "2 hostile, worst of seven"))


def is_lag(said, name):
    fedavg, own = (cell("random_basis-levels", who, "Dirichlet(.1)") for who in ("FedAvg", name))
    return is_rounded(said, fedavg - own)


def is_lost(said, *attacks):
    none, *attacked = (cell("robustness-sorted", one, "MedianSGD()") for one in ("none", *attacks))
    return is_rounded(said, none - min(attacked))


def is_lost_of_seven(most):
    none, worst = (cell("robustness-seven", one, "SignSGD, agreement") for one in ("none", "worst"))
    return none - worst <= float(most) and leads("SignSGD, agreement", "robustness-seven")


def leads(name, table, columns=("worst",)):
    """Whether a rule has the best worst case of some attacks, or of all."""
    head, rows = printed_table(table)
    worst = {row[0]: min(float(row[head.index(one)]) for one in columns) for row in rows}
    return max(worst, key=worst.__getitem__) == name


def is_lost_to_half_mimics(least, most):
    names = ["SignSGD()", "MedianSGD()"]
    names += [name for name in robustness.PEERS if name.startswith("Clipped mean")]
    lost = [
        cell("robustness-flanders", "none", name) - cell("robustness-flanders", "half-mimic", name)
        for name in names
    ]
    return is_rounded(least, min(lost)) and is_rounded(most, max(lost))


def is_lost_by_agreement(most):
    lost = [
        cell("robustness-flanders", attack, f"{name}()")
        - cell("robustness-flanders", attack, f"{name}, agreement")
        for attack in ("a little is enough", "min-max")
        for name in ("SignSGD", "MedianSGD")
    ]
    return is_rounded(most, max(lost))


def are_sure(least, clients):
    """Whether so many of a round's clients are in a secure sum, whatever a server says is lost."""
    circle = SecureSum().circle(range(int(clients)))
    place = Place(16, circle.enough, tuple(map(bytes, range(len(circle.neighbors_of(0))))))
    return place.least == int(least)


OF_FLANDERS = ("gaussian", "a little is enough", "opt", "min-max")
"""The attacks of the baseline itself."""

LEARN = ("FedAvg", "SignSGD", "SignSGD (coded downlink)", "MedianSGD")


def is_demo(above, below):
    ends = [cell("demo", "accuracy", name) for name in LEARN]
    return min(ends) > float(above) and cell("demo", "accuracy", "SignSGD (no noise)") < float(
        below
    )


def is_saved_both_ways(factor):
    (up, down), (usual_up, usual_down) = (
        [cell("demo", column, name) for column in ("bytes up per client and round", "bytes down")]
        for name in ("SignSGD (coded downlink)", "FedAvg")
    )
    saved = (usual_up + usual_down) / (up + down)
    return saved >= 22 and int(factor) == round(saved)


def is_of_ten_thousand(microseconds):
    spent = cell("scale", "ms to aggregate", "SignSGD", "10,000", "100")
    carried = cell("scale", "ms in messages", "SignSGD", "10,000", "100")
    each = 5 * round(spent / 10 / 5)
    return spent < 1000 and each == int(microseconds) and round(carried / spent) == 3


DEMO = (
    r"FedAvg, SignSGD with and without the coded downlink and MedianSGD end above (\S+), .* "
    r"SignSGD without noise stays below (.*?)\]"
)

SENTENCES = [
    ("README", DEMO, is_demo),
    ("index", DEMO, is_demo),
    (
        "README",
        r"attackers that know the rules, `SignSGD\(aggregator=Agreement\(Counts\(\)\)\)` has the "
        r"best worst case in each of our four studies",
        lambda: all(
            leads("SignSGD, agreement", f"robustness-{study}")
            for study in ("sorted", "flanders", "adaptive", "seven")
        ),
    ),
    (
        "README",
        r"sends (\d+) times fewer bytes than FedAvg, up and down together",
        is_saved_both_ways,
    ),
    (
        "both-ways",
        r"With a tenth of the clients in a round that is (\S+) steps of one bit down",
        lambda steps: float(steps) == cell("both_ways-shares", "coded steps per message", "0.1"),
    ),
    (
        "costs",
        r"it is (\S+) times the updates' energy with ten of them and (\S+) with a hundred",
        lambda ten, hundred: is_error(ten, "M = 10, alike") and is_error(hundred, "M = 100, alike"),
    ),
    (
        "noise",
        r"two of ten hostile clients, votes at c = 1.5 keep (\S+) and medians (\S+), at",
        lambda votes, medians: (
            is_worst(votes, "SignSGD, c = 1.5") and is_worst(medians, "MedianSGD, c = 1.5")
        ),
    ),
    (
        "noise",
        r"(\S+) behind FedAvg after 15 rounds for votes, (\S+) at c = 1.5\.",
        lambda default, larger: is_lag(default, "SignSGD()") and is_lag(larger, "SignSGD, c = 1.5"),
    ),
    (
        "robustness",
        r"Five hostile clients cost `MedianSGD\(\)` at most (\S+), except with \*a little is "
        r"enough\*: (\S+), and the half-mimic: (\S+)\. ",
        lambda most, little, half: (
            is_lost(most, "sign flip", "inner product", "label flip", "mimic")
            and is_lost(little, "a little is enough")
            and is_lost(half, "half-mimic")
        ),
    ),
    (
        "robustness",
        r"`SignSGD` by agreement has the best worst case, and `MedianSGD` by agreement the second",
        lambda: leads("SignSGD, agreement", "robustness-sorted"),
    ),
    (
        "robustness",
        r"`SignSGD` by agreement has the best worst case\. Next are",
        lambda: leads("SignSGD, agreement", "robustness-flanders"),
    ),
    (
        "robustness",
        r"The half-mimic costs `SignSGD\(\)`, `MedianSGD\(\)` and clipped means (\S+) to (\S+)\. ",
        is_lost_to_half_mimics,
    ),
    (
        "robustness",
        r"Without it `MedianSGD\(\)` would have the best worst case",
        lambda: leads("MedianSGD()", "robustness-flanders", OF_FLANDERS),
    ),
    (
        "robustness",
        r"There, agreement loses up to (\S+), because",
        is_lost_by_agreement,
    ),
    (
        "robustness",
        r"has the best worst case: no attack costs it more than (\S+)\. ",
        is_lost_of_seven,
    ),
    (
        "privacy",
        r"(\d+) clients in a round are too few for it, of which (\d+) are sure to be in the sum, "
        r"and (\d+) too many, with (\d+)\.",
        lambda few, of_few, many, of_many: are_sure(of_few, few) and are_sure(of_many, many),
    ),
    (
        "existing-apps",
        r"At the end no app is more than (\S+) behind FedAvg\.",
        lambda most: min(cells("apps-accuracy", "worst − FedAvg")) >= -float(most),
    ),
    (
        "scale",
        r"aggregated in less than a second, (\S+) µs each, .* is about three times that",
        is_of_ten_thousand,
    ),
]
"""A page, a sentence of it with measurements, and whether they are those of the tables."""

NOT_MEASURED = {
    "README": {"3.11", "1.38", "1906.01736"},
    "index": {"3.11"},
    "deployment": {"1.38", "1.42"},
    "existing-apps": {"1.38", "1.41", "1.42"},
    "simulation": {"1.41"},
    "support": {"2.13"},
    "how-it-works": {"4.33", "1906.01736"},
    "noise": {
        "2108.08842",
        *(".08", "1.45", ".57", "1.25"),  # rules, laws
        *(".66", ".81", ".93"),  # computed, see tests/aggregators/test_decoding.py
    },
    "robustness": {"1.25", "1.45"},
}
"""Versions, papers, settings, and what is computed."""


def sentences(text):
    """Return a page without code, tables and addresses, its lines joined."""
    text = re.sub(r"^```.*?^```|^\|.*?$", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"\]\([^)]*\)", "]", " ".join(text.split()))


def test_the_clients_that_a_lying_server_must_leave_in_a_sum_are_as_many_as_the_table_says():
    (row,) = re.findall(r"^\| a server that lies .* by default: (.*?);", TEXTS["secure-sums"], re.M)
    stated = re.findall(r"(\d+) of (\d+)", row)
    assert len(stated) == 4
    assert all(are_sure(*one) for one in stated)


@pytest.mark.parametrize(
    ("page", "pattern", "holds"), SENTENCES, ids=[f"{one[0]}: {one[1]}" for one in SENTENCES]
)
def test_a_measurement_in_a_sentence_is_that_of_a_table(page, pattern, holds):
    (found,) = re.finditer(pattern, sentences(TEXTS[page]))
    assert holds(*found.groups()), found.group()


@pytest.mark.parametrize("page", TEXTS)
def test_every_number_of_a_page_is_held_to_a_table_or_not_measured(page):
    text = sentences(TEXTS[page])
    for _, pattern, _ in (one for one in SENTENCES if one[0] == page):
        text = re.sub(pattern, "", text)
    found = set(re.findall(r"(?<![\w.])\d*\.\d{2,}(?![\w.]*\d)", re.sub(r"`[^`]*`", "", text)))
    assert found == NOT_MEASURED.get(page, set())


def test_a_number_is_compared_to_as_many_digits_as_it_has():
    assert is_rounded(".22", 0.2214)
    assert is_rounded("1.5", 1.46)
    assert not is_rounded(".221", 0.2206 + 0.001)
