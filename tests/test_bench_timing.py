"""The timing loop on a clock that the test moves, and on inferences that take what the test says."""

import math

import numpy as np
import pytest

from edc.benchmark.workers.timing import (
    RowSamples,
    TimingPlan,
    WarmUp,
    drift,
    flags_of,
    inputs_in_rotation,
    interleave,
    timed_round,
    timed_runs,
    warm_up,
)

STABLE = WarmUp(num_runs=10, is_stable=True, run_ns=1000)
IMAGES = np.arange(40, dtype=np.float32).reshape(40, 1, 1, 1)


class FakeMachine:
    """A clock, and an inference that moves it by what `duration_of(number of the run)` says."""

    def __init__(self, duration_of) -> None:
        self.now, self.num_runs, self.seen, self.duration_of = 10**12, 0, [], duration_of

    def clock(self) -> int:
        return self.now

    def infer(self, batch: np.ndarray) -> np.ndarray:
        self.seen.append(float(batch.flat[0]))
        self.now += self.duration_of(self.num_runs)
        self.num_runs += 1
        return batch


def rows_of(machines):
    """Rows for `interleave`: each a machine's own, without settling."""
    inputs = inputs_in_rotation(IMAGES, batch=1)

    def row(machine):
        return lambda first, num: timed_runs(machine.infer, inputs, first=first, num_runs=num, clock=machine.clock)

    return {name: row(machine) for name, machine in machines.items()}


def test_every_run_is_timed_alone_and_outliers_are_kept():
    machine = FakeMachine(lambda run: 1_000_000 if run == 3 else 1_000 + run)
    samples = timed_runs(machine.infer, inputs_in_rotation(IMAGES, batch=1), first=0, num_runs=6, clock=machine.clock)
    assert samples.tolist() == [1000, 1001, 1002, 1_000_000, 1004, 1005]
    assert samples.dtype == np.int64


def test_inputs_go_round_and_go_on_where_the_last_round_stopped():
    machine = FakeMachine(lambda run: 1)
    inputs = inputs_in_rotation(IMAGES, batch=1)
    timed_runs(machine.infer, inputs, first=14, num_runs=5, clock=machine.clock)
    assert machine.seen == [14, 15, 0, 1, 2]


@pytest.mark.parametrize(("num_images", "batch"), [(40, 1), (40, 2), (40, 5), (40, 40), (40, 64), (3, 1), (20, 64)])
def test_sixteen_batches_of_the_right_size_and_all_different_if_the_images_allow(num_images, batch):
    inputs = inputs_in_rotation(IMAGES[:num_images], batch=batch)
    assert [each.shape for each in inputs] == [(batch, 1, 1, 1)] * 16
    assert all(each.flags.c_contiguous and each.dtype == np.float32 for each in inputs)
    assert len({each.tobytes() for each in inputs}) == min(16, num_images)
    assert set(np.concatenate(inputs).flat) <= set(IMAGES[:num_images].flat)


def test_batches_of_enough_images_share_none():
    inputs = np.concatenate(inputs_in_rotation(IMAGES, batch=2))
    assert len(set(inputs.flat)) == 32


def test_runs_that_settle_a_round_are_not_in_its_samples():
    machine = FakeMachine(lambda run: 5_000_000 if run < 2 else 1_000)
    inputs = inputs_in_rotation(IMAGES, batch=1)
    samples = timed_round(machine.infer, inputs, first=0, num_runs=4, settle_ms=3.0, clock=machine.clock)
    assert samples.tolist() == [1000] * 4
    assert machine.num_runs == 6
    machine = FakeMachine(lambda run: 1_000_000)
    timed_round(machine.infer, inputs, first=0, num_runs=1, settle_ms=3.0, clock=machine.clock)
    assert machine.num_runs == 3 + 1


def test_run_of_a_tenth_of_a_second_settles_its_round_alone():
    for run_ns, settling in ((99_000_000, 2), (100_000_000, 1)):
        machine = FakeMachine(lambda run, run_ns=run_ns: run_ns)
        inputs = inputs_in_rotation(IMAGES, batch=1)
        timed_round(machine.infer, inputs, first=0, num_runs=1, settle_ms=3.0, clock=machine.clock)
        assert machine.num_runs == settling + 1


def test_warm_up_ends_when_three_windows_agree_and_not_before():
    # 40 runs of 9 ms falling towards 1 ms, then steady: windows are 30 ms or three runs.
    machine = FakeMachine(lambda run: max(1_000_000, 9_000_000 - 200_000 * run))
    result = warm_up(machine.infer, inputs_in_rotation(IMAGES, batch=1), plan=TimingPlan(), clock=machine.clock)
    assert result.is_stable
    assert result.run_ns == 1_000_000
    assert result.num_runs >= 40 + 2 * 30


def test_warm_up_of_a_restless_machine_ends_in_time_and_says_so():
    machine = FakeMachine(lambda run: 1_000_000 * (1 + run // 30 % 2))
    start = machine.now
    result = warm_up(machine.infer, inputs_in_rotation(IMAGES, batch=1), plan=TimingPlan(), clock=machine.clock)
    assert not result.is_stable
    assert machine.now - start < 1.1 * 40 * 30e6
    assert "the warm-up did not become stable" in flags_of(RowSamples({}), result)


def test_warm_up_of_a_slow_network_is_a_few_runs():
    machine = FakeMachine(lambda run: 2_000_000_000)
    result = warm_up(machine.infer, inputs_in_rotation(IMAGES, batch=1), plan=TimingPlan(), clock=machine.clock)
    assert result == WarmUp(num_runs=3, is_stable=True, run_ns=2_000_000_000)


@pytest.mark.parametrize("jump_ns", [-3_600 * 10**9, 3_600 * 10**9])
def test_a_clock_that_jumps_spoils_one_sample_and_stops_nothing(jump_ns):
    machine = FakeMachine(lambda run: jump_ns if run == 25 else 1_000_000)
    warm = warm_up(machine.infer, inputs_in_rotation(IMAGES, batch=1), plan=TimingPlan(), clock=machine.clock)
    assert machine.num_runs < 40_000
    assert warm.run_ns == 1_000_000
    machine = FakeMachine(lambda run: jump_ns if run == 25 else 1_000_000)
    plan = TimingPlan(seconds_per_row=0.3, num_rounds=10)
    samples = interleave(rows_of({"row": machine}), run_ns={"row": 1_000_000}, plan=plan, seed=0)["row"]
    assert len(samples.all) == 300  # all rounds, all kept
    assert np.median(samples.all) == 1_000_000
    assert jump_ns in samples.all
    flags = " ".join(flags_of(samples, warm))
    assert ("clock went back during 1 of 300" in flags) == (jump_ns < 0)
    assert ("the clock jumped forward, or the machine slept, during 1 of 300" in flags) == (jump_ns > 0)
    assert "noise" in flags
    assert "drift" not in flags


def test_rows_take_turns_in_an_order_that_changes_and_that_the_seed_fixes():
    def order_of(seed):
        calls = []
        rows = {name: lambda first, num, name=name: calls.append(name) or np.full(num, 1000) for name in "abcd"}
        interleave(rows, run_ns=dict.fromkeys("abcd", 10**8), plan=TimingPlan(num_rounds=20), seed=seed)
        return ["".join(calls[start : start + 4]) for start in range(0, len(calls), 4)]

    rounds = order_of(0)
    assert len(rounds) == 20
    assert all(sorted(each) == list("abcd") for each in rounds)
    assert len(set(rounds)) > 10
    assert rounds == order_of(0) != order_of(1)


def test_time_is_spent_as_planned_whatever_a_run_takes():
    durations = {"fast": 20_000, "middle": 3_000_000, "slow": 400_000_000}
    machines = {name: FakeMachine(lambda run, ns=ns: ns) for name, ns in durations.items()}
    plan = TimingPlan(seconds_per_row=3.0, num_rounds=30, min_rounds=10)
    taken = interleave(rows_of(machines), run_ns=durations, plan=plan, seed=0)
    assert len(taken["fast"].all) == pytest.approx(150_000, rel=0.01)
    assert len(taken["middle"].all) == pytest.approx(1_000, rel=0.05)
    assert len(taken["fast"].rounds) == len(taken["middle"].rounds) == 30
    assert len(taken["slow"].all) == len(taken["slow"].rounds) == 10  # over its 3 s, but no fewer rounds than that


def test_a_row_that_turns_out_slower_than_its_warm_up_still_takes_part_to_the_end():
    machine = FakeMachine(lambda run: 10_000_000)
    plan = TimingPlan(seconds_per_row=1.0, num_rounds=20)
    samples = interleave(rows_of({"row": machine}), run_ns={"row": 2_000_000}, plan=plan, seed=0)["row"]
    assert len(samples.rounds) == 20
    assert len(samples.all) < 140


def test_a_row_that_fails_is_not_asked_again_and_keeps_what_it_had():
    asked = []

    def failing(first, num_runs):
        asked.append(first)
        return None if len(asked) == 3 else np.full(num_runs, 1000)

    rows = {"failing": failing, "other": lambda first, num: np.full(num, 1000)}
    plan = TimingPlan(seconds_per_row=1e-4, num_rounds=10)
    taken = interleave(rows, run_ns={"failing": 1000, "other": 1000}, plan=plan, seed=0)
    assert len(asked) == 3
    assert list(taken["failing"].rounds) == [0, 1]
    assert len(taken["other"].rounds) == 10


def test_a_planted_drift_is_flagged_and_a_steady_row_is_not():
    rng = np.random.default_rng(0)

    def row(slow_down):
        rounds = {r: (1e6 * (1 + slow_down * r / 29) + rng.normal(0, 2e4, 50)).astype(np.int64) for r in range(30)}
        return RowSamples(rounds)

    assert flags_of(row(0.0), STABLE) == ()
    (flag,) = flags_of(row(0.2), STABLE)
    assert flag.startswith("drift: the median changed by +1")
    (flag,) = flags_of(row(-0.2), STABLE)
    assert flag.startswith("drift: the median changed by -1")


def test_drift_is_of_the_medians_of_the_outer_thirds_in_the_order_of_the_rounds():
    assert drift({9: 6.0, 1: 2.0, 5: 100.0}) == 2.0
    assert drift({0: 4.0, 1: 8.0, 2: 1.0, 3: 1.0, 4: 1.0, 5: 3.0, 6: 3.0}) == pytest.approx(3 / 6 - 1)
    assert drift({0: 0.0, 1: 2.0, 2: 2.0, 3: 3.0}) == 0.5  # a round of no time says nothing
    assert drift({0: 1.0, 1: 9.0}) == drift({}) == 0.0


def test_noise_is_the_coefficient_of_variation_with_outliers():
    quiet = np.full(1000, 1_000_000)
    assert flags_of(RowSamples({0: quiet}), STABLE) == ()
    noisy = quiet.copy()
    noisy[::100] = 5_000_000
    spread = math.sqrt(0.01 * 0.99) * 4 / 1.04  # a two-point distribution
    assert flags_of(RowSamples({0: noisy}), STABLE) == (f"noise: the coefficient of variation is {spread:.0%}",)
