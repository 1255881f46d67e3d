"""A click group that imports a command when it is called, so that `loopscale scale` never waits for torch."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click

from loopscale.errors import UserError, nearest


class StrictGroup(click.Group):
    """Refuses an option that is given twice: the last would win unseen."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; raises `UserError` for an option with a value that is given twice."""
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None:
            context = click.Context(command, info_name=name, parent=ctx, **command.context_settings)
            _, _, order = command.make_parser(context).parse_args(list(rest))
            for one in order:
                if isinstance(one, click.Option) and not (one.multiple or one.is_flag) and order.count(one) > 1:
                    raise UserError(f"{one.opts[0]} is given twice: give it once (several values have commas between)")
        return name, command, rest


class LazyGroup(StrictGroup):
    """Knows its commands by place, "module:attribute"."""

    def __init__(self, *args: Any, places: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.places = places

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Give the commands in the order of the table."""
        return list(self.places)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command; raise `UserError` that names the nearest for one that there is not."""
        if cmd_name not in self.places:
            if cmd_name.startswith("-"):
                return None
            raise UserError(f"unknown command {cmd_name!r}: {nearest(cmd_name, self.places)}")
        module, _, attribute = self.places[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command
