"""Tests in several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def in_two_processes(module: str, folder: Path) -> None:
    """Run a module of the tests, which is told a folder, in two processes."""
    done = subprocess.run(
        [sys.executable, *TORCHRUN, "-m", module, folder],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
