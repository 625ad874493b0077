from __future__ import annotations

import errno
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.training.test_fit import train, weights

from prefkit.errors import PrefkitError
from prefkit.training import Run, checkpoints, storage, trainer


def steps(run: Run) -> list[int]:
    return [checkpoints.step_of(path) for path in checkpoints.newest_first(run.checkpoints)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that ended at step 8, with checkpoints at 6 and 8."""
    run = train(tmp_path_factory.mktemp("whole"), epochs=2).run
    assert steps(run) == [8, 6]
    return run


@pytest.fixture
def stopped(whole: Run, tmp_path: Path) -> Run:
    """The same run, whose end is to be done again."""
    shutil.copytree(whole.folder.parent, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "run" / "model")
    return Run.open(tmp_path / "run")


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


FILES = ["model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json", "manifest.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [truncate, empty, flip, Path.unlink])
def test_damage_of_any_file_is_found(stopped: Run, name: str, damage: Callable[[Path], None]) -> None:
    newest, older = checkpoints.newest_first(stopped.checkpoints)
    assert stopped.last_checkpoint() == newest
    damage(newest / name)
    problem = checkpoints.fault(newest)
    assert problem is not None
    assert name in problem or "not written to its end" in problem
    assert stopped.last_checkpoint() == older


@pytest.mark.parametrize("damage", [truncate, empty, Path.unlink])
def test_resuming_falls_back_to_the_last_good_checkpoint(
    whole: Run, stopped: Run, tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    damage(stopped.checkpoints / "checkpoint-8" / "model.safetensors")
    train(tmp_path, epochs=2, resume=True)
    assert "checkpoint-8 cannot be used: model.safetensors is" in caplog.text
    assert f"resuming from {stopped.checkpoints / 'checkpoint-6'}" in caplog.text
    assert stopped.metrics == whole.metrics
    assert all((weights(stopped)[name] == tensor).all() for name, tensor in weights(whole).items())
    assert steps(stopped) == [8, 6]


def test_without_any_good_checkpoint_a_run_starts_anew(stopped: Run, tmp_path: Path) -> None:
    for path in checkpoints.newest_first(stopped.checkpoints):
        empty(path / "manifest.json")
    expected = stopped.metrics
    assert train(tmp_path, epochs=2, resume=True).steps == 8
    assert stopped.metrics == expected


def test_only_older_checkpoints_are_deleted(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10):
        checkpoints.place(tmp_path, step).mkdir()
        (checkpoints.place(tmp_path, step) / "file").write_text("x")
        checkpoints.finish(checkpoints.place(tmp_path, step))
    checkpoints.keep(tmp_path, checkpoints.place(tmp_path, 3), count=2)
    # The tenth lies after the one that was gone back to.
    assert [checkpoints.step_of(path) for path in checkpoints.newest_first(tmp_path)] == [3, 2]
    checkpoints.place(tmp_path, 5).mkdir()
    checkpoints.place(tmp_path, 6).mkdir()
    checkpoints.finish(checkpoints.place(tmp_path, 3))
    checkpoints.keep(tmp_path, None)
    assert checkpoints.newest_first(tmp_path) == []


def test_a_checkpoint_cut_off_does_not_count_among_those_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoints.place(tmp_path, step).mkdir()
        (checkpoints.place(tmp_path, step) / "file").write_text("x")
        if step != 2:
            checkpoints.finish(checkpoints.place(tmp_path, step))
    checkpoints.keep(tmp_path, checkpoints.place(tmp_path, 3), count=2)
    assert [checkpoints.step_of(path) for path in checkpoints.newest_first(tmp_path)] == [3, 1]


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("module", "name"), [(trainer, "save_file"), (trainer.torch, "save"), (checkpoints, "write_text")]
)
def test_a_full_disk_is_explained_and_the_last_good_checkpoint_survives(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> None:
    work, place = getattr(module, name), checkpoints.place

    def until_step_6(folder: Path, step: int) -> Path:
        # From the second checkpoint on nothing can be written.
        monkeypatch.setattr(module, name, full if step >= 6 else work)
        return place(folder, step)

    monkeypatch.setattr(checkpoints, "place", until_step_6)
    with pytest.raises(PrefkitError, match=r"cannot write .*checkpoint-6: .*No space left.*the last good checkpoint"):
        train(tmp_path, epochs=2, keep_checkpoints=1)
    monkeypatch.undo()
    run = Run.open(tmp_path / "run")
    assert steps(run) == [3]
    train(tmp_path, epochs=2, keep_checkpoints=1, resume=True)
    assert run.metrics == whole.metrics


def test_a_limit_on_the_size_of_files_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operating system itself refuses, in the middle of a file."""
    limits, save = resource.getrlimit(resource.RLIMIT_FSIZE), trainer.torch.save

    def limited(*args: Any, **more: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        try:
            save(*args, **more)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(trainer.torch, "save", limited)
    with pytest.raises(PrefkitError, match=r"cannot write .*checkpoint-3: .*free some space"):
        train(tmp_path, epochs=2)
    assert steps(Run.open(tmp_path / "run")) == []


def test_metrics_on_a_full_disk_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Path.open

    def opened(path: Path, *args: Any, **more: Any) -> Any:
        return full() if path.name == "metrics.jsonl" else work(path, *args, **more)

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(PrefkitError, match=r"cannot write .*metrics\.jsonl: .*No space left"):
        train(tmp_path)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    storage.write_text(path, "old")

    def fail() -> None:
        with storage.replacing(path) as temporary:
            temporary.write_text("half of the ne")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
