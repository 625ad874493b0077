"""A training run on images: from a configuration to an aligned pipeline, its evaluation, pictures, report and card."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from prefkit.comparisons import Comparison
from prefkit.diagnostics import Evaluation, before_after, evaluate, run_report
from prefkit.diffusion import (
    Codec,
    DiffusionScorer,
    Exchanged,
    PipelineOptions,
    Rescored,
    caption_of,
    draw_images,
    fill_holes,
    load_inpainting_judge,
    load_pipeline,
    make_scorer,
    to_arrays,
)
from prefkit.errors import OptionError, PrefkitError, RecordError
from prefkit.objectives import make_objective
from prefkit.options import Options
from prefkit.recipes.image_loops import DemonstrationOptions, TruncatedOptions, begin, content_key, repeat, run_loop
from prefkit.recipes.painting import EncodedHole, Holes, Painting, PrefPaintOptions, compared, together
from prefkit.recipes.run import DataOptions, comparisons, first_prompts
from prefkit.report import Plot, Table, model_card, picture_grid
from prefkit.training import FitResult, PairingOptions, TrainingOptions, fit, processes


class FeedbackOptions(Options):
    """A scorer whose scores go with the comparisons; see `prefkit.diffusion.Rescored`."""

    scorer: str = Field(description="`clip:FOLDER`, a CLIP model such as PickScore")
    order: Literal["score", "label"] = Field("score", description="the larger score is the better image, or people say")


class PictureOptions(Options):
    """Images that the report shows, before and after, from the same noise."""

    samples: int = Field(4, ge=0, description="captions, the first different ones")
    steps: int = Field(25, ge=1, description="steps of the sampler")
    guidance: float = Field(7.5, description="scale of classifier-free guidance; 1 is none")


class ImageRunConfig(Options):
    """Everything that decides a run on images; every option but `model.path`, `data` and `output` has a default."""

    model: PipelineOptions = Field(description="the pipeline and its reference")
    data: DataOptions = Field(description="the comparisons")
    skip_bad: bool = Field(False, description="set unusable rows aside and go on; False stops at the first")
    method: (
        Annotated[DemonstrationOptions | TruncatedOptions | PrefPaintOptions, Field(discriminator="kind")] | None
    ) = Field(
        None, description="train without pairs: `demonstrations`, `truncated` or `prefpaint`, instead of `objective`"
    )
    negative: bool = Field(False, description="learn what is disliked, for the negative branch of guidance")
    feedback: FeedbackOptions | None = Field(None, description="label by a scorer instead of people")
    pairing: PairingOptions = Field(default_factory=PairingOptions, description="how comparisons become pairs")
    objective: dict[str, Any] = Field({}, description="what is minimised: `kind` and its options; dpo with beta 5000")
    training: TrainingOptions = Field(default_factory=TrainingOptions, description="how the model is trained")
    report: PictureOptions = Field(default_factory=PictureOptions, description="what the report shows")
    output: str = Field(description="the run folder")

    @field_validator("objective", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        given = {"kind": value} if isinstance(value, str) else dict(value or {})
        # Denoising errors are small: the temperature of text would hardly move anything.
        plain = {"kind": "dpo", "beta": 5000.0} if given.get("kind", "dpo") == "dpo" else {}
        return {**plain, **given}


@dataclass(frozen=True)
class ImageRunResult:
    """What a run on images came to.

    Args:
        fit: the training itself.
        before: the policy on held-out comparisons, before training; None without any.
        after: the same after training.
        pictures: images of the same captions and seeds before and after; None if none were asked for.
        report: path of the report.
        wins: fillings of held-out holes before and after, by the reward; None for other runs.
    """

    fit: FitResult
    before: Evaluation | None
    after: Evaluation | None
    pictures: Plot | None
    report: Any
    wins: Table | None = None

    def tables(self) -> list[Table]:
        """What a person wants to see at the end of a run."""
        if self.wins is not None:
            return [self.wins]
        return [] if self.before is None or self.after is None else [before_after(self.before, self.after)]


class _Strict:
    """Comparisons whose unusable rows are errors.

    Args:
        comparisons: can be iterated over again and again.
    """

    def __init__(self, comparisons: Iterable[Comparison]) -> None:
        self.comparisons = comparisons

    def __iter__(self) -> Iterator[Comparison]:
        yield from self.comparisons
        for bad in getattr(self.comparisons, "skipped", ()):
            raise refused(RecordError(bad.problem, field=bad.field, source=bad.source, line=bad.line))


class _StrictCodec:
    """A codec to which a comparison that cannot be encoded is an error.

    Args:
        codec: encodes.
    """

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.collate, self.empty, self.key = codec.collate, codec.empty, codec.key
        self.wake, self.rest = codec.wake, codec.rest

    def encode(self, comparison: Comparison) -> dict[str, Any]:
        """See `Codec.encode`.

        Raises:
            PrefkitError: it cannot be encoded; says where it stands.
        """
        try:
            return self.codec.encode(comparison)
        except RecordError as error:
            raise refused(error.at(comparison)) from error


def refused(error: RecordError) -> PrefkitError:
    """The error of a row that stops a run."""
    return PrefkitError(f"{error}; --skip-bad (skip_bad: true) sets such rows aside and goes on")


def run_images(config: ImageRunConfig, *, resume: bool = False) -> ImageRunResult | None:
    """Train, evaluate, draw and report.

    Args:
        config: what to do.
        resume: go on with the run in the output folder.

    Returns:
        The result, in the first process; None in the others of a distributed run.

    Raises:
        OptionError: an option does not apply, or the pipeline cannot be loaded.
        PrefkitError: a row cannot be used and `skip_bad` is off, or none can be.
    """
    check_data(config.data)
    if isinstance(config.method, PrefPaintOptions):
        return _paint(config, config.method, resume)
    training, held_out = (_judged(part, config) for part in comparisons(config.data))
    wanted = dict(config.objective)
    if isinstance(training, Rescored) and wanted["kind"] == "smpo" and "score_range" not in wanted:
        low, high = training.score_range
        wanted["score_range"] = high - low
    if config.negative:
        training, held_out = (part if part is None else Exchanged(part) for part in (training, held_out))
    assert training is not None
    objective = make_objective(wanted)
    scorer = load_pipeline(config.model, seed=config.training.seed).to(processes.device())
    if not config.skip_bad:
        training, held_out = _Strict(training), None if held_out is None else _Strict(held_out)
    captions = [caption_of(prompt) for prompt in first_prompts(training, config.report.samples)]
    first = processes.rank() == 0
    drawn = _draw(scorer, captions, config.report) if first and captions else None
    if config.method is not None:
        return _without_pairs(config, scorer, training, captions, drawn, resume)
    if not config.skip_bad:
        scorer.codec = _StrictCodec(scorer.codec)
    before = _evaluate(scorer, held_out, config) if first and held_out is not None else None
    result = fit(
        scorer,
        training,
        objective,
        output=config.output,
        options=config.training,
        evaluation=held_out,
        pairing=config.pairing,
        resume=resume,
        config={**config.model_dump(mode="json"), "objective": wanted},
    )
    if processes.rank() != 0:
        return None
    # What is measured is what was saved.
    del scorer
    saved = saved_pipeline(config.model, str(result.run.model))
    trained = load_pipeline(saved, seed=config.training.seed).to(processes.device())
    after = _evaluate(trained, held_out, config, reference=True) if held_out is not None else None
    pictures = None
    if drawn is not None:
        rows = {"before": drawn, "after": _draw(trained, captions, config.report)}
        pictures = picture_grid(rows, title="The same captions and noise", columns=captions)
        pictures.figure.savefig(result.run.folder / "samples.png")
    return ImageRunResult(result, before, after, pictures, _report(config, wanted, result, before, after, pictures))


def _without_pairs(
    config: ImageRunConfig,
    scorer: DiffusionScorer,
    training: Iterable[Comparison],
    captions: Sequence[str],
    drawn: Any,
    resume: bool,
) -> ImageRunResult:
    """A run of a loop that takes no pairs."""
    assert config.method is not None
    assert not isinstance(config.method, PrefPaintOptions)
    _alone(config.method.kind)
    skipped: list[RecordError] | None = [] if config.skip_bad else None
    data = list(training)
    result = run_loop(
        scorer,
        data,
        config.method,
        config.training,
        output=Path(config.output),
        config=config.model_dump(mode="json"),
        skipped=skipped,
        resume=resume,
    )
    run = result.run
    pictures = None
    if drawn is not None:
        trained = load_pipeline(saved_pipeline(config.model, str(run.model))).to(processes.device())
        rows = {"before": drawn, "after": _draw(trained, captions, config.report)}
        pictures = picture_grid(rows, title="The same captions and noise", columns=captions)
        pictures.figure.savefig(run.folder / "samples.png")
    report = _report(config, {"kind": config.method.kind}, result, None, None, pictures)
    return ImageRunResult(result, None, None, pictures, report)


def _paint(config: ImageRunConfig, method: PrefPaintOptions, resume: bool) -> ImageRunResult:
    """A run of PrefPaint on a file of images with holes."""
    _alone(method.kind)
    given = config.data.model_fields_set - {"path", "limit", "held_out"}
    if given or not isinstance(config.data.path, str):
        raise OptionError(f"data.{min(given, default='path')}: images with holes are read from one file as it is")
    judge = load_inpainting_judge(method.reward).to(processes.device())
    scorer = load_pipeline(config.model, seed=config.training.seed).to(processes.device())
    run = begin(
        config.training,
        method.kind,
        output=Path(config.output),
        config=config.model_dump(mode="json"),
        resume=resume,
    )
    try:
        holes = Holes(scorer, judge, Path(config.data.path), limit=config.data.limit, strict=not config.skip_bad)
    except RecordError as error:
        raise refused(error) from error
    generator = torch.Generator().manual_seed(config.training.seed)
    order = torch.randperm(len(holes.items), generator=generator).tolist()
    count = round(config.data.held_out * len(order))
    held_out, training = ([holes.items[place] for place in part] for part in (order[:count], order[count:]))
    shown = held_out or training[: config.report.samples]
    run.check_data({"training": content_key(hole.key for hole in training)})
    before = _fill(scorer, shown, config.report) if shown else None
    loop = Painting(scorer, training, judge, method, config.training.batch_size, generator)
    result = repeat(
        scorer,
        loop,
        config.training,
        run=run,
        generator=generator,
        rows=len(training),
        skipped=holes.skipped,
        resume=resume,
    )
    pictures = wins = None
    if before is not None:
        trained = load_pipeline(saved_pipeline(config.model, str(run.model))).to(processes.device())
        after = _fill(trained, shown, config.report)
        if held_out:
            wins = compared(judge, held_out, after, before).table("Fillings of held-out holes, by the reward")
        few = slice(config.report.samples)
        if shown[few]:
            seen = torch.stack([hole.picture for hole in shown[few]])
            rows = {name: to_arrays(x) for name, x in (("hole", seen), ("before", before[few]), ("after", after[few]))}
            pictures = picture_grid(rows, title="The same holes and noise")
            pictures.figure.savefig(run.folder / "samples.png")
    report = _report(config, {"kind": method.kind}, result, None, None, pictures, wins)
    return ImageRunResult(result, None, None, pictures, report, wins)


def _fill(scorer: DiffusionScorer, holes: Sequence[EncodedHole], options: PictureOptions) -> Tensor:
    steps = min(options.steps, scorer.schedule.steps)
    return fill_holes(scorer, together(holes)[0], list(range(len(holes))), steps=steps)


def _alone(kind: str) -> None:
    if processes.count() > 1:
        raise OptionError(f"method: {kind} runs in one process")


def saved_pipeline(options: PipelineOptions, path: str) -> PipelineOptions:
    """How to load what a run of these options has saved, with the reference that it was compared with."""
    loaded = ("path", "revision", "variant")
    changed: dict[str, Any] = {"path": path, "revision": None, "variant": None, "lora": None}
    if options.reference is None:
        names = ("reference", "reference_revision", "reference_variant")
        changed |= {name: getattr(options, own) for name, own in zip(names, loaded, strict=True)}
    return options.model_copy(update=changed)


def _judged(part: Iterable[Comparison] | None, config: ImageRunConfig) -> Iterable[Comparison] | None:
    if part is None or config.feedback is None:
        return part
    return Rescored(part, make_scorer(config.feedback.scorer), config.feedback.order)


def _evaluate(
    scorer: DiffusionScorer, held_out: Iterable[Comparison], config: ImageRunConfig, reference: bool = False
) -> Evaluation:
    return evaluate(
        scorer,
        held_out,
        reference=reference,
        batch_size=config.training.batch_size,
        strategy=config.pairing.strategy,
        min_margin=config.pairing.min_margin,
        per_token=False,
    )


def _draw(scorer: DiffusionScorer, captions: Sequence[str], options: PictureOptions) -> Any:
    seeds = list(range(len(captions)))
    steps = min(options.steps, scorer.schedule.steps)
    return to_arrays(draw_images(scorer, captions, seeds, steps=steps, guidance=options.guidance))


def _report(
    config: ImageRunConfig,
    objective: Mapping[str, Any],
    result: FitResult,
    before: Evaluation | None,
    after: Evaluation | None,
    pictures: Plot | None,
    wins: Table | None = None,
) -> Any:
    folder = result.run
    source = config.data.path if isinstance(config.data.path, str) else ", ".join(config.data.path)
    report = run_report(
        f"{objective['kind']} on {source}",
        metrics=folder.metrics,
        before=before,
        after=after,
        settings=folder.config,
        skipped=folder.skipped,
        environment=folder.environment,
    )
    if wins is not None:
        report.section("Held out", "Win rate of the trained pipeline over the one before.", wins)
    if pictures is not None:
        report.section("Images", f"{pictures.title}, before and after training.", pictures)
    card = model_card(
        folder.folder.name,
        base_model=config.model.path,
        objective=objective["kind"],
        data={"source": source, "comparisons": result.rows, "set aside": result.skipped},
        settings=folder.config,
        figures=[] if before is None or after is None else [before_after(before, after)],
    )
    (folder.model / "README.md").write_text(card, encoding="utf-8")
    return report.write(folder.folder / "report.html")


def check_data(options: DataOptions) -> None:
    """Refuse data that are no images.

    Raises:
        OptionError: they are the built-in comparisons of texts.
    """
    if options.path == "builtin":
        raise OptionError("data.path: the built-in comparisons are texts; give a file of image comparisons")
