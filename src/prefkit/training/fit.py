"""One fit, from comparisons to a trained model in a run folder."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from prefkit.comparisons import Comparison
from prefkit.errors import OptionError
from prefkit.objectives import SCORED, DrawsNoise, HasMembers, KnowsPeople, Objective, PairObjective, Scorer
from prefkit.training import checkpoints, processes
from prefkit.training.data import TrainingData, prepare
from prefkit.training.memory import steady_memory
from prefkit.training.meta import MetaLearning
from prefkit.training.options import TrainingOptions
from prefkit.training.progress import bar
from prefkit.training.reference import reference_scores
from prefkit.training.run import Run
from prefkit.training.storage import cache_folder, explaining, logger, sweep, write_text
from prefkit.training.targets import PairingOptions
from prefkit.training.trainer import PreferenceTrainer


@dataclass(frozen=True)
class FitResult:
    """What a fit came to.

    Args:
        run: its folder.
        steps: updates of the model.
        seconds: time spent in training, without preparing data and scoring the reference; of this process only, if
            the run was resumed.
        rows: comparisons that were trained on.
        skipped: comparisons that were set aside, those for evaluation included, listed in `skipped.jsonl`.
        metrics: the last line of training metrics, see `prefkit.training.metrics.measure`.
    """

    run: Run
    steps: int
    seconds: float
    rows: int
    skipped: int
    metrics: dict[str, Any]


def fit(
    scorer: Scorer,
    comparisons: Iterable[Comparison],
    objective: Objective[Any],
    *,
    output: str | Path,
    options: TrainingOptions | None = None,
    evaluation: Iterable[Comparison] | None = None,
    pairing: PairingOptions | None = None,
    resume: bool = False,
    cache: str | Path | None = None,
    config: Mapping[str, Any] | None = None,
    meta: MetaLearning | None = None,
) -> FitResult:
    """Train a scorer's model on comparisons.

    Under `torchrun` all processes call this with the same arguments. After FSDP2 the scorer holds a part of the model
    only; load the whole from `run.model`.

    Args:
        scorer: the model, with its reference if the objective needs one.
        comparisons: what to learn from; can be iterated over again and again.
        objective: what is minimised, see `prefkit.objectives.make_objective`.
        output: the run folder, new unless `resume`.
        options: how to train.
        evaluation: comparisons to evaluate on during training.
        pairing: how comparisons become what the objective compares.
        resume: go on from the newest good checkpoint in `output`, or start there if there is none.
        cache: where encodings and the reference's scores are kept; default `PREFKIT_CACHE`, or `~/.cache/prefkit`.
        config: all options of the run, as they are written to `config.yaml`; default those given here.
        meta: for reward models, learn to tell apart the responses of a policy (MetaRM).

    Raises:
        OptionError: an option does not apply to the objective, the model or the data.
        PrefkitError: the folder holds another run; no comparison can be used; a loss is not finite; the disk is full.
    """
    options, pairing = options or TrainingOptions(), pairing or PairingOptions()
    run, folder = Run(Path(output)), cache_folder(cache)
    config = config or {
        "objective": repr(objective),
        "pairing": pairing.model_dump(mode="json"),
        "training": options.model_dump(mode="json"),
    }
    _check(scorer, options, evaluation)
    _check_weights(objective, options)
    if isinstance(scorer, HasMembers) and scorer.members and objective.stateful:
        raise OptionError(
            f"objective '{objective.name}' has a part that learns, '{objective.stateful[0].name}', and an ensemble "
            "would teach it once a member: leave it out, or train the members in runs of their own"
        )
    scorer.provide(objective.needs & SCORED)
    objective.equip(scorer)
    if meta is not None:
        if "rewards" not in objective.needs:
            raise OptionError("meta is for reward models (model.kind: reward): it moves rewards apart")
        for problem in meta.prepare(scorer):
            logger.warning(f"meta.data, set aside: {problem}")
    if isinstance(scorer, DrawsNoise):
        scorer.use_reference("reference" in objective.needs)
    arguments = _arguments(options, run, evaluation is not None)
    processes.in_first(lambda: open_run(run, config, options, resume))

    module = _module(scorer)
    module.to(arguments.device)
    objective.to(arguments.device)
    objective.batch_mean = processes.mean

    personal = scorer if isinstance(scorer, KnowsPeople) and scorer.reads_people else None

    def load(source: Iterable[Comparison], annotators: Sequence[str] = ()) -> TrainingData:
        data = prepare(
            scorer,
            source,
            form=objective.form,
            needs=objective.needs | ({"annotators"} if personal is not None else set()),
            pairing=pairing,
            accompany=objective.accompany if isinstance(objective, PairObjective) and objective.accompanied else None,
            annotators=annotators,
            refuse=objective.refuse,
            cache=folder,
            skipped=run.folder / "skipped.jsonl",
            progress=options.progress,
        )
        if "reference" in objective.needs and not isinstance(scorer, DrawsNoise):
            data.reference = reference_scores(
                scorer,
                data,
                cache=folder,
                batch_size=options.batch_size,
                tokens="tokens" in objective.needs,
                progress=options.progress,
            )
        return data

    with explaining(folder, "free some space, or choose another cache"):
        data = load(comparisons)
        held_out = load(evaluation, data.annotators) if evaluation is not None else None
    if personal is not None:
        personal.meet(data.annotators)
    objective.prepare((held_out or data).annotators, processes.total)
    objective.to(arguments.device)
    keys = {"training": data.content} | ({"evaluation": held_out.content} if held_out is not None else {})
    processes.in_first(lambda: run.check_data(keys))
    checkpoint = processes.in_first(lambda: go_back(run, resume))

    if options.gradient_checkpointing:
        module.gradient_checkpointing_enable()  # type: ignore[operator]  # modules that support it have it
    with bar(options.progress) as shown:
        trainer = PreferenceTrainer(
            scorer,
            objective,
            arguments,
            data,
            evaluation=held_out,
            metrics=run.folder / "metrics.jsonl",
            keep_checkpoints=options.keep_checkpoints,
            shuffle=options.shuffle,
            shown=shown,
            meta=meta,
        )
        begun = time.perf_counter()
        with interruptible(run, lambda: trainer.state.global_step), steady_memory(arguments.device):
            steps = trainer.fit(checkpoint)
        seconds = time.perf_counter() - begun
    _save(trainer, run)
    trainer.write_rows(run.folder / "rows.csv")
    if processes.rank() == 0 and (summary := objective.summary()):
        write_text(run.folder / "objective.json", json.dumps(summary, indent=2) + "\n")
    lines = [line for line in run.metrics if "loss" in line]
    skipped = data.skipped + (held_out.skipped if held_out is not None else 0)
    return FitResult(run, steps, seconds, len(data), skipped, lines[-1] if lines else {})


def _module(scorer: Scorer) -> nn.Module:
    if not isinstance(scorer, nn.Module):
        raise OptionError(f"{type(scorer).__name__} is no torch.nn.Module and cannot be trained")
    return scorer


def _check(scorer: Scorer, options: TrainingOptions, evaluation: Iterable[Comparison] | None) -> None:
    if options.eval_every is not None and evaluation is None:
        raise OptionError("training.eval_every applies only with comparisons to evaluate on")
    for name in options.report_to:
        if importlib.util.find_spec(name) is None:
            raise OptionError(f"training.report_to: {name} is not installed; pip install {name}")
    if options.gradient_checkpointing and not getattr(scorer, "supports_gradient_checkpointing", False):
        raise OptionError("training.gradient_checkpointing does not apply: this model does not support it")


def _check_weights(objective: Objective[Any], options: TrainingOptions) -> None:
    if options.fsdp and any(True for _ in objective.parameters()):
        raise OptionError(f"training.fsdp does not apply: objective '{objective.name}' trains weights of its own")


def _arguments(options: TrainingOptions, run: Run, evaluate: bool) -> TrainingArguments:
    """The Trainer's own arguments. Creating them joins the processes of the run."""

    def every(steps: int | None) -> tuple[str, int]:
        return ("epoch", 1) if steps is None else ("no", 1) if steps == 0 else ("steps", steps)

    save, evaluation = every(options.save_every), every(options.eval_every)
    further = dict(options.trainer)
    if options.fsdp:
        further["fsdp_config"] = {"version": 2, **(further.get("fsdp_config") or {})}
    further.setdefault("ddp_find_unused_parameters", False)
    # Without it, and without an accelerator, the processes of a run would not find each other.
    further.setdefault("use_cpu", not torch.accelerator.is_available())
    arguments = TrainingArguments(
        output_dir=str(run.checkpoints),
        num_train_epochs=options.epochs,
        max_steps=options.max_steps or -1,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=options.batch_size,
        gradient_accumulation_steps=options.gradient_accumulation,
        learning_rate=options.learning_rate,
        lr_scheduler_type=options.schedule,
        warmup_steps=options.warmup,
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
        optim=options.optimizer,
        seed=options.seed,
        logging_steps=options.log_every,
        save_strategy=save[0],
        save_steps=save[1],
        eval_strategy=evaluation[0] if evaluate else "no",
        eval_steps=evaluation[1],
        report_to=list(options.report_to) or "none",
        fsdp=options.fsdp or None,
        dataloader_num_workers=options.workers,
        disable_tqdm=True,
        remove_unused_columns=False,
        # The loop looks at the loss itself, once an update.
        logging_nan_inf_filter=False,
        **further,
    )
    processes.leave_at_exit()
    if options.fsdp and processes.count() == 1:
        raise OptionError("training.fsdp shards a model over several processes: start them with torchrun")
    if arguments.world_size != processes.count():
        raise OptionError(
            f"{processes.count()} processes were started, but the Trainer knows of {arguments.world_size}"
        )
    if arguments.n_gpu > 1:
        # DataParallel cannot split packed rows; several devices take several processes.
        arguments._n_gpu = 1
    return arguments


def open_run(run: Run, config: Mapping[str, Any], options: TrainingOptions, resume: bool) -> None:
    """Begin a run in its folder, or see whether the one there is the same.

    Raises:
        OptionError: a resumed run has other options.
        PrefkitError: the folder holds another run, or cannot be written.
    """
    with explaining(run.folder, "choose another folder"):
        if resume and run.exists:
            run.check_config(config)
        else:
            run.begin(config, options.seed)
        (run.folder / "skipped.jsonl").write_text("")


def go_back(run: Run, resume: bool) -> Path | None:
    """The checkpoint to go on from, with everything after it undone."""
    checkpoint = run.last_checkpoint()
    if resume:
        found = f"resuming from {checkpoint}" if checkpoint else f"no good checkpoint in {run.folder}: starting anew"
        logger.warning(found)
    sweep(run.folder)
    checkpoints.keep(run.checkpoints, checkpoint, count=len(checkpoints.newest_first(run.checkpoints)))
    run.rewind(checkpoints.step_of(checkpoint) if checkpoint else 0)
    return checkpoint


@contextlib.contextmanager
def interruptible(run: Run, done: Callable[[], int]) -> Iterator[None]:
    """Say how to go on when the run is stopped by the user or by a scheduler (SIGINT, SIGTERM).

    Args:
        run: its folder.
        done: gives the number of updates so far.
    """

    def stop(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if main else None
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        found = checkpoints.newest_first(run.checkpoints)
        last = f"the last checkpoint is that of step {checkpoints.step_of(found[0])}" if found else "no checkpoint yet"
        if processes.rank() == 0:
            logger.warning(f"stopped at step {done()}, {last}; go on with --resume")
        raise
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)


def _save(trainer: PreferenceTrainer, run: Run) -> None:
    """Write the trained model; all processes call it."""
    state = trainer.full_state()
    if trainer.is_world_process_zero():
        scorer = trainer.scorer
        write_model(run, scorer.save if state is None else partial(scorer.save, state=state))
    processes.wait()


def write_model(run: Run, write: Callable[[Path], None]) -> None:
    """Write the trained model, whole or not at all.

    Args:
        run: its folder.
        write: writes it to a folder.

    Raises:
        PrefkitError: it cannot be written.
    """
    temporary = run.folder / ".model"
    with explaining(run.model, "free some space and resume the run"):
        shutil.rmtree(temporary, ignore_errors=True)
        write(temporary)
        shutil.rmtree(run.model, ignore_errors=True)
        temporary.rename(run.model)
