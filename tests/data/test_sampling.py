from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtdetr_tool.data.sampling import EvalSampler, TrainSampler, epoch_length, repeat_factors


@given(st.integers(1, 200), st.integers(1, 9), st.integers(1, 5), st.integers(0, 3))
def test_ranks_see_equally_many_images_and_share_them_without_overlap(count, batch, world, epoch) -> None:
    ranks = [TrainSampler(count, 7, batch, rank, world) for rank in range(world)]
    for sampler in ranks:
        sampler.set_epoch(epoch)
    drawn = [list(sampler) for sampler in ranks]
    assert {len(share) for share in drawn} == {len(ranks[0])} and len(ranks[0]) > 0
    seen = [index for share in drawn for epoch_, index in share if epoch_ == epoch]
    assert len(seen) == sum(len(share) for share in drawn) and set(seen) <= set(range(count))
    if count >= batch * world:
        assert len(set(seen)) == len(seen) == count // (batch * world) * batch * world
    else:
        assert set(seen) == set(range(count))


def test_step_k_of_two_ranks_is_step_k_of_one_process_with_twice_the_batch() -> None:
    alone = list(TrainSampler(22, 3, 6))
    first, second = (list(TrainSampler(22, 3, 3, rank, 2)) for rank in range(2))
    for k in range(3):
        assert set(alone[6 * k : 6 * k + 6]) == {*first[3 * k : 3 * k + 3], *second[3 * k : 3 * k + 3]}


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    sampler = TrainSampler(50, 1, 4)
    zero = list(sampler)
    assert zero == list(sampler)
    sampler.set_epoch(1)
    one = [index for _, index in sampler]
    assert one != [index for _, index in zero]
    assert [index for _, index in TrainSampler(50, 2, 4)] != [index for _, index in zero]


@given(st.integers(0, 100), st.integers(1, 7))
def test_evaluation_sees_every_image_once(count, world) -> None:
    shares = [list(EvalSampler(count, rank, world)) for rank in range(world)]
    assert sorted(index for share in shares for index in share) == list(range(count))
    assert [len(EvalSampler(count, rank, world)) for rank in range(world)] == [len(share) for share in shares]


def test_repeat_factors_are_those_of_the_paper() -> None:
    labels = [np.array([0, 0])] * 90 + [np.array([0, 1])] * 9 + [np.array([2])] + [np.array([], np.int64)] * 100
    factors = repeat_factors(labels, 0.05)  # class 1 occurs in 9 of 200 images, class 2 in one
    assert factors[:90].tolist() == [1.0] * 90 and factors[100:].tolist() == [1.0] * 100
    assert factors[90:99] == pytest.approx([(0.05 * 200 / 9) ** 0.5] * 9)
    assert factors[99] == pytest.approx((0.05 * 200) ** 0.5)


@given(st.lists(st.floats(1, 9), min_size=1, max_size=60), st.integers(1, 7), st.integers(1, 4), st.integers(0, 3))
def test_an_epoch_draws_each_image_its_factor_rounded_up_or_down(factors, batch, world, epoch) -> None:
    values, count = np.array(factors), len(factors)
    ranks = [TrainSampler(count, 7, batch, rank, world, values) for rank in range(world)]
    for sampler in ranks:
        sampler.set_epoch(epoch)
    drawn = [list(sampler) for sampler in ranks]
    assert {len(share) for share in drawn} == {len(ranks[0])}
    order = ranks[0]._order(np.random.default_rng([7, epoch]))
    assert len(order) == epoch_length(values) and len(set(order.tolist())) == len(order)
    times = np.bincount(order % count, minlength=count)
    shares = values * (len(order) / values.sum())
    assert (times >= np.floor(shares)).all() and (times <= np.ceil(shares)).all() and times.min() >= 1
    assert {index for share in drawn for _, index in share} <= set(order.tolist())


def test_factors_are_exact_over_many_epochs() -> None:
    values, times = np.array([1.0, 1.3, 2.45, 1.0]), np.zeros(4)
    sampler = TrainSampler(4, 1, 1, factors=values)
    for epoch in range(2000):
        sampler.set_epoch(epoch)
        times += np.bincount([index % 4 for _, index in sampler], minlength=4)
    assert times / 2000 == pytest.approx(values * 6 / values.sum(), abs=0.03)
