"""Where contributors look: workflows call make targets that exist; forms ask for what a wrong verdict needs."""

import re
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z0-9-]+):.*##", (ROOT / "Makefile").read_text(), flags=re.M))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_calls_what_a_person_calls(path):
    jobs = yaml.safe_load(path.read_text())["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    for command in commands:
        if command.startswith("make "):
            assert command.split()[1] in TARGETS
        else:
            assert set(re.findall(r"^make ([\w-]+)", (ROOT / command).read_text(), flags=re.M)) <= TARGETS
    assert commands or "publish" in jobs


def test_the_tests_run_on_every_python_that_the_package_names():
    matrix = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())["jobs"]["test"]["strategy"]["matrix"]
    named = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())
    assert matrix["python"] == named


def test_the_form_for_a_wrong_verdict_asks_for_the_diagnosis():
    form = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/wrong-verdict.yml").read_text())
    asked = {field["id"]: field for field in form["body"] if "id" in field}
    assert asked["json"]["attributes"]["render"] == "json" and asked["json"]["validations"]["required"]


def test_the_hooks_before_a_commit_are_those_of_make_check():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert [hook["entry"].split()[0] for hook in hooks] == ["ruff", "ruff", "python"]
