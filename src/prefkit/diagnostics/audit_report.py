"""The page of an audit: one section a question, each with what its figures mean and what one does about them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prefkit.comparisons import Health
from prefkit.diagnostics.audit import NEAR, DataFindings, ModelFindings
from prefkit.diagnostics.drift import ValueTrajectory
from prefkit.diagnostics.intervals import Interval, bootstrap_interval, wilson_interval
from prefkit.diagnostics.label_noise import INFORMATIVE, LabelNoise
from prefkit.diagnostics.ranking import CATEGORIES
from prefkit.diagnostics.run_report import training_plots
from prefkit.diagnostics.votes import Reliability
from prefkit.report import Plot, Report, Table, bars, histogram

SHOWN, SHOWN_TEXTS = 15, 6
"""Rows of a list that the page shows, and of one with texts."""


def audit_report(
    title: str,
    data: DataFindings,
    model: ModelFindings | str | None = None,
    *,
    metrics: Sequence[Mapping[str, Any]] = (),
    values: Sequence[ValueTrajectory] = (),
    gains: Sequence[tuple[str, float, float]] = (),
) -> Report:
    """Put the report of an audit together. What could not be told has a section that says why.

    Args:
        title: title of the page.
        data: see `audit_data`.
        model: see `audit_model`; or why it could say nothing.
        metrics: the lines of a run's `metrics.jsonl`.
        values: stances before and after training, one trajectory a topic.
        gains: tokens that gained most at the first place of a response, with their probability before and after.
    """
    why, model = (model, None) if isinstance(model, str) else ("", model)
    report = Report(title, _summary(data, model))
    _health(report, data.health)
    _style(report, data)
    _noise(report, data, model)
    _people(report, data)
    _cycles(report, data)
    _strength(report, data)
    _alike(report, data, model)
    if model is not None:
        _hard(report, model)
        _ranked(report, model)
        _moved(report, model, gains)
    if why:
        report.section("What the model makes of it", f"Not told: {why}.")
    if plots := training_plots(metrics):
        report.section(
            "The run, step by step",
            "If the margin grows while both curves of log-probability fall, training pushed responses down rather than "
            "good ones up: add an imitation term (regularisers: sft) or take rows with a high CHES out.",
            *plots,
        )
    _values(report, values)
    return report


def _summary(data: DataFindings, model: ModelFindings | None) -> str:
    text = f"{data.health.rows:,} comparisons, {data.decided:,} decided pairs."
    if model is not None:
        text += f" A model scored {len(model.pairs):,} pairs of a random sample."
        if model.skipped:
            text += f" {len(model.skipped)} comparisons of the sample did not fit it."
    return text


def _health(report: Report, health: Health) -> None:
    rows: list[list[Any]] = [
        ["format", health.format or "in memory"],
        ["comparisons", health.rows],
        ["bad rows, set aside", health.bad_rows],
        ["prompts", health.prompts],
        ["responses a prompt", health.responses_per_prompt],
        ["ties", health.ties],
        ["duplicates", health.duplicates],
        ["pairs seen with both labels", health.conflicts],
        ["by one and the same annotator", health.contradictions],
        ["identical pairs", health.identical],
        ["annotators", health.annotators or "not given"],
        ["judgements", ", ".join(f"{name} {count}" for name, count in health.kinds.items())],
    ]
    parts: list[Table | Plot] = [Table(["what", "value"], rows, "Format and health")]
    if health.reasons:
        parts.append(Table(["problem", "rows"], list(health.reasons.items()), "Bad rows by reason"))
    report.section(
        "Format and health",
        "Bad rows take no part in training, duplicates count several times: repair the first, drop the second.",
        *parts,
    )


def _style(report: Report, data: DataFindings) -> None:
    if not data.decided:
        report.section("Length and style", "No pair has a winner, so nothing can be said about what winners look like.")
        return
    biases = {name: bias for name, bias in data.style.biases().items() if bias.differ >= 0.01}
    order = sorted(biases, key=lambda name: -abs(biases[name].wins.mean - 0.5))
    table = Table(
        ["more of", "wins", "pairs that differ in it"],
        [[name, biases[name].wins, biases[name].differ] for name in order],
        "How often the response with more of something wins",
    )
    first = data.health.first_wins
    position = Interval(first.value, *first.interval, first.total) if first.total else None
    position_table = Table(
        ["what", "value"],
        [["the response listed first wins (always, where files list the chosen one first)", position]],
        "Position",
    )
    shown: list[Table | Plot] = [table, position_table]
    if biases:
        winners = {name: biases[name].wins for name in order}
        shown.append(bars(winners, title="Style of winners", x="share of wins", baseline=0.5))
    report.section(
        "Length and style",
        "Near 0.5 a property says nothing about the label; far from it a model can learn the property instead of "
        "quality: take a loss that discounts it (length_dpo, simpo) or balance the data.",
        *shown,
    )


def _noise(report: Report, data: DataFindings, model: ModelFindings | None) -> None:
    rows: list[list[Any]] = []
    parts: list[Table | Plot] = []
    reasons: list[str] = []
    grouped = data.within_groups
    for name, found in (("judgements of the same pair", data.reliability), ("the same, within one group", grouped)):
        if isinstance(found, Reliability):
            rows.append([name, found.noise, found.pairs])
        elif found is not None:
            reasons.append(f"From votes: {found}.")
    votes = data.reliability
    if isinstance(votes, Reliability) and votes.by_annotator:
        people = sorted(votes.by_annotator.items(), key=lambda item: item[1][0])
        if len(people) > 2 * SHOWN:
            people = people[:SHOWN] + people[-SHOWN:]
        table = [[name, right, count] for name, (right, count) in people]
        parts.append(
            Table(["annotator", "estimated share right", "judgements"], table, "Annotators, least reliable first")
        )
    noise = model.noise if model is not None else "no model was given (--model)"
    if isinstance(noise, LabelNoise):
        assert model is not None
        rows.append(["sure predictions of the model's states", noise.noise, noise.noise.n])
        if noise.accuracy.low < INFORMATIVE:
            reasons.append(
                f"The model's states predict held-out labels with an accuracy of {noise.accuracy} only, so do not rely "
                "on the estimate from them."
            )
        if len(noise.by_group) > 1:
            table = [
                [name, wrong, count] for name, (wrong, count) in sorted(noise.by_group.items(), key=_worst)[:SHOWN]
            ]
            parts.append(
                Table(["annotator or source", "estimated share wrong", "pairs"], table, "By annotator or source")
            )
        parts += _suspects(model, noise)
    else:
        reasons.append(f"From a model: {noise}.")
    if rows:
        parts.insert(0, Table(["estimated from", "share of wrong labels", "pairs"], rows, "Label noise"))
    report.section(
        "Label noise",
        " ".join(
            [
                "Wrong labels bound what can be learned and make plain DPO contradict itself: above a share of 0.1 "
                "take a loss that knows of it (rdpo with flip_rate, or lcpo), and look at the suspect rows first.",
                *reasons,
            ]
        ),
        *parts,
    )


def _worst(item: tuple[str, tuple[float, int]]) -> float:
    return -item[1][0]


def _suspects(model: ModelFindings, noise: LabelNoise) -> list[Table]:
    order = np.argsort(noise.confidence, kind="stable")[:SHOWN_TEXTS]
    rows = [
        [model.pairs[i].source, model.pairs[i].line, float(noise.confidence[i]), model.pairs[i].preview]
        for i in order.tolist()
        if noise.confidence[i] < 0.5
    ]
    columns = ["source", "line", "probability that the label is right", "chosen against rejected"]
    return [Table(columns, rows, "Most suspect rows")] if rows else []


def _people(report: Report, data: DataFindings) -> None:
    groups = data.groups
    if isinstance(groups, str):
        hint = "" if data.health.annotators else " The data name no annotators (field `annotator`)."
        report.section("Disagreement between people", f"Not told: {groups}.{hint}")
        return
    rows = [
        ["agreement of two judgements of a pair", groups.agreement],
        ["the same within groups", groups.within],
        ["groups that predict held-out judgements best", groups.groups],
        ["what they add to a judgement's log-likelihood (nats)", groups.gain],
        ["annotators looked at", groups.annotators],
    ]
    parts = [Table(["what", "value"], rows, "Disagreement")]
    if groups.groups > 1:
        members = [[place + 1, len(names), ", ".join(names[:SHOWN])] for place, names in enumerate(groups.members)]
        parts.append(Table(["group", "annotators", "for instance"], members, "Groups"))
    report.section(
        "Disagreement between people",
        "One group means that disagreement is noise, to be averaged; several mean that people want different things, "
        "which no single policy satisfies: train one a group, or a model of ideal points (pal).",
        *parts,
    )


def _cycles(report: Report, data: DataFindings) -> None:
    found = data.cycles
    if isinstance(found, str):
        report.section("Circles", f"Not told: {found}.")
        return
    rows = [
        ["triads of responses, all compared", found.triads],
        ["share that goes round", found.cyclic],
        ["what noise alone would make", _noise_circles(data)],
    ]
    report.section(
        "Circles",
        "Where A beats B, B beats C and C beats A no reward can order the three: beyond what noise makes, take an "
        "objective or a model for general preferences (ipo, gpm) in place of Bradley-Terry.",
        Table(["what", "value"], rows, "Circles"),
    )


def edge_noise(data: DataFindings) -> float:
    """Upper end of the share of wrong labels, by which circles are judged; what votes say, else a quarter."""
    found = data.within_groups or data.reliability
    return min(found.noise.high, 0.5) if isinstance(found, Reliability) else 0.25


def _noise_circles(data: DataFindings) -> float:
    noise = edge_noise(data)
    return noise * (1 - noise)


def _strength(report: Report, data: DataFindings) -> None:
    if not data.strengths:
        report.section(
            "Preference strength",
            "The data do not say how strongly responses were preferred (ratings, probabilities or `strength`), so "
            "every pair counts alike; if it can be had, osp and madpo make use of it.",
        )
        return
    values = np.array(data.strengths)
    rows = [
        ["pairs whose strength is known", wilson_interval(data.stated, data.decided)],
        *_quantiles("strength", values),
    ]
    report.section(
        "Preference strength",
        "Weak preferences are the least reliable labels: leave them out (pairing.min_margin), or take an objective "
        "that reads the strength (osp, madpo, weights: strength).",
        Table(["what", "value"], rows, "Strength"),
        histogram({"pairs": values}, title="Preference strength", x="strength (the data's own scale)"),
    )


def _alike(report: Report, data: DataFindings, model: ModelFindings | None) -> None:
    parts: list[Table | Plot] = []
    rows: list[list[Any]] = []
    if data.decided:
        rows.append([f"pairs that share at least {NEAR} of their words", wilson_interval(data.near, data.decided)])
    if model is not None:
        if not np.isnan(model.similarity).all():
            risk = wilson_interval(int(model.at_risk.sum()), len(model.at_risk))
            rows.append([f"pairs at risk of displacement (token similarity at least {NEAR})", risk])
        rows.append(["median CHES a token", float(np.median(model.ln_ches))])
        order = np.argsort(-model.ln_ches, kind="stable")[:SHOWN_TEXTS].tolist()
        table = [
            [model.pairs[i].source, model.pairs[i].line, float(model.ln_ches[i]), float(model.ches[i]),
             float(model.similarity[i]), model.pairs[i].preview]
            for i in order
        ]  # fmt: skip
        columns = ["source", "line", "CHES a token", "CHES", "token similarity", "chosen against rejected"]
        parts.append(Table(columns, table, "Rows that displace most"))
        parts.append(histogram({"pairs": model.ln_ches}, title="CHES a token", x="CHES a token"))
    if rows:
        parts.insert(0, Table(["what", "value"], rows, "Likeness"))
    text = (
        "Pairs whose two responses look alike teach a model to lower both, and the mass may go to the opposite: train "
        "on the rows with the lowest CHES a token, or add an imitation term (ches)."
    )
    if model is None:
        text += " CHES needs a model (--model)."
    report.section("Likeness and displacement", text, *parts)


def _hard(report: Report, model: ModelFindings) -> None:
    found = model.difficulty()
    nats = found.nats.numpy()
    rows = [
        ["pairs that the model ranks wrongly before training", _mean(nats > 0)],
        *_quantiles("difficulty (nats)", nats),
        [f"pairs that need a loss below 0.1 (beta {model.beta})", _mean(found.loss_threshold.numpy() < 0.1)],
    ]
    report.section(
        "Difficulty under the model before training",
        "A pair is put right only when its DPO loss falls below -log sigmoid(beta c), c the nats by which it is ranked "
        "wrongly: with many hard pairs train on good responses first (sft), or give the reference less weight "
        "(dpo_gamma).",
        Table(["what", "value"], rows, "Difficulty"),
        histogram({"pairs": nats}, title="Difficulty", x="log-probability of rejected less chosen (nats)"),
    )


def _ranked(report: Report, model: ModelFindings) -> None:
    shown: dict[str, Interval | float] = {name: _mean(values.numpy()) for name, values in model.accuracies().items()}
    for name, per_token in (("", False), (" a token", True)):
        shown[f"ideal{name} at beta {model.beta}"] = model.ideal(length_normalize=per_token, betas=(model.beta,)).median
        ideal = model.ideal(length_normalize=per_token)
        shown[f"ideal{name}, median of five beta"] = Interval(
            ideal.median, ideal.lowest, ideal.highest, len(model.pairs)
        )
    report.section(
        "Ranking accuracy and its ideal",
        "Ranking accuracy asks whether the chosen response is the more likely one, reward accuracy whether training "
        "raised it more; the ideal is what a perfect optimum would rank rightly (interval: over beta), so a large gap "
        "is room that this objective does not use. Single votes count as three raters of four.",
        Table(["figure", "value"], list(shown.items()), "Ranking accuracy"),
        bars(shown, title="Ranking accuracy and its ideal", x="share of pairs", baseline=0.5),
    )


def _moved(report: Report, model: ModelFindings, gains: Sequence[tuple[str, float, float]]) -> None:
    flips, moved = model.flips(), model.displacement()
    if flips is None or moved is None or model.after is None:
        return
    change = (model.after - model.before).numpy()
    rows: list[list[Any]] = []
    for place, name in enumerate(CATEGORIES):
        own = flips.category.numpy() == place
        if own.any():
            mine = change[:, own]
            both = wilson_interval(int((mine < 0).all(0).sum()), int(own.sum()))
            rows.append([name, float(own.mean()), float(mine[0].mean()), float(mine[1].mean()), both])
    columns = ["ranked before->after", "share", "chosen (nats)", "rejected (nats)", "both fell"]
    overall: list[list[Any]] = [
        ["change of chosen (nats)", moved.chosen_change],
        ["change of rejected (nats)", moved.rejected_change],
        ["chosen fell", moved.chosen_fell],
        ["both fell", moved.both_fell],
        ["flip rate: put right, of those ranked wrongly before", None if flips.none_wrong else flips.flip_rate],
        ["displaced: the loss fell, and chosen responses with it", moved.displaced],
    ]
    report.section(
        "What training moved",
        "If chosen responses became less likely, the margin was won by pushing rejected ones down further: where that "
        "matters take dpop, an imitation term, or fewer rows with a high CHES.",
        Table(["what", "value"], overall, "What training moved"),
        Table(columns, rows, "By category"),
        *([Table(["token", "before", "after"], gains, "First tokens that gained most")] if gains else []),
        histogram({"chosen": change[0], "rejected": change[1]}, title="Change of log-probability", x="nats"),
    )


def _values(report: Report, values: Sequence[ValueTrajectory]) -> None:
    if not values:
        return
    parts: list[Table | Plot] = []
    for each in values:
        parts += [each.table(), each.plot()]
    report.section(
        "Value drift",
        "How stances on each topic moved in training: a drift that nobody asked for comes from pairs whose chosen and "
        "rejected responses differ in stance, so look at the value gap of the data, or hold the model closer to the "
        "one before (a larger beta).",
        *parts,
    )


def _quantiles(what: str, values: Any) -> list[list[Any]]:
    names = (("lowest tenth", 0.1), ("median", 0.5), ("highest tenth", 0.9))
    return [[f"{name} of {what}", float(np.quantile(values, q))] for name, q in names]


def _mean(values: Any) -> Interval:
    array = np.asarray(values, dtype=np.float64)
    return bootstrap_interval(array) if len(array) > 1 else Interval(float(array[0]), -math.inf, math.inf, 1)
