"""The page of a diagnosis reads the table of findings."""

from types import SimpleNamespace

from loopscale.findings import FINDINGS
from loopscale.report import diagnosis_page


def test_every_finding_is_drawn_as_its_row_says(monkeypatch):
    drawn = []
    monkeypatch.setattr(diagnosis_page, "_chart", lambda kind, found, place="all": drawn.append(kind))
    said = dict.fromkeys(("severity", "where", "evidence", "cause", "remedy", "tried"), "")
    for row in FINDINGS:
        diagnosis_page._finding(SimpleNamespace(code=row.code, lines=(), **said), None)
    assert drawn == [row.figure for row in FINDINGS]
