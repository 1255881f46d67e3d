"""`--model` and `--objective`: the user's own code in a study, and what is said of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loopscale.errors import UserError

if TYPE_CHECKING:
    from loopscale.transfer import Own


AGAIN = "delete their records (those with an 'error') to repeat them"


def find_own(model: str | None, objective: str | None) -> Own | None:
    """What was named, or None; raises `UserError` when both were."""
    from loopscale.transfer import Own

    if model is not None and objective is not None:
        raise UserError("give --model or --objective, not both: an objective trains its model itself")
    if model is not None:
        return Own.at(model, "model")
    return None if objective is None else Own.at(objective, "objective")


def own_sentences(provenance: dict[str, Any], again: str = AGAIN) -> list[str]:
    """The inferred roles, and the trials that raised; `again` says how to repeat those."""
    said = []
    data = provenance.get("data", {})
    if data.get("roles_inferred"):
        listed = ", ".join(f"{name}: {role}" for name, role in data["roles"].items())
        said.append(f"roles were inferred from names, state them with roles() if one is wrong: {listed}")
    errors = provenance.get("errors", [])
    if errors:
        said.append(
            f"{len(errors)} of {provenance['trials']} trials raised and count as diverged, the first {errors[0]}: "
            f"{again}"
        )
    return said
