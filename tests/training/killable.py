"""Starts training runs in forked processes and kills them, at a time or inside the writing of a checkpoint.

Importing torch takes seconds, a run of the tiny domain less than one: this process imports, never trains (a forked
child cannot go on with threads of autograd), and forks a child for each line that it reads. A line is JSON: `folder`,
and `after` (seconds) or `moment` (which touch of the disk); it answers with the way the child ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from tests.training.tiny_domain import LetterScorer, comparisons

from prefkit.objectives import make_objective
from prefkit.training import TrainingOptions, checkpoints, fit, run, storage, trainer

OPTIONS = TrainingOptions(
    epochs=3, batch_size=4, learning_rate=1e-2, log_every=2, save_every=3, keep_checkpoints=1, progress=False
)


def train(folder: Path) -> None:
    fit(
        LetterScorer(),
        comparisons(13),
        make_objective("dpo"),
        output=folder / "run",
        options=OPTIONS,
        cache=folder / "cache",
        resume=True,
    )


class Moments:
    """Counts how often the disk is touched, and kills the process in the middle of one of them."""

    def __init__(self, fatal: int | None) -> None:
        self.count, self.fatal = 0, fatal

    def watch(self, module: Any, name: str) -> None:
        work = getattr(module, name)

        def watched(*args: Any, **more: Any) -> Any:
            self.count += 1
            if self.count == self.fatal:
                # Half of the time nothing has been done, half of the time it has been cut off half-way.
                if self.count % 2:
                    work(*args, **more)
                    for path in (arg for arg in args if isinstance(arg, Path | str) and Path(arg).is_file()):
                        os.truncate(path, Path(path).stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            return work(*args, **more)

        setattr(module, name, watched)


def child(folder: Path, moment: int | None) -> None:
    moments = Moments(moment)
    for module, name in (
        (trainer, "save_file"),
        (trainer.torch, "save"),
        (checkpoints, "sync"),
        (checkpoints, "sha256"),
        (checkpoints, "write_text"),
        (checkpoints, "discard"),
        (run, "write_text"),
        (storage, "sync"),
        (json, "dumps"),
    ):
        moments.watch(module, name)
    train(folder)
    (folder / "moments").write_text(str(moments.count))


def main() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                child(Path(order["folder"]), order.get("moment"))
                status = 0
            except BaseException:
                traceback.print_exc()
            os._exit(status)
        begun = time.perf_counter()
        if "after" in order:
            time.sleep(order["after"])
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        print(
            json.dumps({"status": os.waitstatus_to_exitcode(status), "seconds": time.perf_counter() - begun}),
            flush=True,
        )


if __name__ == "__main__":
    main()
