"""Where on the tape the stream stands after the last visit, at any number of loops, 1 included, which is no loop."""

from __future__ import annotations

from dataclasses import dataclass

from loopscale.diagnosis.loops import FoundLoop, find_loops
from loopscale.diagnosis.setting import Setting
from loopscale.diagnosis.stream import follow
from loopscale.errors import UserError
from loopscale.probe.tape import Tape

# Of several loops with the asked number of visits the last is measured, unless it holds less than this share of weights.
SHARE = 0.1
FACTORY = "the factory must use its argument"


@dataclass(frozen=True)
class AtTwo:
    """The loop as two loops show it: visits for each loop (more than one in a loop within a loop), its parameters' names,
    and how many nodes lie between a visit's first use of one and the stream after that visit, with that node's kind.
    `advice` is said when the model does not make the visits it is asked for.
    """

    visits: int
    names: frozenset[str]
    offset: int
    kind: tuple[str, tuple[int, ...]]
    advice: str = FACTORY

    def end(self, setting: Setting, count: int) -> int:
        """Return the node of the stream after the last visit at `count` loops.

        Raises `UserError` when the model does not make `count` times the visits, or does other things at one visit.
        """
        tape, _ = setting.run()
        if count * self.visits > 1:
            loops = find_loops(setting.model, tape)
            loop = _pick(tape, loops, count * self.visits, self.names)
            if loop is None:
                raise UserError(_wrong(count * self.visits, loops, self.advice))
            return _after_the_last_visit(tape, loop)
        keys = {key for key, names in tape.names.items() if self.names & set(names)}
        start = next((i for i, node in enumerate(tape.nodes) if node.data and node.params & keys), len(tape.nodes))
        found = start + self.offset
        if found >= len(tape.nodes) or (tape.nodes[found].op, tape.nodes[found].shape) != self.kind:
            raise UserError("the model does something else at one loop than at the first of two: leave 1 out of loops=")
        return found


def at_two(setting: Setting, advice: str = FACTORY) -> AtTwo:
    """Find the loop of a model that is set to two loops. Raises `UserError` when its visits are no multiple of two."""
    tape, _ = setting.run()
    loops = find_loops(setting.model, tape)
    counts = [found.visits for found in loops if found.visits % 2 == 0]
    loop = _pick(tape, loops, 2 if 2 in counts else min(counts, default=2))
    if loop is None:
        raise UserError(_wrong(2, loops, advice))
    states = _states(tape, loop)
    # Without a state after the last visit, the one that the visit before hands to it.
    after, start = (states[-1], loop.starts[-1]) if len(states) > loop.visits else (states[-1], loop.starts[-2])
    names = frozenset(name for key in loop.uses for name in tape.names.get(key, []))
    node = tape.nodes[after]
    return AtTwo(loop.visits // 2, names, after - start, (node.op, node.shape), advice)


def _after_the_last_visit(tape: Tape, loop: FoundLoop) -> int:
    """Return the last state; where only the states before each visit are seen, the last of them carried on by one visit."""
    states = _states(tape, loop)
    if len(states) > loop.visits or loop.visits < 2:
        return states[-1]
    carried = states[-1] + loop.starts[-1] - loop.starts[-2]
    if carried >= len(tape.nodes):
        return states[-1]
    here, there = tape.nodes[states[-1]], tape.nodes[carried]
    return carried if (here.op, here.shape) == (there.op, there.shape) else states[-1]


def _states(tape: Tape, loop: FoundLoop) -> tuple[int, ...]:
    stream = follow(tape, loop)
    assert stream is not None
    return stream.states


def _pick(tape: Tape, loops: list[FoundLoop], visits: int, names: frozenset[str] | None = None) -> FoundLoop | None:
    """Return the last loop of this many visits whose stream can be followed; of those with a name in `names`, if given."""
    right = [
        found
        for found in loops
        if found.visits == visits
        and follow(tape, found) is not None
        and (names is None or names & {name for key in found.uses for name in tape.names.get(key, [])})
    ]
    large = [found for found in right if found.size >= SHARE * max(other.size for other in right)]
    return max(large, key=lambda found: found.starts[-1], default=None)


def _wrong(asked: int, loops: list[FoundLoop], advice: str) -> str:
    seen = loops[0].visits if loops else 1
    return f"asked for {asked} loops, the model made {seen} visits: {advice}"
