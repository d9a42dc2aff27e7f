"""The table of `bench_offload`."""

from benchmarks.bench_offload import Row, table


def test_the_rate_is_what_a_reload_takes_beyond_a_hit() -> None:
    row = Row(512, 64 * 10**6, computed=[0.02, 0.5, 0.03], found=[0.004, 0.005, 0.006], loaded=[0.007, 0.006, 0.009])
    assert row.reload_rate is not None
    assert abs(row.reload_rate - 32e9) < 1e3
    cells = table([row], link=40e9).splitlines()[-1].strip("| ").split(" | ")
    assert cells == ["512", "61.04", "30", "7", "5", "4.29", "32", "80%"]


def test_a_reload_that_hides_behind_the_step_has_no_rate() -> None:
    row = Row(16, 1000, computed=[0.02], found=[0.005], loaded=[0.005])
    assert row.reload_rate is None
    assert table([row], link=40e9).splitlines()[-1].endswith("|  |  |")
