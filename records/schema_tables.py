"""Draw the records' schemas from their pydantic models, for docs/architecture.md."""

from __future__ import annotations

import inspect
import re

import loopscale.records as records
from loopscale.records import Record


def _type(annotation: object) -> str:
    """Spell a type as a reader would: no module names, no constraints."""

    text = (
        annotation.__name__ if isinstance(annotation, type) and not hasattr(annotation, "__args__") else str(annotation)
    )
    text = re.sub(r"typing\.Annotated\[(\w+)[^\]]*\]", r"\1", text)
    text = re.sub(r"\b(?:[a-z_]+\.)+(\w+)", r"\1", text)
    text = re.sub(r"Optional\[(\w+)\]", r"\1 or None", text)
    return text.replace("|", "or").replace("NoneType", "None")


def schemas() -> str:
    """List the records in the order of their names: what each is, its schema number, its fields."""
    lines = []
    for name in sorted(records.__all__):
        model = getattr(records, name)
        if not (inspect.isclass(model) and issubclass(model, Record)) or model is Record:
            continue
        about = " ".join((inspect.getdoc(model) or "").split("\n\n")[0].split())
        number = f" Schema {model.SCHEMA}." if "SCHEMA" in vars(model) else ""
        fields = ", ".join(
            f"`{key}`{'' if field.is_required() else '?'} {_type(field.annotation)}"
            for key, field in model.model_fields.items()
        )
        lines.append(f"- **{name}**: {about}{number} {fields}.")
    return "\n".join(lines)


BLOCKS = {"schemas": schemas}
