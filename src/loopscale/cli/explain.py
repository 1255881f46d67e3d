"""`loopscale explain WORD`: the idea behind a prediction, a finding, a rule or a word. No torch."""

from __future__ import annotations

import json

import click


@click.command()
@click.argument("words", nargs=-1, metavar="[PREDICTION|FINDING|RULE|WORD]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(words: tuple[str, ...], as_json: bool) -> None:
    """Print idea, formula, source and figure of a prediction (1 to 22, or its name), a finding's code or a rule, or what
    a word means: of the glossary, a parameter's role, a line that `diagnose` prints or a field of its JSON.

    Without a word, list what can be explained.
    """
    from loopscale.teaching import explain

    if not words:
        _list(as_json)
        return
    entry = explain(" ".join(words))
    click.echo(json.dumps(entry.to_json(), indent=1) if as_json else entry.text())


def _list(as_json: bool) -> None:
    from loopscale.teaching import entries

    if as_json:
        click.echo(json.dumps([entry.to_json() for entry in entries()], indent=1))
        return
    for entry in entries():
        name = f"{entry.number:>2} {entry.name}" if entry.number else f"   {entry.name}"
        kind, title = entry.kind, entry.title
        if entry.idea.startswith("as a role: "):  # a word that is a role too
            kind, title = f"{kind}, role", f"{title}; {entry.idea}"
        click.echo(f"{kind:<11}{name:<26}{title}")
