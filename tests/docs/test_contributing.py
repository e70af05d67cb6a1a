"""The custom parts that CONTRIBUTING.md shows, as they stand there."""

import re

import numpy as np
import pytest

from fedmedian.clients import InProcessGrid
from fedmedian.strategies import MedianSGD, SignSGD
from tests.tools.places import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text()


@pytest.fixture(scope="module")
def shown(registries):
    """Everything that the snippets define."""
    names = {"__name__": "contributing"}
    for snippet in re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE):
        exec(snippet, names)
    return names


@pytest.mark.parametrize(
    ("call", "rejected"),
    [
        ("SignSGD(HyperbolicSecant())", 0),
        ("SignSGD(client_steps=[FlipSigns(seed=1)])", 0),
        ("SignSGD(aggregator=HalfMedian())", 0),
        ("MedianSGD(aggregator=TrimmedMean())", 0),
        ("SkipSlowNodes(slow=grid.get_node_ids()[:2])", 0),
        ("SignSGD(aggregator=ClearMajority(), learning_rate=0.001)", 0),
        ("SignSGD(cohort_rules=[refuse_heavy_clients])", 1),
    ],
)
def test_a_strategy_trains_with_the_custom_part_that_is_shown(
    call, rejected, shown, make_app, as_record, as_arrays
):
    def train(model, partition):
        claimed = 1000 if partition == 0 else 1
        return {"x": model["x"] - np.float32(0.1)}, {"num-examples": claimed}

    assert f"`{call}`" in TEXT
    grid = InProcessGrid(make_app(train), 5)
    own = {"SignSGD": SignSGD, "MedianSGD": MedianSGD, "grid": grid}
    strategy = eval(call, {**shown, **own})
    # No seed: over so many coordinates the mean is thirty standard deviations from zero.
    result = strategy.start(grid, as_record({"x": np.zeros(10_000, np.float32)}), 2)
    assert as_arrays(result.arrays)["x"].mean() < 0
    for report in result.train_metrics_clientapp.values():
        assert report["replies-rejected"] == rejected
        assert report["replies-missing"] == 0
        asked = 3 if "SkipSlowNodes" in call else 5
        assert report["replies-accepted"] == asked - rejected


def test_the_map_names_every_module():
    rows = dict(re.findall(r"^\| `(fedmedian/\w*/?)` \|[^|]*\| (.*) \|$", TEXT, re.MULTILINE))
    package = ROOT / "fedmedian"
    found = {}
    for path in package.rglob("*.py"):
        if path.stem != "__init__":
            folder = path.parent.relative_to(ROOT).as_posix() + "/"
            found.setdefault(folder, set()).add(path.stem)
    assert {folder: set(re.findall(r"`(\w+)`", row)) for folder, row in rows.items()} == found
