"""The apps of the frameworks that users come from: ours learn what FedAvg does."""

import pytest

from experiments.apps.frameworks import FRAMEWORKS
from experiments.studies import frameworks
from experiments.studies.frameworks import frameworks_table, installed, train
from tests.tools.jobs import run_here


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_an_app_learns_as_with_fedavg_and_sends_a_quarter_at_most(name):
    for package in FRAMEWORKS[name][1]:
        pytest.importorskip(package)
    fedavg, sign = (train(name, strategy, 8, seed=0) for strategy in ("FedAvg", "SignSGD()"))
    assert fedavg["accuracy"] > 0.2  # a tenth would be by chance
    assert sign["accuracy"] > 0.8 * fedavg["accuracy"]
    assert fedavg["bytes"] > 4 * sign["bytes"]


def test_the_table_has_what_is_installed_and_the_log_names_the_rest(monkeypatch, tmp_path, caplog):
    here = {"sklearn": FRAMEWORKS["sklearn"], "torch": ("PyTorch", ["torch", "no_such_package"])}
    monkeypatch.setattr(frameworks, "FRAMEWORKS", here)
    monkeypatch.setattr(frameworks, "RESULTS", tmp_path)
    monkeypatch.setattr(frameworks, "run_jobs", run_here)
    _, _, row = frameworks_table(rounds=1, seeds=[0]).splitlines()
    assert row.startswith("| scikit-learn |        650 |")
    assert caplog.messages == ["PyTorch is left out: no_such_package is missing"]
    assert installed(here) == ["sklearn"]
