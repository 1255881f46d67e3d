"""Measure the law that needs no training: how the stream grows over loops in the untrained networks of a study."""

from __future__ import annotations

from loopscale.transfer.plan import Arm, Cell, StudyPlan


def stream_growth(plan: StudyPlan) -> dict[tuple[str, int], float]:
    """Return the RMS of the stream after the last visit over its RMS at the entry, by (rule, N), in untrained house models.

    Looped residual scaling keeps it level over N; a rule under which it climbs lets the best rate fall.
    """
    import torch

    from loopscale.nn import LoopedTransformer

    found = {}
    for rule in plan.rules:
        for loops in sorted(plan.loops):
            config = plan.config(Cell(Arm(rule, plan.strengths[0], loops), plan.center_lr, 0))
            vocabulary = config.model.vocab_size or 256
            generator = torch.Generator().manual_seed(0)
            tokens_BT = torch.randint(vocabulary, (1, min(64, config.data.context)), generator=generator)
            with torch.no_grad():
                rms = LoopedTransformer(config.network(vocabulary), seed=0).visit_rms(tokens_BT)
            found[rule, loops] = rms[-1] / rms[0]
    return found
