"""Walks over a tape's graph: what comes from a node, what a node comes from, and what every way between two passes."""

from __future__ import annotations

from collections.abc import Collection

from loopscale.probe.tape import Node


def descendants(nodes: list[Node], start: int, end: int, avoided: Collection[int] = ()) -> set[int]:
    """Return all nodes in (start, end] that depend on `start` along ways past `avoided`, and `start` itself."""
    reached = {start}
    for index in range(start + 1, min(end, len(nodes) - 1) + 1):
        if index not in avoided and any(parent in reached for parent in nodes[index].parents):
            reached.add(index)
    return reached


def ancestors(nodes: list[Node], end: int, start: int) -> set[int]:
    """Return all nodes in [start, end) that `end` depends on, and `end` itself."""
    reached, stack = {end}, [end]
    while stack:
        for parent in nodes[stack.pop()].parents:
            if parent >= start and parent not in reached:
                reached.add(parent)
                stack.append(parent)
    return reached


def dominators(nodes: list[Node], start: int, end: int) -> list[int]:
    """Return the nodes that every path from `start` to `end` passes, both ends included; empty when there is no path."""
    inside = ancestors(nodes, end, start) & descendants(nodes, start, end)
    if start not in inside:
        return []
    above: dict[int, int] = {start: start}
    for index in sorted(inside - {start}):
        parents = [p for p in dict.fromkeys(nodes[index].parents) if p in inside]
        meet = parents[0]
        for other in parents[1:]:
            a, b = meet, other
            while a != b:
                a, b = (above[a], b) if a > b else (a, above[b])
            meet = a
        above[index] = meet
    path = [end]
    while path[-1] != start:
        path.append(above[path[-1]])
    return path[::-1]
