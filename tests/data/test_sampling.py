from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtdetr_tool.data.sampling import EvalSampler, SourceShares, TrainSampler, epoch_length, repeat_factors


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


SHARES = st.lists(st.tuples(st.integers(1, 40), st.floats(0.05, 9)), min_size=1, max_size=5)


@given(SHARES, st.integers(1, 9), st.integers(1, 4), st.integers(0, 3))
def test_each_batch_of_each_rank_has_the_shares_of_the_sources_rounded(sources, batch, world, epoch) -> None:
    shares = SourceShares(*map(tuple, zip(*sources, strict=True)))
    count, ends = sum(shares.sizes), np.cumsum(shares.sizes)
    ranks = [TrainSampler(count, 7, batch, rank, world, sources=shares) for rank in range(world)]
    for sampler in ranks:
        sampler.set_epoch(epoch)
    drawn = [[index for _, index in sampler] for sampler in ranks]
    assert {len(of_rank) for of_rank in drawn} == {len(TrainSampler(count, 7, batch, 0, world))}  # as without shares
    everything = [index for of_rank in drawn for index in of_rank]
    assert len(set(everything)) == len(everything)  # a repeated image has another index, so another augmentation
    size = batch if count >= batch * world else len(ranks[0])
    for of_rank in drawn:
        for start in range(0, len(of_rank), size):
            source = np.searchsorted(ends, np.array(of_rank[start : start + size]) % count, side="right")
            numbers = np.bincount(source, minlength=len(ends))
            assert (np.abs(numbers - shares.fractions * size) < 1 + 1e-6).all()


@given(SHARES, st.integers(1, 9), st.integers(1, 4))
def test_images_of_a_source_are_drawn_equally_often_up_to_one_draw(sources, batch, world) -> None:
    shares = SourceShares(*map(tuple, zip(*sources, strict=True)))
    count = sum(shares.sizes)
    order = TrainSampler(count, 7, batch, 0, world, sources=shares)._order(np.random.default_rng(1))
    times = np.bincount(order % count, minlength=count)
    for of_source in np.split(times, np.cumsum(shares.sizes)[:-1]):
        assert of_source.max() - of_source.min() <= 1


def test_over_an_epoch_the_shares_are_exact_and_so_are_repeat_factors_within_a_source() -> None:
    shares = SourceShares((3000, 1000, 200), (0.5, 0.37, 0.13))
    factors = np.ones(4200)
    factors[3000:3500] = 3.0
    sampler = TrainSampler(4200, 1, 8, factors=factors, sources=shares)
    index = np.array([index for _, index in sampler])
    times = np.bincount(index % 4200, minlength=4200)
    assert len(index) == 5200 // 8 * 8  # the epoch of the repeat factors
    drawn = np.array([times[:3000].sum(), times[3000:4000].sum(), times[4000:].sum()])
    assert drawn / len(index) == pytest.approx(shares.fractions, abs=1e-3)
    assert times[3000:3500].sum() / times[3500:4000].sum() == pytest.approx(3.0, rel=0.01)


def test_step_k_of_two_ranks_has_the_images_of_step_k_of_one_process_also_with_shares() -> None:
    shares = SourceShares((30, 14), (1, 3))
    alone = list(TrainSampler(44, 3, 6, sources=shares))
    first, second = (list(TrainSampler(44, 3, 3, rank, 2, sources=shares)) for rank in range(2))
    for k in range(7):
        assert set(alone[6 * k : 6 * k + 6]) == {*first[3 * k : 3 * k + 3], *second[3 * k : 3 * k + 3]}


def test_with_shares_the_order_depends_on_seed_and_epoch_and_a_run_resumes_in_it() -> None:
    shares = SourceShares((30, 14), (1, 3))
    sampler = TrainSampler(44, 3, 4, 1, 2, sources=shares)
    zero = list(sampler)
    assert zero == list(TrainSampler(44, 3, 4, 1, 2, sources=shares))
    assert zero != list(TrainSampler(44, 4, 4, 1, 2, sources=shares))
    sampler.set_epoch(1)
    one = list(sampler)
    assert [index for _, index in one] != [index for _, index in zero]
    sampler.start_at(1, 3)
    assert list(sampler) == one[12:]
