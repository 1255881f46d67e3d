"""From records to text: the README's table, the figures, and the one-sentence results that `loopscale explain` prints."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import plan

from loopscale.files import write_json
from loopscale.findings import FINDINGS
from loopscale.parameterization import Role
from loopscale.teaching import Entry, entries

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RECORDS = ROOT / "records" / "paper"
VERDICTS = ROOT / "src" / "loopscale" / "teaching" / "verdicts.json"


def records() -> dict[int, dict[str, Any]]:
    """All records there are, by number."""
    return {int(path.stem): json.loads(path.read_text()) for path in sorted(RECORDS.glob("[0-9][0-9].json"))}


def number(measured: dict[str, Any]) -> str:
    """Value, interval and n of one measurement."""
    return f"{value(measured)}, n = {measured['n']}"


def value(measured: dict[str, Any]) -> str:
    """Value and interval."""
    low, high = measured["interval"]
    digits = 3 if max(abs(low), abs(high)) < 100 else 0
    return f"{measured['value']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def limits(measured: dict[str, Any]) -> str:
    """Within what the interval must lie for the prediction to hold; an end that is None is open."""
    low, high = measured["limits"]
    if low is None or high is None:
        return f"at most {high:.3g}" if low is None else f"at least {low:.3g}"
    return f"{low:.3g} to {high:.3g}" if low < high else f"{low:g} exactly"


def result(record: dict[str, Any]) -> str:
    """Verdict and the numbers it rests on, in one sentence."""
    numbers = "; ".join(f"{m['what']}: {number(m)}" for m in record["measured"])
    return f"{record['verdict']}: {numbers} (value [95 % interval])"


def table(found: dict[int, dict[str, Any]]) -> str:
    """One row a prediction, those without a record with the command that makes it."""
    lines = [
        "| # | claim | expected | verdict | numbers: value [95 % interval], n; limit set beforehand "
        "| what it means for you |",
        "|" + "---|" * 6,
    ]
    for entry in _predictions():
        record = found.get(entry.number or 0)
        if record is None:
            verdict, numbers = "not run", f"`python papers/residual_scaling {entry.number}` makes the record"
        else:
            verdict = f"**{record['verdict']}**"
            numbers = "<br>".join(f"{m['what']}: {number(m)}; limit {limits(m)}" for m in record["measured"])
        cells = [str(entry.number), entry.title, entry.expected or "", verdict, numbers, _use(entry, record)]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def overview(found: dict[int, dict[str, Any]]) -> str:
    """One short row a prediction, linked to its numbers."""
    lines = ["| # | claim | verdict | what it means for you |", "|---|---|---|---|"]
    for entry in _predictions():
        record = found.get(entry.number or 0)
        verdict = f"[{record['verdict'] if record else 'not run'}](#prediction-{entry.number})"
        lines.append(f"| {entry.number} | {entry.title} | {verdict} | {_use(entry, record)} |")
    return "\n".join(lines)


def numbers(found: dict[int, dict[str, Any]]) -> str:
    """Of every prediction what was expected, each number beside its limit, and the figure."""
    parts = []
    for entry in _predictions():
        head = f"(prediction-{entry.number})=\n### {entry.number}. {entry.title}\n\n"
        record = found.get(entry.number or 0)
        if record is None:
            parts.append(f"{head}Not run: `python papers/residual_scaling {entry.number}` makes the record.")
            continue
        rows = [f"| {m['what']} | {value(m)} | {m['n']} | {limits(m)} |" for m in record["measured"]]
        parts.append(
            f"{head}Expected: {entry.expected}. Found: **{record['verdict']}**.\n\n"
            "| measured | value [95 % interval] | n | limit set beforehand |\n|---|---|---|---|\n"
            + "\n".join(rows)
            + f"\n\n![{record['claim']}](../../papers/residual_scaling/figures/{entry.number:02d}.svg)\n\n"
            + " ".join(filter(None, [f"{record['setting'][:1].upper()}{record['setting'][1:]}.", record["note"]]))
        )
    return "\n\n".join(parts)


def _predictions() -> list[Entry]:
    return [entry for entry in entries() if entry.number is not None]


def _use(entry: Entry, record: dict[str, Any] | None) -> str:
    use = entry.use or ""
    return f"if it holds: {use}" if record and record["verdict"] == "undecided" else use


def counted(found: dict[int, dict[str, Any]]) -> str:
    """How many of each verdict."""
    verdicts = [record["verdict"] for record in found.values()]
    said = [f"{verdicts.count(kind)} {kind}" for kind in ("confirmed", "refuted", "undecided") if kind in verdicts]
    missing = len(_predictions()) - len(found)
    return ", ".join(said) + (f", {missing} not run" if missing else "")


def figures(found: dict[int, dict[str, Any]]) -> str:
    """The figures with their settings."""
    parts = []
    for key, record in found.items():
        note = f" {record['note']}" if record["note"] else ""
        parts.append(
            f"### {key}. {record['claim']}\n\n![{record['claim']}](figures/{key:02d}.svg)\n\n"
            f"`{record['command']}`: {record['setting']}.{note} {processor_seconds(record):.0f} s."
        )
    return "\n\n".join(parts)


def findings() -> str:
    """Every finding of the diagnosis, explained."""
    told = sorted((entry for entry in entries() if entry.kind == "finding"), key=lambda entry: entry.name)
    return "\n\n".join(
        f"## {entry.name}\n\n{entry.title} {_sentence(entry.idea)}\n\n- Formula: `{entry.formula}`\n"
        f"- What to do: {entry.use}\n- Source: {entry.source}"
        for entry in told
    )


def codes() -> str:
    """The table of a diagnosis's findings, from its rows."""
    lines = ["| code | severity | likely cause | what to try |", "|---|---|---|---|"]
    for row in sorted(FINDINGS, key=lambda row: row.code):
        lines.append(f"| `{row.code}` | {row.severity} | {row.cause} | {row.remedy} |")
    return "\n".join(lines)


def words() -> str:
    """The glossary's table."""
    lines = ["| here | symbol | meaning | elsewhere |", "|---|---|---|---|"]
    for entry in entries():
        if entry.kind == "word":
            cells = (
                entry.shown or entry.name.replace("-", " "),
                entry.symbol or "",
                entry.title,
                entry.elsewhere or "",
            )
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def roles() -> str:
    """What a parameter can be for the rule."""
    return "\n".join(["| role | what |", "|---|---|", *(f"| `{r.value}` | {r.meaning} |" for r in Role)])


def fields() -> str:
    """What a diagnosis measures: printed line, names in its JSON, meaning."""
    lines = ["| printed line | in JSON | what |", "|---|---|---|"]
    told = (entry for entry in entries() if entry.kind == "field")
    lines += [f"| {entry.shown or f'`{entry.name}`'} | {entry.json} | {entry.title} |" for entry in told]
    return "\n".join(lines)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def extra(name: str) -> str:
    """The text of a study beyond the predictions, or the command that makes its record."""
    path = RECORDS / f"{name}.json"
    if not path.exists():
        return f"Not run yet: `python papers/residual_scaling {name}` makes the record."
    record = json.loads(path.read_text())
    rows = record["table"]
    head = "| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0])
    body = "\n".join("| " + " | ".join(row.values()) + " |" for row in rows)
    origin = record["provenance"]
    return (
        f"{record['sentence']}\n\n{head}\n{body}\n\n({record['setting']}; `{record['command']}`, "
        f"{processor_seconds(record) / 60:.0f} minutes of processor time, torch {origin['torch']}, {origin['hardware']}, "
        f"{origin['date'][:10]})"
    )


def time_taken() -> str:
    """How long the studies took, together and the longest; those that run only by name apart."""
    from studies import LONG

    minutes = {path.stem: processor_seconds(json.loads(path.read_text())) / 60 for path in RECORDS.glob("*.json")}
    usual = {name: took for name, took in minutes.items() if name not in LONG}
    longest = max(usual, key=lambda name: usual[name])
    apart = ", ".join(f"`{name}` {minutes[name]:.0f}" for name in LONG if name in minutes)
    whole = json.loads((ROOT / "records" / "paper_run.json").read_text())["seconds"] / 60
    return (
        f"{whole:.0f} minutes from a fresh clone on two cores: {sum(usual.values()):.0f} minutes of processor time, the "
        f"longest (`{longest}`) {usual[longest]:.0f}. Of the long comparisons: {apart}."
    )


def processor_seconds(record: dict[str, Any]) -> float:
    """What a study took of all cores together; the oldest records ran on one and hold the seconds of the clock."""
    origin = record["provenance"]
    return float(origin.get("processor_seconds", origin.get("seconds", 0.0)))


EXTRA = ("limits", "rules", "layers", "layers-again", "width", "eight", "untied")


def blocks() -> dict[str, str]:
    """Every block that is rendered, by the name between its markers."""
    found = records()
    return {
        "count": counted(found),
        "table": table(found),
        "overview": overview(found),
        "numbers": numbers(found),
        "figures": figures(found),
        "findings": findings(),
        "codes": codes(),
        "words": words(),
        "roles": roles(),
        "fields": fields(),
        "plan": plan.table(),
        "time": time_taken(),
        **{name: extra(name) for name in EXTRA},
        **{f"result{number}": result(record) for number, record in found.items()},
    }


def rendered(text: str) -> str:
    """The text with its marked blocks drawn anew."""
    made = blocks()

    def anew(match: re.Match[str]) -> str:
        if match[1] not in made:
            raise SystemExit(f"there is no block 'paper:{match[1]}': known are {', '.join(made)}")
        return f"<!-- paper:{match[1]} -->\n{made[match[1]]}\n<!-- /paper:{match[1]} -->"

    return re.sub(r"<!-- paper:([\w-]+) -->\n.*?<!-- /paper:\1 -->", anew, text, flags=re.S)


def documents() -> list[Path]:
    """The documents with marked blocks."""
    fixed = [ROOT / "README.md", HERE / "README.md", HERE / "configs" / "README.md"]
    pages = [*fixed, *sorted((ROOT / "docs").glob("**/*.md"))]
    return [page for page in pages if "<!-- paper:" in page.read_text()]


def verdicts() -> dict[str, str]:
    """What `loopscale explain` says was found."""
    return {str(key): result(record) for key, record in records().items()}


def write() -> None:
    """Write all that follows from the records."""
    from draw import draw

    for page in documents():
        page.write_text(rendered(page.read_text()))
    write_json(VERDICTS, verdicts())
    for key, record in records().items():
        draw(record, HERE / "figures" / f"{key:02d}.svg")


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    write()
