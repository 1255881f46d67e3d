"""Tables of a page that stand without a figure: what the rules applied, and where the numbers come from."""

from __future__ import annotations

from typing import Any

from loopscale.records import flat
from loopscale.report.figures import rule_name
from loopscale.report.info import StudyInfo
from loopscale.report.page import Table

_NB = "\N{NO-BREAK SPACE}"


def split(table: Table) -> tuple[Table, Table]:
    """Part a table of what was applied: the values that differ from 1, and the rest to unfold."""
    ones = [row for row in table.rows if row[1 + table.header.index("name")] == "1"]
    caption = f"{len(ones)} more values that are 1"
    return Table(table.header, [row for row in table.rows if row not in ones]), Table(table.header, ones, caption)


def applied(study: StudyInfo) -> Table:
    """Return what each rule set, at every number of loops, and why.

    Rules that set the same for the same reason share a row.
    """
    shared: dict[tuple[str, ...], list[str]] = {}
    for rule, record in study.rules.items():
        by_name: dict[tuple[str, str, str], list[tuple[int, str]]] = {}
        for loops, values in sorted(record.applied.items()):
            for item in values:
                by_name.setdefault((item.name, item.why, item.source), []).append((loops, _value(item.value)))
        for (name, why, source), found in by_name.items():
            shared.setdefault((name, _over_loops(found), why, source), []).append(rule_name(rule))
    every = len(study.rules) if len(study.rules) > 1 else 0
    rows = [("all" if len(rules) == every else ", ".join(rules), *row) for row, rules in shared.items()]
    return Table(("rule", "name", "value", "why", "source"), rows)


def _over_loops(found: list[tuple[int, str]]) -> str:
    """Return one value if it is the same at every number of loops, else each with its loops, unbroken."""
    if len({value for _, value in found}) == 1:
        return found[0][1]
    return ", ".join(f"{value}{_NB}(N{_NB}={_NB}{loops})" for loops, value in found)


def provenance(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Flatten a provenance record to rows of (dotted name, value).

    >>> provenance({"data": {"source": "text"}, "seeds": [0, 1]})
    [('data.source', 'text'), ('seeds', '0, 1')]
    """
    return [(name, _value(value)) for name, value in flat(record).items()]


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    if value is None:
        return "n/a"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
