"""The command line: `loopscale COMMAND`. Every mistake ends in one sentence on stderr and exit code 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress

import click

import loopscale
from loopscale.cli.lazy import LazyGroup
from loopscale.cli.sentence import sentence_of, tell
from loopscale.errors import LONGEST

COMMANDS = {
    "scale": "loopscale.cli.scale:command",
    "transfer": "loopscale.cli.transfer:command",
    "data": "loopscale.cli.data:command",
    "exponent": "loopscale.cli.exponent:command",
    "plan": "loopscale.cli.plan:command",
    "tune": "loopscale.cli.tune:command",
    "verify": "loopscale.cli.verify:command",
    "train": "loopscale.cli.train:command",
    "generate": "loopscale.cli.trained:generate",
    "export": "loopscale.cli.trained:export",
    "evaluate": "loopscale.cli.trained:evaluate",
    "track": "loopscale.cli.trained:track",
    "diagnose": "loopscale.cli.diagnose:command",
    "report": "loopscale.cli.report:command",
    "convert": "loopscale.cli.convert:command",
    "explain": "loopscale.cli.explain:command",
}

CTRL_C = 130


@click.group(
    cls=LazyGroup,
    places=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 the answer is no (see the command), 2 a mistake to mend, 130 Ctrl-C, 143 SIGTERM.",
)
@click.version_option(version=loopscale.__version__, message="loopscale %(version)s")
def group() -> None:
    """Tune a looped Transformer once, at few loops, and train it at any number of loops."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code: 0, 1 (the answer is no), 2 (a mistake), 130 or 143 (a signal).

    A command is a click command that returns its exit code or None for 0, and raises `UserError` for a mistake. Whatever
    else it raises becomes one sentence too; LOOPSCALE_TRACEBACK=1 shows the traceback of what nobody foresaw.
    """
    try:
        result = group.main(args=argv, prog_name="loopscale", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as shown:
        click.echo(shown.format_message(), err=True)
        return 2
    except (KeyboardInterrupt, click.Abort):
        tell("stopped by Ctrl-C")
        return CTRL_C
    except BrokenPipeError:
        _forget_stdout()  # the reader went away (`| head`); Python would complain again at exit
        return 0
    except Exception as raised:
        if isinstance(raised, OSError) and raised.filename is None:
            _forget_stdout()
        tell(sentence_of(raised), LONGEST)
        return 2


def entry() -> None:
    """Run the command line and end the process with its exit code."""
    sys.exit(main())


def _forget_stdout() -> None:
    with suppress(OSError, ValueError):  # under a test stdout has no number
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
