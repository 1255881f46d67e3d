"""The command line: `loopscale COMMAND`. Every mistake ends in one sentence on stderr and exit code 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

import loopscale
from loopscale.cli.lazy import LazyGroup
from loopscale.cli.sentence import usage_sentence
from loopscale.errors import UserError

COMMANDS = {
    "scale": "loopscale.cli.scale:command",
    "transfer": "loopscale.cli.transfer:command",
    "data": "loopscale.cli.data:command",
    "plan": "loopscale.cli.plan:command",
    "tune": "loopscale.cli.tune:command",
    "verify": "loopscale.cli.verify:command",
    "train": "loopscale.cli.train:command",
    "generate": "loopscale.cli.generate:command",
    "export": "loopscale.cli.export:command",
    "evaluate": "loopscale.cli.evaluate:command",
    "track": "loopscale.cli.track:command",
    "diagnose": "loopscale.cli.diagnose:command",
    "report": "loopscale.cli.report:command",
    "check": "loopscale.cli.check:command",
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
    """Run one command and give its exit code; never raises for a mistake of the caller.

    A command is a click command that returns its exit code or None for 0, and raises `UserError` for a mistake.
    """
    try:
        result = group.main(args=argv, prog_name="loopscale", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except UserError as mistake:
        return _complain(str(mistake))
    except click.exceptions.NoArgsIsHelpError as shown:
        click.echo(shown.format_message(), err=True)
        return 2
    except click.ClickException as mistake:
        return _complain(usage_sentence(mistake))
    except (KeyboardInterrupt, click.Abort):
        _complain("stopped by Ctrl-C")
        return CTRL_C
    except BrokenPipeError:
        # The reader of stdout went away (`| head`); Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def entry() -> None:
    """Run the command line and end the process with its exit code."""
    sys.exit(main())


def _complain(sentence: str) -> int:
    print(f"loopscale: {sentence}", file=sys.stderr)
    return 2
