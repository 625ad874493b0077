"""The run folder: everything that a training run leaves behind, and reading it back.

`config.yaml` (resolved options), `environment.json` (versions, machine, data), `metrics.jsonl` (the curve),
`skipped.jsonl` (comparisons that were set aside), `checkpoints/`, `model/` (the result); if the objective has them,
`objective.json` (what it learned) and `rows.csv` (what it makes of each row).
"""

from __future__ import annotations

import csv
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

from prefkit.errors import OptionError, PrefkitError
from prefkit.training import checkpoints, processes
from prefkit.training.storage import write_text

_MAY_CHANGE = {
    "output", "resume", "training.save_every", "training.keep_checkpoints", "training.report_to", "training.progress",
    "training.workers",
}  # fmt: skip
"""Options that a resumed run may give differently: they do not change the numbers."""


@dataclass(frozen=True)
class Run:
    """A run folder.

    Args:
        folder: the folder.
    """

    folder: Path

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """A folder that holds a run.

        Raises:
            PrefkitError: it does not.
        """
        run = cls(Path(folder))
        if not run.exists:
            raise PrefkitError(f"{folder} holds no run: there is no config.yaml in it")
        return run

    @property
    def exists(self) -> bool:
        """Whether a run was started in the folder."""
        return (self.folder / "config.yaml").is_file()

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end and written its model."""
        return self.model.is_dir()

    @property
    def model(self) -> Path:
        """Folder of the trained model."""
        return self.folder / "model"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / "checkpoints"

    @property
    def config(self) -> dict[str, Any]:
        """The resolved options."""
        return dict(yaml.safe_load((self.folder / "config.yaml").read_text(encoding="utf-8")))

    @property
    def environment(self) -> dict[str, Any]:
        """Versions, machine and data."""
        return dict(json.loads((self.folder / "environment.json").read_text(encoding="utf-8")))

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The curve, one entry a line of `metrics.jsonl`; without a last line that was cut off."""
        return _read_lines(self.folder / "metrics.jsonl")

    @property
    def learned(self) -> dict[str, Any]:
        """What the objective learned, by part."""
        path = self.folder / "objective.json"
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}

    @property
    def rows(self) -> list[dict[str, str]]:
        """The last figures of each row of the data that the objective keeps."""
        path = self.folder / "rows.csv"
        if not path.is_file():
            return []
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    @property
    def skipped(self) -> list[dict[str, Any]]:
        """Comparisons that were set aside, with their place and the reason."""
        return _read_lines(self.folder / "skipped.jsonl")

    def begin(self, config: Mapping[str, Any], seed: int) -> None:
        """Start a run in a new folder.

        Raises:
            PrefkitError: the folder holds another run.
        """
        # A run that stopped before it had learned anything (for want of usable data, say) is nothing to protect.
        if self.finished or self.metrics or checkpoints.newest_first(self.checkpoints):
            raise PrefkitError(f"{self.folder} holds another run: continue it with --resume, or choose another folder")
        write_text(self.folder / "environment.json", json.dumps(environment(seed), indent=1))
        write_text(self.folder / "config.yaml", yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True))

    def check_config(self, config: Mapping[str, Any]) -> None:
        """Make sure that a run is resumed as it was begun.

        Raises:
            OptionError: an option that decides the numbers differs.
        """
        old, new = _flat(self.config), _flat(_plain(config))
        changed = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
        changed = [name for name in changed if name not in _MAY_CHANGE]
        if changed:
            name = changed[0]
            raise OptionError(
                f"{self.folder} was begun with {name} = {old.get(name)!r}, got {new.get(name)!r}: a run is resumed "
                f"with the options it was begun with{_and_more(changed)}"
            )

    def check_data(self, keys: Mapping[str, str]) -> None:
        """Remember the data of a new run; make sure that a resumed one has the same.

        Raises:
            PrefkitError: the data are others.
        """
        known = self.environment
        if known.setdefault("data", dict(keys)) != dict(keys):
            raise PrefkitError(f"the data are not those with which {self.folder} was begun; choose another folder")
        write_text(self.folder / "environment.json", json.dumps(known, indent=1))

    def rewind(self, step: int) -> None:
        """Drop the metrics of the updates after `step`, which will be done again."""
        kept = [json.dumps(line) for line in self.metrics if line["step"] <= step]
        write_text(self.folder / "metrics.jsonl", "".join(f"{line}\n" for line in kept))

    def last_checkpoint(self) -> Path | None:
        """The newest good checkpoint; see `checkpoints.newest_good`."""
        return checkpoints.newest_good(self.checkpoints)


def environment(seed: int) -> dict[str, Any]:
    """What a run's numbers may depend on besides its options and data."""
    packages = ("prefkit", "torch", "transformers", "accelerate", "peft", "datasets", "numpy", "safetensors")
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": [_without_secret(argument) for argument in sys.argv],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "processes": processes.count(),
        "packages": {name: _version(name) for name in packages},
        "commit": _commit(),
        "seed": seed,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the working folder, if it is in a git repository."""
    try:
        shown = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return shown.stdout.strip()


def _without_secret(argument: str) -> str:
    if re.search(r"token|secret|password|api_?key", argument, re.IGNORECASE) and "=" in argument:
        return argument.split("=", 1)[0] + "=..."
    return re.sub(r"\bhf_\w{8,}|\bsk-\w{8,}", "...", argument)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    # What follows the last line end was cut off.
    return [json.loads(line) for line in lines[:-1] if line]


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options as YAML and JSON hold them."""
    return dict(json.loads(json.dumps(config, default=os.fspath)))


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _and_more(changed: list[str]) -> str:
    return f" (also changed: {', '.join(changed[1:])})" if len(changed) > 1 else ""
