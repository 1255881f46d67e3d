"""`python -m loopscale` is the command line."""

from __future__ import annotations

from loopscale.cli import entry

if __name__ == "__main__":
    entry()
