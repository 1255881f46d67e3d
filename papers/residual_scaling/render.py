"""From records to text: the README's table, the figures, and the one-sentence results that `loopscale explain` prints."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from loopscale.atomic import write_json
from loopscale.teaching import entries

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RECORDS = ROOT / "records" / "paper"
VERDICTS = ROOT / "src" / "loopscale" / "teaching" / "verdicts.json"


def records() -> dict[int, dict[str, Any]]:
    """All records there are, by number."""
    return {int(path.stem): json.loads(path.read_text()) for path in sorted(RECORDS.glob("[0-9][0-9].json"))}


def number(measured: dict[str, Any]) -> str:
    """Value, interval and n of one measurement."""
    low, high = measured["interval"]
    digits = 3 if max(abs(low), abs(high)) < 100 else 0
    return f"{measured['value']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}], n = {measured['n']}"


def result(record: dict[str, Any]) -> str:
    """Verdict and the numbers it rests on, in one sentence."""
    numbers = "; ".join(f"{m['what']}: {number(m)}" for m in record["measured"])
    return f"{record['verdict']}: {numbers} (value [95 % interval])"


def table(found: dict[int, dict[str, Any]]) -> str:
    """One row a prediction, those without a record with the command that makes it."""
    lines = [
        "| # | claim | expected | verdict | numbers: value [95 % interval], n | what it means for you |",
        "|" + "---|" * 6,
    ]
    for entry in entries():
        if entry.number is None:
            continue
        record = found.get(entry.number)
        if record is None:
            verdict, numbers = "not run", f"`python papers/residual_scaling {entry.number}` makes the record"
        else:
            verdict = f"**{record['verdict']}**"
            numbers = "<br>".join(f"{m['what']}: {number(m)}" for m in record["measured"])
        cells = [str(entry.number), entry.title, entry.expected or "", verdict, numbers, entry.use or ""]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def counted(found: dict[int, dict[str, Any]]) -> str:
    """How many of each verdict."""
    verdicts = [record["verdict"] for record in found.values()]
    said = [f"{verdicts.count(kind)} {kind}" for kind in ("confirmed", "refuted", "undecided") if kind in verdicts]
    missing = sum(entry.number is not None for entry in entries()) - len(found)
    return ", ".join(said) + (f", {missing} not run" if missing else "")


def figures(found: dict[int, dict[str, Any]]) -> str:
    """The figures with their settings."""
    parts = []
    for key, record in found.items():
        note = f" {record['note']}" if record["note"] else ""
        parts.append(
            f"### {key}. {record['claim']}\n\n![{record['claim']}](figures/{key:02d}.svg)\n\n"
            f"`{record['command']}`: {record['setting']}.{note} {record['provenance']['seconds']:.0f} s."
        )
    return "\n\n".join(parts)


def rendered(text: str) -> str:
    """The README with its marked blocks drawn anew."""
    found = records()
    blocks = {"count": counted(found), "table": table(found), "figures": figures(found)}
    for name, block in blocks.items():
        pattern = rf"(<!-- paper:{name} -->\n).*?(<!-- /paper:{name} -->)"
        text, count = re.subn(pattern, lambda m, b=block: m.group(1) + b + "\n" + m.group(2), text, flags=re.S)
        if count != 1:
            raise SystemExit(f"papers/residual_scaling/README.md has no block 'paper:{name}'")
    return text


def verdicts() -> dict[str, str]:
    """What `loopscale explain` says was found."""
    return {str(key): result(record) for key, record in records().items()}


def write() -> None:
    """Write all that follows from the records."""
    from draw import draw

    readme = HERE / "README.md"
    readme.write_text(rendered(readme.read_text()))
    write_json(VERDICTS, verdicts())
    for key, record in records().items():
        draw(record, HERE / "figures" / f"{key:02d}.svg")


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    write()
