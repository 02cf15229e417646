import pytest
from torch import nn

from bert_of_theseus import TheseusLayers
from replacement_scheduler import ConstantReplacementScheduler, LinearReplacementScheduler, slope_to_1


@pytest.fixture
def layers():
    return TheseusLayers(nn.ModuleList(nn.Linear(1, 1) for _ in range(4)), 2)


def rates(scheduler, n_steps: int) -> list[float]:
    """The rates in force during the first `n_steps` optimiser steps."""
    in_force = []
    for _ in range(n_steps):
        in_force.append(scheduler.layers.replacing_rate)
        assert scheduler.step() == scheduler.layers.replacing_rate
    return in_force


@pytest.mark.parametrize("n", [1, 2, 7])
def test_a_constant_rate_holds_for_exactly_n_steps(layers, n):
    assert rates(ConstantReplacementScheduler(layers, 0.3, n), 10) == [0.3] * n + [1.0] * (10 - n)


def test_zero_steps_behave_as_one(layers):
    assert rates(ConstantReplacementScheduler(layers, 0.3, 0), 3) == [0.3, 1.0, 1.0]


def test_without_a_number_of_steps_the_rate_holds_for_ever(layers):
    assert set(rates(ConstantReplacementScheduler(layers, 0.3), 5000)) == {0.3}


def test_the_linear_rate_rises_by_k_a_step_up_to_1(layers):
    assert rates(LinearReplacementScheduler(layers, 0.3, 0.25), 5) == pytest.approx([0.3, 0.55, 0.8, 1.0, 1.0])


@pytest.mark.parametrize("base", [0.1, 0.3, 0.5, 0.7])
def test_the_slope_to_1_reaches_it_after_exactly_so_many_steps(layers, base):
    for n_steps in range(1, 400):
        schedule = LinearReplacementScheduler(layers, base, slope_to_1(base, n_steps))
        assert schedule.replacing_rate_at(n_steps) == 1 > schedule.replacing_rate_at(n_steps - 1)


def test_the_schedule_of_the_2020_release_reaches_1_after_1167_steps(layers):
    in_force = rates(LinearReplacementScheduler(layers, 0.3, 0.0006), 1200)
    assert in_force[1166] < 1 and in_force[1167] == 1
    assert in_force[1000] == pytest.approx(0.9)


@pytest.mark.parametrize("rate", [0, -0.5, 1.5, float("nan")])
def test_a_rate_outside_0_to_1_is_refused(layers, rate):
    for make in (
        lambda: ConstantReplacementScheduler(layers, rate),
        lambda: LinearReplacementScheduler(layers, rate, 0.1),
    ):
        with pytest.raises(ValueError, match=r"\(0, 1\]"):
            make()


def test_a_falling_rate_and_a_negative_number_of_steps_are_refused(layers):
    for k in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="k is"):
            LinearReplacementScheduler(layers, 0.5, k)
    with pytest.raises(ValueError, match="replacing_steps"):
        ConstantReplacementScheduler(layers, 0.5, -1)


@pytest.mark.parametrize(
    "make", [lambda on: ConstantReplacementScheduler(on, 0.2, 5), lambda on: LinearReplacementScheduler(on, 0.2, 0.1)]
)
def test_a_reloaded_schedule_goes_on_where_it_was(layers, make):
    expected = rates(make(layers), 12)
    first = make(layers)
    start = rates(first, 4)
    second = make(layers)
    second.load_state_dict(first.state_dict())
    assert start + rates(second, 8) == expected
