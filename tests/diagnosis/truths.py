"""What is true of a labelled model, stated before it was diagnosed, and all such models with where they come from."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

NONE = frozenset({"unscaled-residual"})
CLEAN: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Truth:
    """`codes`: all findings; `law`: growth over the visits (None: not the point); `says`: words of its text.

    `other`: codes that are as right; `mended`: the factory of the same file after the printed edit; `attach`: whether the
    printed remedy is an `attach`. `kind` and `hard` sort the scoreboard.
    """

    codes: frozenset[str]
    law: str | None
    loops: int | None
    layers: int | None = None
    says: tuple[str, ...] = ()
    other: frozenset[str] | None = None
    attach: bool = False
    mended: str | None = None
    kind: str = "reported"
    hard: str = "plain"

    def wrong(self, found: Any) -> list[str]:
        """The fields of a diagnosis that differ from the truth; `healthy` where it passed over a symptom."""
        wrong = [] if found.codes in (self.codes, self.other) else ["codes"]
        looped = self.loops is None or self.loops > 1
        wrong += ["loops"] if self.loops is not None and (found.looped, found.loops) != (looped, self.loops) else []
        wrong += ["law"] if self.law is not None and found.growth != self.law else []
        wrong += ["layers"] if self.layers is not None and found.layers != self.layers else []
        tied = found.looped and "untied" not in found.codes
        wrong += ["tied"] if found.tied != tied else []
        wrong += ["words"] if not all(word in found.text() for word in self.says) else []
        measured = all(s.value is not None and not s.beyond for s in found.symptoms)
        return [*wrong, *(["healthy"] if found.verdict.startswith("healthy") and not measured else [])]


# Files of cases that state their truths themselves: models of our own after public reports and published architectures.
FILES = (
    "adaptive_halting",
    "equilibrium",
    "image_loops",
    "odd_code",
    "outer_paths",
    "recurrent_depth",
    "routed_tokens",
    "state_space",
    "visit_signals",
    "whole_faults",
    "whole_stack",
)


def built(case: str) -> tuple[Any, Any]:
    """The model and its batch (None: one is made up) of `file:factory`."""
    name, _, factory = case.partition(":")
    module = importlib.import_module(f"cases.{name}")
    torch.manual_seed(0)
    made = getattr(module, factory)()
    model, batch = made if isinstance(made, tuple) else (made, None)
    return model, module.make_batch() if hasattr(module, "make_batch") else batch


def stated() -> dict[str, Truth]:
    """The truths that stand in the files of the cases."""
    told: dict[str, Truth] = {}
    for name in FILES:
        for factory, given in importlib.import_module(f"cases.{name}").TRUTHS.items():
            row = dict(given)
            row["codes"] = frozenset(row["codes"].split())
            row["other"] = frozenset(row.pop("or").split()) if "or" in row else None
            told[f"{name}:{factory}"] = Truth(**row)
    return told


def everything() -> Iterator[tuple[str, str, Truth, Callable[[], tuple[Any, Any]]]]:
    """Every labelled model of the tests: the set it belongs to, its name, its truth, how to build it and its batch."""
    import test_diagnose_styles as styles
    import test_diagnosis_cases as reported
    import test_zoo as zoo

    for case, truth in reported.CASES.items():
        yield "reported failures", case, truth, lambda case=case: built(case)
    for case, truth in stated().items():
        yield "own models", case, truth, lambda case=case: built(case)
    for name, (source, codes, law, loops, layers) in styles.CASES.items():
        truth = Truth(frozenset(codes), law, loops, layers, kind=source.__name__.replace("_", " "))
        yield "styles", name, truth, lambda source=source, name=name: (getattr(source, name)(), None)
    for kind, models in (("own blocks", zoo.OWN), ("transformers", zoo.THIRD), ("x-transformers", zoo.X)):
        for name, (build, codes, law, loops) in models.items():
            truth = Truth(frozenset(codes), law, loops, kind=kind)
            yield "zoo", f"{kind}: {name}", truth, lambda build=build: (build(), None)
