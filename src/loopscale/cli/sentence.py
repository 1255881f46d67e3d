"""click's complaints as one sentence with the fix."""

from __future__ import annotations

import click

from loopscale.errors import nearest


def usage_sentence(mistake: click.ClickException) -> str:
    """Say what was wrong with the command line and where help is; an unknown option names the nearest."""
    context = mistake.ctx if isinstance(mistake, click.UsageError) else None
    if isinstance(mistake, click.NoSuchOption) and context is not None:
        known = [option for parameter in context.command.get_params(context) for option in parameter.opts]
        known = [option for option in known if option.startswith("--")]
        hint = nearest(mistake.option_name, known)
        if isinstance(context.command, click.Group):
            hint = f"it takes {', '.join(known)}; others come after a command, such as loopscale scale --loops 3"
        return f"unknown option {mistake.option_name!r} of {context.command_path}: {hint}"
    text = mistake.format_message().strip().rstrip(".")
    text = text[:1].lower() + text[1:]
    return f"{text}: see {context.command_path} --help" if context is not None else text
