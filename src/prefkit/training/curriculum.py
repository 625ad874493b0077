"""A curriculum: one fit a stage, each going on from the last one, with an optimiser and, as a rule, a reference of its
own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import Field

from prefkit.comparisons import Comparison, Curriculum, RecordError, build_curriculum
from prefkit.comparisons.curriculum import Criterion, Mode, Scope
from prefkit.errors import OptionError
from prefkit.objectives import Objective, Scorer, score_all
from prefkit.options import Options
from prefkit.training import processes
from prefkit.training.fit import FitResult, fit
from prefkit.training.options import TrainingOptions
from prefkit.training.reference import frozen
from prefkit.training.run import Run
from prefkit.training.storage import explaining, write_text
from prefkit.training.targets import PairingOptions

Reference: TypeAlias = Literal["previous", "sft"]
"""The reference of a stage: the model at the end of the stage before, or that of the first stage in all of them."""


class CurriculumOptions(Options):
    """How comparisons become stages, and what they are trained against; see `prefkit.comparisons.build_curriculum`.

    Defaults are those of Curry-DPO (arXiv 2403.07230).
    """

    stages: int = Field(3, ge=1, description="number of stages")
    mode: Mode = Field("best_vs_rest", description="which pairs of a list are made")
    criterion: Criterion = Field("rating", description="what makes a pair easy")
    scope: Scope = Field("per_prompt", description="one pair of each prompt a stage, or all pairs ordered together")
    drop_ties: bool = Field(True, description="leave out pairs of equal rating")
    order: Literal["easy_first", "hard_first"] = Field("easy_first", description="order of the stages")
    reference: Reference = Field("previous", description="what each stage is trained against")


@dataclass(frozen=True)
class CurriculumResult:
    """What a curriculum came to.

    Args:
        fit: all of it, in the run folder of the whole.
        stages: each stage, in a run folder of its own.
    """

    fit: FitResult
    stages: tuple[FitResult, ...]


def make_stages(
    scorer: Scorer, comparisons: Iterable[Comparison], options: CurriculumOptions, *, batch_size: int = 8
) -> Curriculum:
    """The stages of a curriculum in the order in which they are trained on.

    Args:
        scorer: gives the reference's log-probabilities, for `criterion: logp`.
        comparisons: rated or ranked lists.
        options: how they become stages.
        batch_size: comparisons a forward pass.

    Raises:
        OptionError: as `prefkit.comparisons.build_curriculum`.
    """
    records = list(comparisons)
    failed: list[RecordError] = []
    logps: list[list[float]] | None = None
    if options.criterion == "logp":
        records, logps, failed = _reference_logps(scorer, records, batch_size)
    built = build_curriculum(
        records,
        mode=options.mode,
        criterion=options.criterion,
        scope=options.scope,
        num_stages=options.stages,
        drop_ties=options.drop_ties,
        ref_logps=logps,
    )
    stages = built.stages if options.order == "easy_first" else built.stages[::-1]
    unread = [
        RecordError(bad.problem, field=bad.field, source=bad.source, line=bad.line)
        for bad in getattr(comparisons, "skipped", ())
    ]
    return Curriculum(stages, (*unread, *failed, *built.skipped))


def fit_curriculum(
    scorer: Scorer,
    stages: Sequence[Iterable[Comparison]],
    objective: Objective[Any],
    *,
    output: str | Path,
    reference: Reference = "previous",
    options: TrainingOptions | None = None,
    evaluation: Iterable[Comparison] | None = None,
    pairing: PairingOptions | None = None,
    resume: bool = False,
    cache: str | Path | None = None,
    config: Mapping[str, Any] | None = None,
    skipped: Sequence[RecordError] = (),
) -> CurriculumResult:
    """Train a scorer's model on the stages of a curriculum, one after the other.

    Each stage is a `fit` with an optimiser and a schedule of its own, in the folder `stage-K` of the run folder, and
    can be resumed like any run. `options.epochs` are those of one stage. With `reference="previous"` the divergence
    from the first model is the sum of what the stages allow.

    Args:
        scorer: the model, with its reference if the objective needs one.
        stages: what to learn from, stage by stage; each can be iterated over again and again.
        objective: what is minimised, in every stage.
        output: the run folder, new unless `resume`. Its `metrics.jsonl` holds those of all stages, counted on, its
            `model` is that of the last stage.
        reference: what each stage is trained against.
        options: how to train in each stage.
        evaluation: comparisons to evaluate on during training.
        pairing: how comparisons become what the objective compares.
        resume: go on where the run in `output` was stopped.
        cache: see `fit`.
        config: all options of the run, as they are written to `config.yaml`; default those given here.
        skipped: comparisons that were set aside when the stages were made, to be listed in `skipped.jsonl`.

    Raises:
        OptionError: there are no stages, the model is to be sharded, or as `fit`.
        PrefkitError: as `fit`.
    """
    options, pairing = options or TrainingOptions(), pairing or PairingOptions()
    if not stages:
        raise OptionError("a curriculum needs at least one stage")
    if options.fsdp:
        raise OptionError(
            "training.fsdp does not apply to a curriculum: a sharded model does not go on to a next stage"
        )
    run = Run(Path(output))
    config = config or {
        "objective": repr(objective),
        "pairing": pairing.model_dump(mode="json"),
        "training": options.model_dump(mode="json"),
        "curriculum": {"stages": len(stages), "reference": reference},
    }
    processes.in_first(lambda: _open(run, config, options.seed, resume))
    compared = "reference" in objective.needs
    if compared and reference == "sft":
        scorer.refresh_reference(keep=True)
    results = []
    for number, stage in enumerate(stages, 1):
        if compared and reference == "previous" and number > 1:
            scorer.refresh_reference()
        folder = run.folder / f"stage-{number}"
        results.append(
            fit(
                scorer,
                stage,
                objective,
                output=folder,
                options=options,
                evaluation=evaluation,
                pairing=pairing,
                resume=resume and Run(folder).exists,
                cache=cache,
            )
        )
    processes.in_first(lambda: _finish(run, results, skipped))
    return CurriculumResult(
        FitResult(
            run,
            steps=sum(result.steps for result in results),
            seconds=sum(result.seconds for result in results),
            rows=sum(result.rows for result in results),
            skipped=sum(result.skipped for result in results) + len(skipped),
            metrics=results[-1].metrics,
        ),
        tuple(results),
    )


def _open(run: Run, config: Mapping[str, Any], seed: int, resume: bool) -> None:
    with explaining(run.folder, "choose another folder"):
        if resume and run.exists:
            run.check_config(config)
        else:
            run.begin(config, seed)


def _finish(run: Run, results: Sequence[FitResult], skipped: Sequence[RecordError]) -> None:
    """Put together what the stages left behind."""
    lines, steps = [], 0
    for number, result in enumerate(results, 1):
        lines += [{**line, "stage": number, "step": steps + line["step"]} for line in result.run.metrics]
        steps += result.steps
    aside: list[dict[str, Any]] = [error.to_dict() for error in skipped]
    aside += [line for result in results for line in result.run.skipped]
    with explaining(run.folder, "free some space and resume the run"):
        for name, content in (("metrics.jsonl", lines), ("skipped.jsonl", aside)):
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in content)
            write_text(run.folder / name, text)
        if run.model.is_symlink():
            run.model.unlink()
        # The weights are on the disk once.
        run.model.symlink_to(Path(results[-1].run.folder.name, results[-1].run.model.name), target_is_directory=True)


def _reference_logps(
    scorer: Scorer, records: Sequence[Comparison], batch_size: int
) -> tuple[list[Comparison], list[list[float]], list[RecordError]]:
    """The comparisons that can be encoded, the log-probabilities of their responses, and why others cannot."""
    kept, encoded, failed = [], [], []
    for record in records:
        try:
            encoded.append(scorer.encode(record))
            kept.append(record)
        except RecordError as error:
            failed.append(error.at(record))
    with frozen(scorer):
        scores = score_all(scorer, encoded, batch_size=batch_size, reference=True)
        flat = iter([logp for batch in scores for logp in batch.policy_logps.tolist()])
    return kept, [list(islice(flat, len(record.responses))) for record in kept], failed
