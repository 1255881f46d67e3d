"""One `Entry` for every word that can be explained: read from TOML files, the roles, and the table of rules."""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any

from loopscale.errors import UserError
from loopscale.parameterization import RULES, Role, Rule

FIGURES = "papers/residual_scaling/figures"
PREDICTIONS, FINDINGS = "The predictions and what was found", "Findings of a diagnosis"  # titles of pages
RULE_PAGE, GLOSSARY = "The parameterization, with its reasons", "Glossary: our words and other projects'"
DIAGNOSIS = "Diagnose a looped model"


@dataclass(frozen=True)
class Entry:
    """`kind` is prediction, finding, rule, word, role or field (a line of a diagnosis).

    `figure` is a path in the repository, None where there is none; `page` the title of a page of the documentation.
    `result` is what `make paper` found for a prediction, one sentence; None before it ran. `also` are other spellings.
    """

    kind: str
    name: str
    title: str
    idea: str
    formula: str
    source: str
    number: int | None = None
    expected: str | None = None
    use: str | None = None
    figure: str | None = None
    page: str | None = None
    result: str | None = None
    symbol: str | None = None
    elsewhere: str | None = None
    json: str | None = None
    also: tuple[str, ...] = ()
    shown: str | None = None

    def text(self) -> str:
        """For a terminal: one labelled line a field."""
        head = f"{self.kind} {self.number}: {self.name}" if self.number else f"{self.kind}: {self.name}"
        rows = (
            ("idea", self.idea),
            ("formula", self.formula),
            ("expected", self.expected),
            ("found", self.result),
            ("if it holds" if (self.result or "").startswith("undecided") else "for you", self.use),
            ("symbol", self.symbol),
            ("elsewhere", self.elsewhere),
            ("in JSON", self.json),
            ("source", self.source),
            ("figure", self.figure and f"{self.figure} (of the repository)"),
            ("page", self.page and f"{self.page} (of the documentation)"),
        )
        said = (f"{label:<13}{value.replace('`', '')}" for label, value in rows if value)
        return "\n".join([f"{head}\n{self.title}\n", *said])

    def to_json(self) -> dict[str, Any]:
        """All fields, as plain values."""
        return asdict(self)


@cache
def entries() -> tuple[Entry, ...]:
    """Every entry: predictions by number, findings, rules in the order of their table, words, roles, lines of a diagnosis.

    >>> len([entry for entry in entries() if entry.kind == "prediction"])
    22
    """
    return (*_predictions(), *_findings(), *map(_rule, RULES.values()), *_words(), *_roles(), *_fields())


def explain(word: str) -> Entry:
    """The entry for a prediction's number or name, a finding's code, a rule, a word of the glossary, a role, or a line or
    field of a diagnosis.

    Raises `UserError` for an unknown word, with the nearest known one.

    >>> explain("7").name
    'one-step-change'
    >>> explain("prediction 7") == explain("p7") == explain("one-step-change")
    True
    >>> explain("lambda").name, explain("effective_scale").name
    ('strength', 'scale')
    """
    asked = word.strip().lower().replace("_", "-").replace(" ", "-")
    number = asked.removeprefix("prediction").removeprefix("p").lstrip("-").lstrip("0")
    for entry in entries():
        if asked == entry.name.replace("_", "-") or (entry.number is not None and number == str(entry.number)):
            return entry
    for entry in entries():
        if asked in entry.also:
            return entry
    if asked.lstrip("-").isdecimal():
        raise UserError(f"unknown prediction {word!r}: they are numbered 1 to {len(_predictions())}")
    close = _close(asked)
    hint = f"did you mean {' or '.join(map(repr, close[:3]))}? " if close else ""
    raise UserError(f"unknown word {word!r}: {hint}'loopscale explain' lists all words and predictions 1 to 22")


def _close(asked: str) -> list[str]:
    """Words that begin with what was asked, else hold it, else are spelt much like it."""
    known = [name for entry in entries() for name in (entry.name, *entry.also) if len(name) > 2]
    longer = [name for name in known if asked in name] if len(asked) > 2 else []
    starts = [name for name in longer if name.startswith(asked)]
    return starts or longer or get_close_matches(asked, known, n=1, cutoff=0.5)


@cache
def _predictions() -> tuple[Entry, ...]:
    found = json.loads(files("loopscale.teaching").joinpath("verdicts.json").read_text(encoding="utf-8"))
    return tuple(
        Entry(
            kind="prediction",
            **row,
            figure=f"{FIGURES}/{row['number']:02d}.svg",
            page=PREDICTIONS,
            result=found.get(str(row["number"])),
        )
        for row in _table("predictions")
    )


def _findings() -> tuple[Entry, ...]:
    return tuple(Entry(kind="finding", page=FINDINGS, **row) for row in _table("findings"))


def _words() -> tuple[Entry, ...]:
    """The glossary; a word that is also a role says so."""
    roles = {role.value: f"as a role: {role.meaning}" for role in Role}
    return tuple(_plain("word", GLOSSARY, roles.get(row["name"], ""), row) for row in _table("words"))


def _roles() -> tuple[Entry, ...]:
    taken = {row["name"] for row in _table("words")}
    rows = ({"name": role.value, "title": role.meaning} for role in Role if role.value not in taken)
    return tuple(_plain("role", GLOSSARY, "", row) for row in rows)


def _fields() -> tuple[Entry, ...]:
    return tuple(_plain("field", DIAGNOSIS, "", row) for row in _table("fields", "words"))


def _plain(kind: str, page: str, idea: str, row: dict[str, Any]) -> Entry:
    """An entry without formula or source: what a word means in this package."""
    also = {"also": tuple(row.get("also", ()))}
    return Entry(kind=kind, page=page, idea=idea, formula="", source="", **{**row, **also})


def _rule(rule: Rule) -> Entry:
    return Entry(
        kind="rule",
        name=rule.name,
        title=rule.summary,
        idea=_idea(rule),
        formula=_formula(rule),
        source=rule.source,
        use="loopscale scale --loops 8 --layers 4 --rule " + rule.name,
        figure="docs/transfer.svg" if rule.name in ("looped", "none") else None,
        page=RULE_PAGE,
    )


def _idea(rule: Rule) -> str:
    if rule.norm == "post":
        return "the norm after the addition bounds the stream; skip and initial gain bound what one update changes"
    loops = {
        1.0: "visits of a shared layer add up in one direction, so each gets 1/N",
        0.5: "counts visits as if they were independent, so each gets 1/sqrt(N)",
        0.0: "loops are not taken into account",
    }
    layers = {1.0: "layers get 1/m_L", 0.5: "distinct layers add up at random: 1/sqrt(m_L)", 0.0: "nor are layers"}
    said = [
        loops.get(rule.loops_exponent, f"each visit gets N^-{rule.loops_exponent:g}"),
        layers.get(rule.layers_exponent, f"each layer gets m_L^-{rule.layers_exponent:g}"),
    ]
    return "; ".join(said)


def _formula(rule: Rule) -> str:
    if rule.norm == "post":
        a, b = rule.skip_exponent, rule.gain_exponent
        return f"h <- norm(alpha h + f(h)), alpha = (2 N L)^{a:g}, initial gain (8 N L)^-{b:g}"
    a, b = rule.loops_exponent, rule.layers_exponent
    eps = " ".join(["lambda", *(f"{name}^-{power:g}" for name, power in (("N", a), ("m_L", b)) if power)])
    rate = "must be tuned again at every N" if a < 1 else f"hidden rate (Adam) m_L^{b - 1:g}, no N"
    if rule.rate_loops_exponent:
        rate = f"hidden rate (Adam) m_L^{b - 1:g} N^-{rule.rate_loops_exponent:g}"
    return f"h <- h + eps f(h), eps = {eps}; {rate}"


def _table(name: str, file: str | None = None) -> list[dict[str, Any]]:
    text = files("loopscale.teaching").joinpath(f"{file or name}.toml").read_text(encoding="utf-8")
    rows: list[dict[str, Any]] = tomllib.loads(text)[name]
    return rows
