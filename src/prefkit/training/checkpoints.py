"""Checkpoints that can be trusted: a manifest, written last, says what every file of one must look like.

A checkpoint without a manifest that fits was cut off while it was being written, or damaged later.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from prefkit.training.storage import logger, sha256, sync, write_text

_MANIFEST = "manifest.json"
_PREFIX = "checkpoint-"


def place(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is, among the checkpoints in `folder`."""
    return folder / f"{_PREFIX}{step}"


def step_of(checkpoint: Path) -> int:
    """The number of updates after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix(_PREFIX))


def newest_first(folder: Path) -> list[Path]:
    """All checkpoints, good or bad."""
    found = [path for path in folder.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdigit()]
    return sorted(found, key=step_of, reverse=True)


def finish(checkpoint: Path) -> None:
    """Declare a checkpoint complete, once all of it is on the disk."""
    files = {}
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        sync(path)
        files[path.relative_to(checkpoint).as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    for path in [checkpoint, *checkpoint.rglob("*"), checkpoint.parent]:
        if path.is_dir():
            sync(path)
    write_text(checkpoint / _MANIFEST, json.dumps({"files": files}, indent=1))


def fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        files = json.loads((checkpoint / _MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, expected in files.items():
            path = checkpoint / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["bytes"] or sha256(path) != expected["sha256"]:
                return f"{name} is damaged"
    except FileNotFoundError:
        return "it was not written to its end"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{_MANIFEST} is damaged"
    return None if files else f"{_MANIFEST} is damaged"


def newest_good(folder: Path) -> Path | None:
    """The newest checkpoint that is as it was written; a notice names those that are passed over."""
    for checkpoint in newest_first(folder):
        problem = fault(checkpoint)
        if problem is None:
            return checkpoint
        logger.warning(f"{checkpoint} cannot be used: {problem}; going back to an older one")
    return None


def keep(folder: Path, newest: Path | None, count: int = 1) -> None:
    """Delete all checkpoints newer than a good one, and, of the others, all but the newest `count`.

    Args:
        folder: where the checkpoints are.
        newest: a good checkpoint; None deletes all.
        count: how many to keep, this one included.
    """
    kept = 0
    for checkpoint in newest_first(folder):
        old = newest is not None and step_of(checkpoint) <= step_of(newest)
        if old and kept < count and (checkpoint == newest or (checkpoint / _MANIFEST).exists()):
            kept += 1
            continue
        discard(checkpoint)


def discard(checkpoint: Path) -> None:
    """Delete a checkpoint, whatever state it is in."""
    # Without its manifest a half-deleted checkpoint is not taken for a good one.
    (checkpoint / _MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)
