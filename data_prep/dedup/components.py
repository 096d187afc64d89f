"""Finds connected components of a graph of edges: each node gets the smallest node that it is connected to.

Up to `MEMORY_EDGES` edges are worked on at once; more by rounds of large-star and small-star over the shuffle (Kiveris
et al. 2014, "Connected Components in MapReduce and Beyond"), which end after about log2(nodes)**2 rounds at worst and
few in practice. Both give the same.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from data_prep.dedup.pairs import distinct
from data_prep.dedup.shuffle import Exchange, Records, hash_ranges, starts_of_runs
from data_prep.text.hashing import mix
from data_prep.workers.stage import Run

MEMORY_EDGES = 4_000_000


def smallest_members(edges: Records) -> Records:
    """(node, smallest node of its component), sorted, for all nodes but the smallest ones themselves.

    Args:
        edges: (n, 2) in any order and direction.
    """
    nodes, flat = np.unique(edges, return_inverse=True)
    ends = flat.reshape(-1, 2)
    labels = np.arange(len(nodes))
    while True:
        # Hang the root of each edge's larger side below the smaller root, then let everybody point to a root.
        left, right = labels[ends[:, 0]], labels[ends[:, 1]]
        apart = left != right
        if not apart.any():
            break
        np.minimum.at(labels, np.maximum(left, right)[apart], np.minimum(left, right)[apart])
        while not np.array_equal(labels, labels[labels]):
            labels = labels[labels]
    hung = labels != np.arange(len(nodes))
    return np.stack([nodes[hung], nodes[labels[hung]]], axis=1)


# ----------------------------------------------------------------------------------------------------------- in rounds
@dataclass(frozen=True)
class StarTask:
    """One range of nodes in one round."""

    edges: Exchange
    result: Exchange
    index: int
    low: int
    high: int
    bytes: float
    large: bool

    @property
    def name(self) -> str:
        """Name of the unit."""
        return f"{self.result.label}.{self.index:06d}"


def keyed_for(edges: Records, large: bool) -> Records:
    """(hash of u, u, v): what each node sees of its edges; small-star needs those to smaller nodes alone."""
    smaller, larger = edges.min(axis=1), edges.max(axis=1)
    seen = np.stack([larger, smaller], axis=1)
    if large:
        seen = np.concatenate([seen, seen[:, ::-1]])
    return np.concatenate([mix(seen[:, :1]), seen], axis=1)


def star(records: Records, large: bool) -> Records:
    """New edges from all that the nodes of a range see: (hash of u, u, v) sorted.

    Large-star joins the larger neighbours, small-star the others and the node itself, to the smallest neighbour or the
    node itself, whichever is smaller.
    """
    if not len(records):
        return np.zeros((0, 2), np.uint64)
    owner, neighbour = records[:, 1], records[:, 2]
    starts = starts_of_runs(owner)
    sizes = np.diff([*starts, len(owner)])
    smallest = np.repeat(np.minimum(neighbour[starts], owner[starts]), sizes)
    if large:
        chosen = neighbour > owner
        return distinct(np.stack([smallest[chosen], neighbour[chosen]], axis=1))
    others = neighbour != smallest
    own = np.stack([smallest[starts], owner[starts]], axis=1)
    return distinct(np.concatenate([own, np.stack([smallest[others], neighbour[others]], axis=1)]))


def make_star(task: StarTask) -> None:
    """One range of one round: its edges become those of the next round; counts them with a digest to see changes."""
    result = star(task.edges.read(task.low, task.high), task.large)
    with np.errstate(over="ignore"):
        digest = int(mix(mix(result[:, 0]) + result[:, 1]).sum(dtype=np.uint64)) if len(result) else 0
    task.result.put(task.index, keyed_for(result, not task.large))
    task.edges.stage.commit(task.name, {"edges": len(result), "digest": digest})


def components_in_rounds(edges: Exchange, records: int, run: Run, total: float) -> tuple[Exchange, int]:
    """Rounds of large-star and small-star until both change nothing.

    Args:
        edges: merged records of `keyed_for(edges, large=True)`.
        records: how many there are.
        run: runs the rounds' units.
        total: bytes of text behind all records, for the progress bar.

    Returns:
        merged records (hash of node, node, smallest node), and how many; nodes that are smallest are not among them.
    """
    stage, states = edges.stage, [(-1, -1), (-2, -2)]
    for step in itertools.count():
        large = step % 2 == 0
        ranges = hash_ranges(records)
        result = Exchange(stage, f"star{step:03d}", 3, len(ranges))
        size = total / len(ranges)
        tasks = [StarTask(edges, result, index, low, high, size, large) for index, (low, high) in enumerate(ranges)]
        run("near: components", make_star, tasks)
        done = [stage.unit(task.name) or {} for task in tasks]
        states.append((sum(unit["edges"] for unit in done), sum(unit["digest"] for unit in done) % 2**64))
        records = result.merge(run, total)
        edges.discard()
        edges = result
        # A large-star alone may leave a node with two smaller neighbours as it is; the small-star before it would not.
        if large and states[-1] == states[-2] == states[-3]:
            break
    return edges, records
