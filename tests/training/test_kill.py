"""A run that is killed at any moment, and resumed, ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prefkit.training import Run

Start = Callable[..., dict[str, Any]]
MOMENTS = 10
"""Kills of each kind: at a random time, and at a random touch of the disk."""


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """Runs training in a process of its own; says how it ended."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.training.killable"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None

        def order(folder: Path, **more: Any) -> dict[str, Any]:
            assert server.stdin is not None
            assert server.stdout is not None
            print(json.dumps({"folder": str(folder), **more}), file=server.stdin, flush=True)
            return dict(json.loads(server.stdout.readline()))

        yield order
        server.stdin.close()


def outcome(folder: Path) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    run = Run.open(folder / "run")
    return run.metrics, {path.name: path.read_bytes() for path in run.model.iterdir()}


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed(start: Start, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    ended = start(whole)
    assert ended["status"] == 0
    expected = outcome(whole)
    assert [line["step"] for line in expected[0]] == [2, 4, 6, 8, 10, 12]

    choose = random.Random(0)
    touches = int((whole / "moments").read_text())
    kills: list[dict[str, Any]] = [{"after": choose.uniform(0.02, ended["seconds"])} for _ in range(MOMENTS)]
    kills += [{"moment": moment} for moment in choose.sample(range(1, touches + 1), MOMENTS)]
    killed = 0
    for number, kill in enumerate(kills):
        folder = tmp_path / str(number)
        folder.mkdir()
        killed += start(folder, **kill)["status"] == -9
        if number % 4 == 0:
            # Once more while it is being resumed: what was recovered has to be recoverable.
            start(folder, moment=choose.randrange(1, touches))
        assert start(folder)["status"] == 0, kill
        assert outcome(folder) == expected, kill
        assert not list((folder / "run").glob(".*"))
    # By the time of its kill a run may have ended, now and then; most were in the middle of it.
    assert killed >= 15
