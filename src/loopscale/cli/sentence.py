"""Sentences on stderr: what a command tells, and whatever it raises as one sentence with the fix."""

from __future__ import annotations

import errno
import os
import re
import sys
import traceback
from contextlib import suppress
from pathlib import Path

import click

from loopscale.errors import LONGEST, UserError, closest, nearest, one_line

_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "DefaultCPUAllocator")
_WORDS = (  # what click says, and in plain words
    ("is not a valid integer( range)?", "is not a whole number"),
    ("is not a valid float( range)?", "is not a number"),
    (r"is not in the range x>=(\S+)", r"is less than \1"),
    (r"is not in the range (\S+)<=x<=(\S+)", r"is not from \1 to \2"),
    (r"is not in the range (\S+)<x<(\S+)", r"is not between \1 and \2"),
)
_PLACES = {
    errno.EACCES: "mend its permissions, or name another place",
    errno.EPERM: "mend its permissions, or name another place",
    errno.EROFS: "name a place that can be written",
    errno.ENAMETOOLONG: "a name has at most 255 bytes: name a shorter one",
    errno.ENOSPC: "free some space, then run the same command again",
    errno.EDQUOT: "free some space, then run the same command again",
    errno.ENOENT: "name one that is there",
    errno.EISDIR: "name a file",
    errno.ENOTDIR: "name a folder",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


def tell(sentence: str, longest: int = 3 * LONGEST) -> None:
    """Print a sentence on stderr, on one line; where that is gone, nothing is said."""
    with suppress(OSError):
        print(f"loopscale: {one_line(sentence, longest)}", file=sys.stderr)


def warn(sentence: str) -> None:
    """Print a warning."""
    tell(f"warning: {sentence}")


def sentence_of(raised: Exception) -> str:
    """Say in one sentence what went wrong and what to do about it."""
    if isinstance(raised, UserError):
        return str(raised)
    if isinstance(raised, click.ClickException):
        return usage_sentence(raised)
    if isinstance(raised, RecursionError):
        return "the input is nested too deeply to be read: mend the file, or give a smaller one"
    if isinstance(raised, MemoryError) or any(word in str(raised) for word in _MEMORY):
        return "there is not enough memory for this: try a smaller model, batch or context, or fewer loops or workers"
    if isinstance(raised, OverflowError) or "set_int_max_str_digits" in str(raised):
        return "a number is too large: give a smaller one"
    if isinstance(raised, OSError):
        return _system_sentence(raised)
    if isinstance(raised, UnicodeError):
        return f"a name or text cannot be written in this encoding ({raised.reason}): use UTF-8 (PYTHONUTF8=1)"  # type: ignore[attr-defined]
    if os.environ.get("LOOPSCALE_TRACEBACK"):
        traceback.print_exception(raised)
    last = traceback.extract_tb(raised.__traceback__)[-1:]
    place = "".join(f" at {Path(frame.filename).name}:{frame.lineno}" for frame in last)
    said = f"{type(raised).__name__}: {raised}" if str(raised) else type(raised).__name__
    return f"this is a mistake of loopscale's, please report it ({said}{place}): LOOPSCALE_TRACEBACK=1 shows more"


def _system_sentence(raised: OSError) -> str:
    reason = raised.strerror or str(raised) or type(raised).__name__
    if raised.filename is None:
        fix = _PLACES.get(raised.errno or 0, "look at the disk and the device that is written to")
        return f"the system refused to write or read ({reason}): {fix}"
    name = os.fsdecode(raised.filename) if isinstance(raised.filename, (str, bytes)) else str(raised.filename)
    return f"cannot use {name} ({reason}): {_PLACES.get(raised.errno or 0, 'name another place')}"


def usage_sentence(mistake: click.ClickException) -> str:
    """Say what was wrong with the command line and where help is; an unknown option names the nearest."""
    context = mistake.ctx if isinstance(mistake, click.UsageError) else None
    if isinstance(mistake, click.NoSuchOption) and context is not None:
        known = [option for parameter in context.command.get_params(context) for option in parameter.opts]
        known = [option for option in known if option.startswith("--")]
        word = mistake.option_name.lstrip("-").upper()
        if any(word == parameter.human_readable_name for parameter in context.command.get_params(context)):
            return f"{word} is an argument of {context.command_path}, not an option: leave {mistake.option_name} out"
        hint = _as_key(mistake.option_name.lstrip("-").replace("-", "_"), known)
        hint = hint or _elsewhere(mistake.option_name, known, context) or nearest(mistake.option_name, known)
        if isinstance(context.command, click.Group):
            hint = f"it takes {', '.join(known)}; others come after a command, such as loopscale scale --loops 3"
        return f"unknown option {mistake.option_name!r} of {context.command_path}: {hint}"
    text = mistake.format_message().strip().rstrip(".")
    text = text[:1].lower() + text[1:]
    for pattern, words in _WORDS:
        text = re.sub(pattern, words, text)
    if "unexpected extra argument" in text and "=" in text:
        return f"{text}: values of the config go behind --set, such as --set train.steps=100"
    if "unexpected extra argument" in text and ".py" in text:
        return f"{text}: a model of yours is named by --model file.py:make_model"
    if "unexpected extra argument" in text and ".toml" in text:
        return f"{text}: it takes no config; --preset and --set model.width=64 change what it trains"
    return f"{text}: see {context.command_path} --help" if context is not None else text


def _elsewhere(option: str, known: list[str], context: click.Context) -> str | None:
    """Name the commands that have an option which this one does not have, and nothing near it either."""
    group = context.find_root().command
    if closest(option, known) or not isinstance(group, click.Group) or context.command is group:
        return None
    having = [
        name
        for name in group.list_commands(context)
        if any(option in parameter.opts for parameter in group.get_command(context, name).params)  # type: ignore[union-attr]
    ]
    words = " and ".join(having)
    return (
        f"{words} {'has' if len(having) == 1 else 'have'} it; here are {', '.join(sorted(known))}" if having else None
    )


def _as_key(word: str, known: list[str]) -> str | None:
    """Say how a key of the config is set by a command that takes it, for an option of that name."""
    from loopscale.cli.options import AXES
    from loopscale.teaching import key_rows

    if "--target" in known and word in AXES:
        return f"write --target {word}=N"
    keys = [row["name"] for row in key_rows() if row["name"].partition(".")[2] == word]
    return f"it is a key of the config, --set {keys[0]}=VALUE" if keys and "--set" in known else None
