"""What there is to know, in words. Standard library only; documents and commands share it."""

from loopscale.teaching.entries import Entry, entries, explain, key_rows

__all__ = ["Entry", "entries", "explain", "key_rows"]
