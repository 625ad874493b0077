"""`prefkit serve` as a process: it starts, answers, and ends when told."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from typer.testing import CliRunner

from prefkit.cli import app


def test_the_server_starts_answers_and_ends(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    command = [sys.executable, "-m", "prefkit.cli", "serve", "builtin", "--reference", "builtin", "--port", str(port)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(os.environ)
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"{address}/health", timeout=5) as response:
                    assert json.loads(response.read())["status"] == "ok"
                break
            except OSError:
                assert process.poll() is None, process.communicate()[0]
                time.sleep(0.1)
        pairs = tmp_path / "pairs.jsonl"
        pairs.write_text(json.dumps({"prompt": "Why?", "chosen": " Because.", "rejected": " No."}) + "\n")
        rewarded = tmp_path / "rewarded.jsonl"
        given = ["score", address, str(pairs), "--output", str(tmp_path / "s.jsonl"), "--rewards-into", str(rewarded)]
        assert CliRunner().invoke(app, given, catch_exceptions=False).exit_code == 0
        # The policy is its own reference.
        assert json.loads(rewarded.read_text())["extra"]["rewards"] == pytest.approx([0.0, 0.0])
    finally:
        process.send_signal(signal.SIGTERM)
        shown, _ = process.communicate(timeout=30)
    assert f"rewards of builtin on {address}" in shown
    assert "Traceback" not in shown
