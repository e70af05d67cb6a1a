"""What a run returns, looked at: as a text, in a notebook, in a figure."""

import sys
from math import inf, nan
from xml.etree import ElementTree

import pytest
from flwr.app import MetricRecord
from flwr.serverapp.strategy import Result

from fedmedian.strategies.results import ShownResult, plot


def by_round(**metrics):
    """Return MetricRecords of rounds 1, 2, …, from the values of each metric."""
    return {
        number: MetricRecord(dict(zip(metrics, values, strict=True)))
        for number, values in enumerate(zip(*metrics.values(), strict=True), 1)
    }


def rows(result):
    """Return the cells of a result's table, its figures left out."""
    table = ElementTree.fromstring(result._repr_html_())
    return [["".join(cell.itertext()) for cell in row] for row in table]


class TestTable:
    def test_has_a_row_for_each_metric_with_its_last_value(self):
        result = ShownResult(
            evaluate_metrics_clientapp=by_round(accuracy=[0.25, 0.5, 0.75], loss=[3, 2, 1]),
            train_metrics_clientapp=by_round(margin=[2.0]),
        )
        assert rows(result) == [
            ["phase", "metric", "by round", "last"],
            ["evaluation by clients", "accuracy", "", "0.75"],
            ["evaluation by clients", "loss", "", "1"],
            ["training", "margin", "", "2"],
        ]

    def test_draws_a_curve_from_its_lowest_to_its_highest_value(self):
        result = ShownResult(train_metrics_clientapp=by_round(x=[1.0, 5.0, 3.0]))
        assert 'points="0.0,24.0 60.0,0.0 120.0,12.0"' in result._repr_html_()

    @pytest.mark.parametrize("values", [[1.0], [2.0, 2.0], [nan], [inf, nan], [1.0, nan, 3.0]])
    def test_draws_what_is_finite(self, values):
        text = ShownResult(train_metrics_clientapp=by_round(x=values))._repr_html_()
        (points,) = [e.get("points") for e in ElementTree.fromstring(text).iter("polyline")]
        assert len(points.split()) == sum(value - value == 0 for value in values)
        assert "nan" not in points

    def test_escapes_names_that_clients_chose(self):
        name = "<script>alert(1)</script>"
        result = ShownResult(train_metrics_clientapp=by_round(**{name: [1.0]}))
        assert rows(result)[1][1] == name
        assert "<script" not in result._repr_html_()

    def test_leaves_out_lists(self):
        result = ShownResult(train_metrics_clientapp=by_round(x=[[1.0, 2.0]]))
        assert len(rows(result)) == 1


class TestPlot:
    @pytest.fixture(autouse=True)
    def needs_matplotlib(self):
        pytest.importorskip("matplotlib")

    def test_draws_a_metric_over_rounds_and_over_what_was_sent(self):
        result = Result(
            evaluate_metrics_clientapp=by_round(accuracy=[0.25, 0.5]),
            train_metrics_clientapp=by_round(**{"uplink-bytes": [2e6, 1e6]}),
        )
        over_rounds, over_bytes = plot(result).axes
        assert over_rounds.lines[0].get_xydata().tolist() == [[1, 0.25], [2, 0.5]]
        assert over_bytes.lines[0].get_xydata().tolist() == [[2, 0.25], [3, 0.5]]

    def test_draws_several_runs_by_name_and_flowers_own_over_rounds_only(self):
        ours = Result(
            evaluate_metrics_serverapp={0: MetricRecord({"loss": 9.0}), **by_round(loss=[3.0])},
            train_metrics_clientapp=by_round(**{"uplink-bytes": [1e6]}),
        )
        flowers = Result(evaluate_metrics_clientapp=by_round(loss=[2.0, 1.0]))
        over_rounds, over_bytes = plot({"SignSGD": ours, "FedAvg": flowers}, "loss").axes
        names = [text.get_text() for text in over_rounds.get_legend().get_texts()]
        assert names == ["SignSGD", "FedAvg"]
        assert [len(line.get_xdata()) for line in over_rounds.lines] == [2, 2]
        assert [len(line.get_xdata()) for line in over_bytes.lines] == [1, 0]

    def test_prefers_the_servers_evaluation(self):
        result = Result(
            evaluate_metrics_serverapp=by_round(accuracy=[0.75]),
            evaluate_metrics_clientapp=by_round(accuracy=[0.25]),
        )
        assert plot(result).axes[0].lines[0].get_ydata().tolist() == [0.75]

    def test_names_the_metrics_that_there_are(self):
        result = Result(train_metrics_clientapp=by_round(loss=[1.0]))
        with pytest.raises(ValueError, match=r"one of the result's, \['loss'\], got 'accuracy'"):
            plot(result)

    def test_names_the_result_that_lacks_a_metric(self):
        curves = {"first": by_round(loss=[1.0]), "second": by_round(accuracy=[0.5])}
        results = {name: Result(train_metrics_clientapp=curve) for name, curve in curves.items()}
        said = r"one of those of results\['second'\], \['accuracy'\], got 'loss'"
        with pytest.raises(ValueError, match=said):
            plot(results, metric="loss")

    def test_marks_whole_rounds_alone(self):
        figure = plot(Result(train_metrics_clientapp=by_round(accuracy=[0.1, 0.2, 0.3])))
        assert all(tick % 1 == 0 for tick in figure.axes[0].get_xticks())

    def test_refuses_a_list(self):
        with pytest.raises(TypeError, match=r"^results must be a Result, or a mapping"):
            plot([Result()])

    def test_refuses_another_value_among_results_by_its_name(self):
        curve = by_round(accuracy=[0.5])
        with pytest.raises(TypeError, match=r"^results\['ours'\] must be a Result, got \{1: "):
            plot({"ours": curve})

    def test_says_what_it_needs(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        with pytest.raises(ImportError, match="pip install matplotlib"):
            plot(Result())
