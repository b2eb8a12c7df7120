from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rtdetr_tool.data.sampling import EvalSampler, TrainSampler


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
