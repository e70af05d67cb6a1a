"""The parts of one's own that CONTRIBUTING.md shows, as they stand there."""

import re

import numpy as np
import pytest

from fedmedian.clients import InProcessGrid
from fedmedian.strategies import SignSGD
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
        ("SignSGD(decode=ClearMajority(), learning_rate=0.001)", 0),
        ("SignSGD(cohort_rules=[refuse_heavy_clients])", 1),
    ],
)
def test_a_strategy_trains_with_the_part_of_ones_own_that_is_shown(
    call, rejected, shown, make_app, as_record, as_arrays
):
    def train(model, partition):
        claimed = 1000 if partition == 0 else 1
        return {"x": model["x"] - np.float32(0.1)}, {"num-examples": claimed}

    assert f"`{call}`" in TEXT
    strategy = eval(call, {**shown, "SignSGD": SignSGD})
    grid = InProcessGrid(make_app(train), 5)
    # No seed: over so many coordinates the mean is thirty standard deviations from zero.
    result = strategy.start(grid, as_record({"x": np.zeros(10_000, np.float32)}), 2)
    assert as_arrays(result.arrays)["x"].mean() < 0
    for report in result.train_metrics_clientapp.values():
        assert report["replies-rejected"] == rejected
