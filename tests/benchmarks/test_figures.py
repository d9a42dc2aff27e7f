"""Figures, their shares of the floor and their ratios, in both directions."""

import pytest

from benchmarks.figures import BASELINES, WORK_FIGURES, Run, format_table, make_figures, number, offline_baseline
from benchmarks.works import WORKS, make_work


def test_latency_figures() -> None:
    work = make_work("decode1", 1000)
    runs = [Run(1.30, 0.025), Run(1.285, 0.01), Run(2.0, 0.02)]
    figures = make_figures(work, "quire", runs, [0.005] + [0.0025] * 255, {"ms per output token": 4.5})
    per_token, first = figures
    assert per_token.median == pytest.approx(5.0)
    assert per_token.values[2] == pytest.approx(1980 / 255)
    assert per_token.floor == pytest.approx(2.5)
    assert per_token.share == pytest.approx(0.5)
    assert per_token.ratio == pytest.approx(0.9)
    assert (first.median, first.floor, first.baseline) == (20.0, 5.0, None)


def test_throughput_figures() -> None:
    work = make_work("decode64", 1000)
    (figure,) = make_figures(work, "quire", [Run(4.0)], [2.0, 1.0], {"output tokens/s": 8192.0})
    assert (figure.median, figure.share, figure.ratio) == (4096.0, 0.75, 0.5)


def test_a_side_that_does_not_tell_first_tokens_has_no_such_figures() -> None:
    assert make_figures(make_work("decode1", 1000), "peer", [Run(1.0)], [0.1]) == []


def test_every_work_has_figures_and_baselines_name_them() -> None:
    assert set(WORK_FIGURES) == set(WORKS)
    for shape, works in BASELINES["offline"].items():
        for work, figures in works.items():
            assert set(figures) <= set(WORK_FIGURES[work]), (shape, work)
    assert offline_baseline("llama8b", "tput") == {"seconds": 33.42}
    assert offline_baseline(None, "tput") is None


def test_table() -> None:
    figures = make_figures(make_work("tput", 1000), "quire", [Run(30.0)], [25.0], {"seconds": 33.0})
    lines = format_table(figures, "other").splitlines()
    assert lines[0].endswith("| share of the floor | other | times as good |")
    assert lines[2] == "| tput | quire | seconds | 30 | 30 | 25 | 83.3% | 33 | 1.10 |"
    assert "other" not in format_table(make_figures(make_work("tput", 1000), "quire", [Run(30.0)], [25.0]), "other")


@pytest.mark.parametrize(("value", "text"), [(12345.6, "12,346"), (3.14159, "3.142"), (0.00012345, "0.000123")])
def test_number(value: float, text: str) -> None:
    assert number(value) == text
