"""Files that are whole or absent: written beside their place, synced, renamed, and sealed with a checksum.

A process can be killed, and a disk can fill, at any moment. Nothing here trusts a file because it exists.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prefkit.errors import PrefkitError

logger = logging.getLogger("prefkit")


def cache_folder(folder: str | Path | None = None) -> Path:
    """Where encodings and reference scores are kept: `folder`, else `PREFKIT_CACHE`, else `~/.cache/prefkit`."""
    chosen = folder or os.environ.get("PREFKIT_CACHE") or Path("~/.cache/prefkit")
    return Path(chosen).expanduser()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file that takes the place of `path` at once when the block ends well, and vanishes when it does not.

    Yields:
        The temporary path to write to, in the same folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = unfinished(path)
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def unfinished(path: Path) -> Path:
    """A name beside `path` for what is being made; see `sweep`."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.partial")


def sweep(folder: Path, age: float = 0.0) -> None:
    """Delete what killed processes were making in a folder, if it is older than `age` seconds."""
    for path in folder.glob(".*.partial"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime <= time.time() - age:
                path.unlink()


def sync(path: Path) -> None:
    """Wait until a file or a folder's list of names is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a whole text file, or leave the old one."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256(path: Path) -> str:
    """Checksum of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(path: Path, info: Mapping[str, Any]) -> None:
    """Write down what a finished file must look like, together with `info`, beside it."""
    content = {"bytes": path.stat().st_size, "sha256": sha256(path), "info": info}
    write_text(_seal_of(path), json.dumps(content))


def sealed(path: Path, what: str) -> dict[str, Any] | None:
    """The `info` of a sealed file that is as it was written; None, with a notice, if it is damaged, or if it is absent.

    Args:
        path: the file.
        what: what it holds, for the notice.
    """
    if not path.exists():
        return None
    try:
        content = json.loads(_seal_of(path).read_text(encoding="utf-8"))
        if path.stat().st_size == content["bytes"] and sha256(path) == content["sha256"]:
            return dict(content["info"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    logger.warning(f"{what} in {path} are damaged and will be computed again")
    return None


def _seal_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.seal.json")


@contextlib.contextmanager
def explaining(path: Path, advice: str) -> Iterator[None]:
    """Turn a failure to write into an error that says where it happened and what to do.

    Raises:
        PrefkitError: the disk is full, or the place cannot be written.
    """
    try:
        yield
    except PrefkitError:
        raise
    except Exception as error:
        # safetensors and torch.save report a full disk by errors of their own instead of OSError.
        if isinstance(error, OSError) or _is_write_failure(error):
            raise PrefkitError(f"cannot write {path}: {error}{_space(path)}; {advice}") from error
        raise


def _space(path: Path) -> str:
    """How much room there is, which is the cause more often than not; the errors themselves can be cryptic."""
    with contextlib.suppress(OSError):
        return f" ({shutil.disk_usage(path.parent).free / 2**20:.0f} MiB free)"
    return ""


def _is_write_failure(error: Exception) -> bool:
    signs = ("no space left", "file too large", "failed writing", "write failed", "i/o error", "unexpected pos")
    return any(sign in str(error).lower() for sign in signs)
