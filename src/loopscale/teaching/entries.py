"""One `Entry` for every word that can be explained: read from TOML files, the roles, and the table of rules."""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

from loopscale.errors import UserError, closest
from loopscale.findings import FINDINGS as ROWS
from loopscale.parameterization import RULES, Role, Rule
from loopscale.teaching.interfaces import Interface, commands, functions
from loopscale.teaching.symptoms import matching

FIGURES = "papers/residual_scaling/figures"
PREDICTIONS, FINDINGS = "The predictions and what was found", "Findings of a diagnosis"  # titles of pages
RULE_PAGE, GLOSSARY = "The parameterization, with its reasons", "Glossary: our words and other projects'"
DIAGNOSIS, INTERFACE = "Diagnose a looped model", "The interface"
CONFIG = "Keys of a config"


@dataclass(frozen=True)
class Entry:
    """`kind` is prediction, finding, rule, word, role, field (a line of a diagnosis), command, function, key or symptom.

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
    findings: tuple[str, ...] = ()

    def text(self) -> str:
        """Write for a terminal: one labelled line per field."""
        head = f"{self.kind} {self.number}: {self.name}" if self.number else f"{self.kind}: {self.name}"
        rows = (
            ("idea", self.idea),
            ("call" if self.kind in ("command", "function") else "formula", self.formula),
            ("expected", self.expected),
            ("found", self.result),
            (self._label_of_use(), self.use),
            ("symbol", self.symbol),
            ("elsewhere", self.elsewhere),
            ("in JSON", self.json),
            ("findings", ", ".join(self.findings)),
            ("source", self.source),
            ("figure", self.figure and f"{self.figure} (of the repository)"),
            ("page", self.page and f"{self.page} (of the documentation)"),
        )
        said = (f"{label:<13}{value.replace('`', '')}" for label, value in rows if value)
        return "\n".join([f"{head}\n{self.title}\n", *said])

    def _label_of_use(self) -> str:
        if self.kind == "symptom":
            return "run"
        return "if it holds" if (self.result or "").startswith("undecided") else "for you"

    def to_json(self) -> dict[str, Any]:
        """Return all fields, as plain values."""
        return asdict(self)


@cache
def entries() -> tuple[Entry, ...]:
    """List every entry: predictions by number, findings, rules in the order of their table, words, roles, lines of a
    diagnosis, commands, functions, keys of a config, symptoms.

    >>> len([entry for entry in entries() if entry.kind == "prediction"])
    22
    """
    known = (*_predictions(), *_findings(), *map(_rule, RULES.values()), *_words(), *_roles(), *_fields())
    return (*known, *_functions(), *_commands(), *_keys(), *_symptoms())


def explain(word: str) -> Entry:
    """Give the entry for a prediction's number or name, a finding's code, a rule, a word, a command, a function, a key of a
    config; or for a symptom in words.

    Raises `UserError` for an unknown word, with the nearest known one.

    >>> explain("7").name
    'one-step-change'
    >>> explain("prediction 7") == explain("p7") == explain("one-step-change")
    True
    >>> explain("lambda").name, explain("effective_scale").name
    ('strength', 'scale')
    >>> explain("loss gets worse with more loops").name
    'worse-with-more-loops'
    """
    asked = _plain_name(word)
    number = asked.removeprefix("prediction").removeprefix("p").lstrip("-").lstrip("0")
    for entry in entries():
        if asked == _plain_name(entry.name) or (entry.number is not None and number == str(entry.number)):
            return entry
    for entry in entries():
        if asked in entry.also:
            return entry
    if asked.lstrip("-").isdigit():
        raise UserError(f"unknown prediction {word!r}: they are numbered 1 to {len(_predictions())}")
    close = _close(asked)
    symptoms = matching(word, _table("symptoms"))
    if symptoms and (" " in word.strip() or not close):
        return explain(symptoms[0]["name"])
    hint = f"did you mean {' or '.join(map(repr, close[:3]))}? " if close else ""
    raise UserError(f"unknown word {word!r}: {hint}'loopscale explain' lists all words and predictions 1 to 22")


def _plain_name(word: str) -> str:
    return word.strip().lower().removesuffix("()").replace("_", "-").replace(" ", "-")


def _close(asked: str) -> list[str]:
    """Return words that begin with what was asked, else hold it, else are spelt much like it."""
    known = [name for entry in entries() for name in (entry.name, *entry.also) if len(name) > 2]
    longer = [name for name in known if asked in name] if len(asked) > 2 else []
    starts = [name for name in longer if name.startswith(asked)]
    return starts or longer or list(filter(None, [closest(asked, known)]))


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
    return tuple(
        Entry(
            "finding",
            row.code,
            row.title,
            row.cause,
            row.formula,
            row.source,
            use=row.remedy,
            figure=row.paper,
            page=FINDINGS,
        )
        for row in ROWS
    )


def _words() -> tuple[Entry, ...]:
    """Read the glossary; a word that is also a role says so."""
    roles = {role.value: f"as a role: {role.meaning}" for role in Role}
    return tuple(_plain("word", GLOSSARY, roles.get(row["name"], ""), row) for row in _table("words"))


def _roles() -> tuple[Entry, ...]:
    taken = {row["name"] for row in _table("words")}
    rows = ({"name": role.value, "title": role.meaning} for role in Role if role.value not in taken)
    return tuple(_plain("role", GLOSSARY, "", row) for row in rows)


def _fields() -> tuple[Entry, ...]:
    return tuple(_plain("field", DIAGNOSIS, "", row) for row in _table("fields", "words"))


def _commands() -> tuple[Entry, ...]:
    return tuple(_interface("command", f"loopscale {one.name}", one, (_plain_name(one.name),)) for one in commands())


def _functions() -> tuple[Entry, ...]:
    """Return public functions and classes; one that is a command too says so, and is found first by its bare name."""
    both = {one.name for one in commands()}
    made = []
    for one in functions():
        plain = _plain_name(one.name)
        entry = _interface("function", f"ls.{one.name}", one, (plain, f"loopscale.{plain}"))
        also = f"on the command line: loopscale {one.name} --help, or 'loopscale explain loopscale {one.name}'"
        made.append(replace(entry, use=also) if one.name in both else entry)
    return tuple(made)


def _interface(kind: str, name: str, one: Interface, also: tuple[str, ...]) -> Entry:
    page = one.page or INTERFACE
    return Entry(kind, name, one.first, idea=one.rest, formula=one.call, source="", page=page, also=also)


def key_rows() -> list[dict[str, Any]]:
    """Give name, meaning and unit of every key of a training's config."""
    return _table("keys")


def _keys() -> tuple[Entry, ...]:
    """Return keys of a training's config; their defaults are in `loopscale train --keys`."""
    use = "loopscale train --keys lists all with their defaults"
    made = []
    for row in key_rows():
        plain = _plain_name(row["name"].partition(".")[2])
        title = f"{row['title']} ({row['unit']})" if "unit" in row else row["title"]
        made.append(Entry("key", row["name"], title, "", "", "", use=use, page=CONFIG, also=(plain,)))
    return tuple(made)


def _symptoms() -> tuple[Entry, ...]:
    made = []
    for row in _table("symptoms"):
        told = {key: row[key] for key in ("name", "title", "idea", "use", "page")}
        made.append(Entry("symptom", **told, formula="", source="", findings=tuple(row["findings"])))
    return tuple(made)


def _plain(kind: str, page: str, idea: str, row: dict[str, Any]) -> Entry:
    """Make an entry without formula or source: what a word means in this package."""
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
    if not rule.keeps_start:
        return "smaller output projections keep the stream small at initialisation; training undoes that, eps stays"
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
    start = "" if rule.keeps_start else f", output projections start at (2 N L)^-{rule.gain_exponent:g} of their std"
    return f"h <- h + eps f(h), eps = {eps}{start}; {rate}"


def _table(name: str, file: str | None = None) -> list[dict[str, Any]]:
    text = files("loopscale.teaching").joinpath(f"{file or name}.toml").read_text(encoding="utf-8")
    rows: list[dict[str, Any]] = tomllib.loads(text)[name]
    return rows
