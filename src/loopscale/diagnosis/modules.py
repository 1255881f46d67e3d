"""Modules by visits: how often each acts and on what, and whose weights or results go their own way."""

from __future__ import annotations

from collections import Counter
from typing import Any

from loopscale.diagnosis.loops import FoundLoop
from loopscale.probe.batch import first_float
from loopscale.probe.tape import Key, Node, Tape
from loopscale.probe.walks import ancestors


def table(tape: Tape, output: Any, loop: FoundLoop | None, without: tuple[str, ...]) -> list[dict[str, Any]]:
    """Give a row for each module with parameters, in the order of their first call.

    `visits`: calls in one pass; `on`: what it reads (the batch, the stream, a constant); `private`: matrices within the
    loop that some visits do without; `no_gradient`: of those `without`; `unused`: the output depends on none of its
    results.
    """
    value = first_float(output)
    end = None if value is None else tape.node_of(value)
    read = set(range(len(tape.nodes))) if end is None else ancestors(tape.nodes, end, 0)
    looped, span = (set(loop.uses), loop.span) if loop else (set[Key](), (0, -1))
    rows: dict[str, dict[str, Any]] = {}
    calls: dict[str, Counter[Key]] = {}
    apart: dict[str, set[Key]] = {}
    for index, node in enumerate(tape.nodes):
        for name, key in sorted((tape.names[key][0], key) for key in node.params if key in tape.names):
            module = name.rpartition(".")[0] or name
            made = {"module": module, "visits": 0, "on": "", "private": False, "no_gradient": False, "unused": True}
            row = rows.setdefault(module, made)
            calls.setdefault(module, Counter())[key] += _reads(tape, node, key)
            row["on"] = max(row["on"], _on(tape, node), key=_ORDER.index)
            if span[0] <= index <= span[1] and key not in looped and len(key[2]) >= 2 and node.data:
                apart.setdefault(module, set()).add(key)
            row["no_gradient"] = row["no_gradient"] or name in without
            row["unused"] = row["unused"] and index not in read
    for module, keys in apart.items():  # a weight of every visit is shared, also where none of its results is handed on
        rows[module]["private"] = any(calls[module][key] < (loop.visits if loop else 1) for key in keys)
    return [{**row, "visits": max(calls[module].values())} for module, row in rows.items()]


_ORDER = ("", "a constant", "the batch", "the stream")


def _reads(tape: Tape, node: Node, key: Key) -> bool:
    """Whether this call reads the parameter with data, or makes something of it that no call had made before."""
    return node.data or not any(key in tape.nodes[p].params for p in node.parents)


def _on(tape: Tape, node: Node) -> str:
    if not node.data:
        return "a constant"
    return "the batch" if any(tape.nodes[p].op == "input" for p in node.parents) else "the stream"


def remarks(row: dict[str, Any]) -> list[str]:
    """Spell what is remarkable about a module."""
    said = {
        "private": "some visits do without its weights",
        "no_gradient": "no gradient arrives",
        "unused": "its result is not used",
    }
    return [text for name, text in said.items() if row.get(name)]
