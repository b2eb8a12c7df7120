"""Optimal one-to-one assignments of queries and objects, for all images, stages and groups of a step at once.

The costs of real objects travel to the host in one copy, scipy solves the problems (in threads when there is much to
do, since it releases the interpreter's lock), and the matches travel back in another copy.

torch-linear-assignment 0.1.0 could solve them on the GPU, but waits for the device twice per call to check its input,
which is once more than the copy does.

Shape legend: B batch, N rows (queries of all stages, see `losses.rows`), S stages of a stack, G groups, Q queries of a
group, M maximum objects per image, n objects of an image, P matched pairs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_MAX_THREADS = 8
_THREADED_WORK = 200_000  # entries of all costs together; with fewer, starting threads costs more than it saves

Costs = NDArray[np.float32]
Pairs = NDArray[np.int64]  # [5, P]: stage, image, query, object, row
Problem = tuple[Costs, Pairs]  # cost [n, Q], and the pairs to complete


def assign_rows(cost: Tensor, stacks: Sequence[tuple[int, int]], counts: Sequence[int], groups: int) -> Tensor:
    """The matches of cost [B, N, M] as [5, P] on its device: stage, image, query of the stage, object, row.

    Matches are ordered by stage, image, group and object. Stages are counted over all stacks. Columns of image b from
    `counts[b]` on are ignored.

    Args:
        stacks: (stages, queries of all groups) of each stack of rows.
    """
    costs = _to_host([image[:count] for image, count in zip(cost.transpose(1, 2), counts, strict=True)])  # [sum n, N]
    tables: list[Pairs] = []
    problems: list[Problem] = []
    stage = row = 0
    for stages, queries in stacks:
        blocks = costs[:, row : row + stages * queries].reshape(len(costs), stages, groups, queries // groups)
        table, block_problems = _prepare(blocks, counts)
        table[4] = row + table[0] * queries  # of the stage's first query
        table[0] += stage
        tables.append(table)
        problems += block_problems
        stage, row = stage + stages, row + stages * queries
    _solve(problems, costs)
    for table in tables:
        table[4] += table[2]
    return torch.from_numpy(np.concatenate(tables, axis=1)).to(cost.device, non_blocking=True)


def assign(cost: Costs) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(objects, queries) of the assignment with the lowest cost; cost is [objects, queries].

    Queries with non-finite costs are matched first, so that the loss is not finite either and the training loop reports
    it (`training.step_guard`).
    """
    from scipy.optimize import linear_sum_assignment  # takes half a second, and only losses need it

    finite = np.isfinite(cost).all(axis=0)
    if finite.all():
        rows, columns = linear_sum_assignment(cost)
        return rows, columns
    pairs = min(cost.shape)
    return np.arange(pairs), np.argsort(finite, kind="stable")[:pairs]


def _to_host(parts: Sequence[Tensor]) -> Costs:
    """All rows in one array; pinned memory makes the copy from a GPU two to three times faster."""
    together = torch.cat(list(parts))
    if not together.is_cuda:
        return together.numpy()
    host = torch.empty(together.shape, dtype=together.dtype, pin_memory=True).copy_(together, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    copied.synchronize()
    return host.numpy()


def _prepare(costs: Costs, counts: Sequence[int]) -> tuple[Pairs, list[Problem]]:
    """The pairs of a stack with their stage, image and first query of the group, and the problems that complete them.

    costs [sum n, S, G, Q]; stages are counted from 0.
    """
    _, stages, groups, queries = costs.shape
    per_problem = np.array([min(count, queries) for count in counts])
    per_image = np.tile(per_problem * groups, stages)  # pairs of each stage and image
    pairs = np.zeros((5, int(per_image.sum())), dtype=np.int64)
    pairs[0] = np.repeat(np.repeat(np.arange(stages), len(counts)), per_image)
    pairs[1] = np.repeat(np.tile(np.arange(len(counts)), stages), per_image)
    starts = np.concatenate([[0], np.cumsum(per_image)])
    problems: list[Problem] = []
    first = 0
    for image, count in enumerate(counts):
        size = int(per_problem[image])
        objects = costs[first : first + count]
        first += count
        for stage in range(stages) if size else ():
            at = int(starts[stage * len(counts) + image])
            for group in range(groups):
                here = pairs[:, at + group * size : at + (group + 1) * size]
                here[2] = group * queries
                problems.append((objects[:, stage, group], here))
    return pairs, problems


def _solve(problems: Sequence[Problem], costs: Costs) -> None:
    """Write the matched queries and objects of every problem to their places."""
    from scipy.optimize import linear_sum_assignment

    solver = linear_sum_assignment if np.isfinite(costs).all() else assign

    def solve(part: Sequence[Problem]) -> None:
        for cost, pairs in part:
            objects, queries = solver(cost)
            pairs[3] = objects
            pairs[2] += queries

    threads = min(_MAX_THREADS, _available_cores(), len(problems))
    if threads < 2 or costs.size < _THREADED_WORK:
        solve(problems)
        return
    list(_pool().map(solve, [problems[start::threads] for start in range(threads)]))


def _available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="assignment")
