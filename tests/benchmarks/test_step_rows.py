"""What counts as a step that got shorter with more sequences."""

import pytest

from benchmarks.bench_step_rows import largest_fall


@pytest.mark.parametrize(
    ("times", "wanted"),
    [
        ({1: 10.0}, (0.0, 0, 0)),
        ({1: 10.0, 2: 16.0, 3: 14.0, 4: 12.0}, (0.25, 2, 4)),
    ],
)
def test_the_largest_fall_is_between_any_two(times: dict[int, float], wanted: tuple[float, int, int]) -> None:
    assert largest_fall(times) == wanted


def test_steps_that_only_grow_have_a_fall_below_zero() -> None:
    assert largest_fall({1: 10.0, 2: 11.0, 3: 12.5})[0] < 0
