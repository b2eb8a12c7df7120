"""Optimal one-to-one assignments of queries and objects, for all images, stages and groups of a step at once.

The costs of real objects travel to the host in one copy, scipy solves the problems (in threads when there is much to
do, since it releases the interpreter's lock), and the matches travel back in another copy.

torch-linear-assignment 0.1.0 could solve them on the GPU, but waits for the device twice per call to check its input,
which is once more than the copy does.

Shape legend: S stages, B batch, G groups, Q queries of a group, M maximum objects per image, n objects of an image, P
matched pairs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

_MAX_THREADS = 8
_THREADED_WORK = 200_000  # entries of all costs together; with fewer, starting threads costs more than it saves

Problem = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]  # cost [n, Q], and where the results belong


def assign_batch(costs: Sequence[Tensor], counts: Sequence[int], groups: int) -> list[Tensor]:
    """For each cost [S, B, G * Q, M], the matches (stage, image, query, object) as [4, P] on its device.

    Matches are ordered by stage, image, group and object. Columns of image b from `counts[b]` on are ignored.
    """
    flat = _to_host([part for cost in costs for part in _real_costs(cost, counts, groups)])
    results, problems, first = [], [], 0
    for cost in costs:
        pairs, stack_problems, first = _prepare(flat, first, cost.shape, counts, groups)
        results.append(pairs)
        problems += stack_problems
    _solve(problems, flat)
    together = torch.from_numpy(np.concatenate(results, axis=1)).to(costs[0].device, non_blocking=True)
    return list(together.split([pairs.shape[1] for pairs in results], dim=1))


def assign(cost: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(objects, queries) of the assignment with the lowest cost; cost is [objects, queries].

    Queries with non-finite costs are matched first, so that the loss is not finite either and the training loop reports
    it (`training.step_guard`).
    """
    finite = np.isfinite(cost).all(axis=0)
    if finite.all():
        rows, columns = linear_sum_assignment(cost)
        return rows, columns
    pairs = min(cost.shape)
    return np.arange(pairs), np.argsort(finite, kind="stable")[:pairs]


def _real_costs(cost: Tensor, counts: Sequence[int], groups: int) -> list[Tensor]:
    """The costs of each image's objects, [S, G, n, Q]: one object per row, as scipy's solver works."""
    split = cost.unflatten(2, (groups, -1)).transpose(3, 4)  # [S, B, G, M, Q]
    return [split[:, image, :, :count] for image, count in enumerate(counts)]


def _to_host(parts: Sequence[Tensor]) -> NDArray[np.float32]:
    """All values in one array; pinned memory makes the copy from a GPU two to three times faster."""
    flat = torch.cat([part.flatten() for part in parts])
    if not flat.is_cuda:
        return flat.numpy()
    host = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True).copy_(flat, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    copied.synchronize()
    return host.numpy()


def _prepare(
    flat: NDArray[np.float32], first: int, shape: Sequence[int], counts: Sequence[int], groups: int
) -> tuple[NDArray[np.int64], list[Problem], int]:
    """The matches of one stack with their stage and image, the problems that fill in the rest, and where it ends."""
    stages, _, all_queries, _ = shape
    queries = all_queries // groups
    per_problem = np.array([min(count, queries) for count in counts])
    per_image = np.tile(per_problem * groups, stages)  # pairs of each stage and image
    pairs = np.empty((4, int(per_image.sum())), dtype=np.int64)
    pairs[0] = np.repeat(np.repeat(np.arange(stages), len(counts)), per_image)
    pairs[1] = np.repeat(np.tile(np.arange(len(counts)), stages), per_image)
    starts = np.concatenate([[0], np.cumsum(per_image)])
    problems: list[Problem] = []
    for image, count in enumerate(counts):
        size = int(per_problem[image])
        blocks = flat[first : first + stages * groups * count * queries].reshape(stages, groups, count, queries)
        first += blocks.size
        for stage in range(stages) if size else ():
            at = int(starts[stage * len(counts) + image])
            for group in range(groups):
                here = pairs[:, at + group * size : at + (group + 1) * size]
                here[2] = group * queries
                problems.append((blocks[stage, group], here[2], here[3]))
    return pairs, problems, first


def _solve(problems: Sequence[Problem], flat: NDArray[np.float32]) -> None:
    """Write the matched queries and objects of every problem to their places."""
    solver = linear_sum_assignment if np.isfinite(flat).all() else assign

    def solve(part: Sequence[Problem]) -> None:
        for cost, query, target in part:
            objects, matched = solver(cost)
            target[:] = objects
            query += matched

    threads = min(_MAX_THREADS, _available_cores(), len(problems))
    if threads < 2 or flat.size < _THREADED_WORK:
        solve(problems)
        return
    list(_pool().map(solve, [problems[start::threads] for start in range(threads)]))


def _available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="assignment")
