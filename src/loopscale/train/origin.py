"""Where a result comes from: versions, commit, hardware, date."""

from __future__ import annotations

import datetime
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import loopscale
from loopscale.files import cores


def provenance() -> dict[str, Any]:
    """Describe the software and the machine as plain JSON values; names no user, host or path."""
    return {
        "loopscale": loopscale.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit(),
        "hardware": hardware(),
        "platform": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def commit() -> str | None:
    """Give the git commit of loopscale's source tree, with "+changes" when it has any; None outside a repository."""
    root = Path(loopscale.__file__).resolve().parents[2]
    if not (root / ".git").exists():  # an installed package inside somebody else's repository is not ours
        return None
    head, changes = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain", "--untracked-files=no")
    return f"{head}+changes" if head and changes else head


def hardware() -> str:
    """Name the processor and, when there is one, the GPU."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    gpu = f"; {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}, {cores()} cores{gpu}"


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
