"""The report of a training run: what was asked, how it went, and what it changed, on one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

from prefkit.diagnostics.accuracy import LABELS
from prefkit.diagnostics.evaluate import Evaluation, before_after
from prefkit.report import Curve, Plot, Report, Table, bars, curves, histogram

Metrics = Sequence[Mapping[str, Any]]
"""One mapping a logged step: `step` and what was measured there."""

PANELS: Mapping[str, Mapping[str, str]] = {
    "Loss": {"loss": "training", "eval_loss": "held out"},
    "Reward margin (nats)": {"reward_margin": "training", "eval_reward_margin": "held out"},
    "Reward accuracy": {"reward_accuracy": "training", "eval_reward_accuracy": "held out"},
    "Ranking accuracy": {"ranking_accuracy": "training", "eval_ranking_accuracy": "held out"},
    "Pairs that changed sides (share)": {
        "put_right": "put right, of those ranked wrongly before",
        "spoilt": "spoilt, of those ranked rightly before",
        "eval_put_right": "put right, held out",
        "eval_spoilt": "spoilt, held out",
    },
    "Displacement (share of pairs)": {
        "chosen_fell": "chosen fell",
        "both_fell": "both fell",
        "eval_chosen_fell": "chosen fell, held out",
        "eval_both_fell": "both fell, held out",
    },
    "Length (tokens)": {"chosen_length": "chosen", "rejected_length": "rejected"},
    "Log-probability change (nats)": {
        "chosen_logp_change": "chosen",
        "rejected_logp_change": "rejected",
        "eval_chosen_logp_change": "chosen, held out",
        "eval_rejected_logp_change": "rejected, held out",
    },
    "Log-probability (nats)": {
        "chosen_logp": "chosen",
        "rejected_logp": "rejected",
        "eval_chosen_logp": "chosen, held out",
        "eval_rejected_logp": "rejected, held out",
    },
    "Reward": {
        "chosen_reward": "chosen",
        "rejected_reward": "rejected",
        "eval_chosen_reward": "chosen, held out",
        "eval_rejected_reward": "rejected, held out",
    },
    "KL estimate (nats)": {"kl": "training", "eval_kl": "held out"},
}
"""The plots of a run: the metrics that each one draws, and what the lines are called."""

SHOWN_ROWS = 100
"""Rows set aside that the page lists."""

SHOWN_LOWEST, SHOWN_BARS = 20, 30
"""Rows with the lowest figures, and learned values, that the page shows."""


def run_report(
    title: str,
    *,
    metrics: Metrics = (),
    before: Evaluation | None = None,
    after: Evaluation | None = None,
    samples: Sequence[Mapping[str, str]] = (),
    settings: Mapping[str, Any] | None = None,
    skipped: Sequence[Mapping[str, Any]] = (),
    environment: Mapping[str, Any] | None = None,
    learned: Mapping[str, Any] | None = None,
    row_figures: Sequence[Mapping[str, str]] = (),
    pictures: Sequence[Plot] = (),
) -> Report:
    """Put the report of a run together; a part without data is left out.

    Args:
        title: title of the page.
        metrics: the lines of `metrics.jsonl`; `PANELS` names those that are drawn.
        before: evaluation of the untrained policy on held-out comparisons.
        after: evaluation of the trained policy on the same comparisons.
        samples: continuations side by side, each with `prompt`, `before` and `after`.
        settings: the resolved configuration, nested as it was written.
        skipped: the rows that were set aside: the lines of `skipped.jsonl`.
        environment: versions, platform and seed.
        learned: what the objective learned, by part.
        row_figures: what the objective makes of each row: `row`, `place`, and a figure or more.
        pictures: what the objective makes of each token of some texts.

    Raises:
        PrefkitError: `before` and `after` are of different comparisons.
    """
    report = Report(title, _summary(before, after))
    if after is not None:
        parts = [after.table("Held-out comparisons") if before is None else before_after(before, after)]
        report.section("Held-out comparisons", _EVALUATED, *parts, *_distributions(before, after))
    if drawn := training_plots(metrics):
        report.section("Training", _TRAINED, *drawn)
    if learned:
        report.section("What the objective learned", _LEARNED, *_learned(learned))
    if row_figures:
        report.section("Rows, as the objective sees them", _ROWS, *_lowest(row_figures))
    if pictures:
        report.section("Tokens, as the objective sees them", _TOKENS, *pictures)
    if samples:
        rows = [[sample["prompt"], sample["before"], sample["after"]] for sample in samples]
        text = "The same prompts continued by the policy before and after training."
        report.section("Continuations", text, Table(["prompt", "before", "after"], rows, "Side by side"))
    if skipped:
        columns = ["source", "line", "field", "problem"]
        shown = [[row.get(name) for name in columns] for row in skipped[:SHOWN_ROWS]]
        text = f"Rows that could not be used and took no part in the run: {len(skipped)}."
        if len(skipped) > SHOWN_ROWS:
            text += f" The first {SHOWN_ROWS} are shown; skipped.jsonl has all."
        report.section("Rows set aside", text, Table(columns, shown, "Reasons"))
    if settings:
        table = Table.from_mapping(dict(_flat(settings)), "Resolved configuration", ("option", "value"))
        report.section("Settings", "Every option of the run, defaults included.", table)
    if environment:
        table = Table.from_mapping(dict(_flat(environment)), "Versions and machine")
        report.section("Environment", "What the run was made with.", table)
    return report


_EVALUATED = (
    "Comparisons that took no part in training. Intervals hold 95% and are over prompts; the change is paired. Ranking "
    "accuracy asks which response the policy finds more likely, reward accuracy which one it made more likely relative "
    "to the reference."
)
_TRAINED = (
    "The margin grows when chosen responses become more likely, or when rejected ones lose more than chosen ones do: "
    "the plot of log-probability changes tells the two apart. The KL estimate is made on the responses of the data: "
    "it is one only as far as the reference could have written them."
)


_LEARNED = "Values that were learned beside the policy, as they stood at the end."
_ROWS = (
    "The rows to which the objective gives the lowest figures; rows.csv has all. A low label confidence says that the "
    "model finds the label hard to believe: look at these rows first."
)
_TOKENS = "Held-out texts; the darker a token, the more it counts. Tokens of weight 0 are left white."


def _learned(learned: Mapping[str, Any]) -> list[Table | Plot]:
    values = dict(_flat(learned))
    shown: list[Table | Plot] = [Table.from_mapping(values, "Learned")]
    for part, found in learned.items():
        for name, group in found.items():
            if isinstance(group, Mapping) and len(group) > 1:
                lowest = sorted(group.items(), key=itemgetter(1))[:SHOWN_BARS]
                title = f"{part}: {name}" + (
                    f", lowest {SHOWN_BARS} of {len(group)}" if len(group) > SHOWN_BARS else ""
                )
                shown.append(bars(dict(lowest), title=title))
    return shown


def _lowest(rows: Sequence[Mapping[str, str]]) -> list[Table]:
    tables = []
    for name in (name for name in rows[0] if name not in ("row", "place")):
        known = sorted((float(row[name]), row["place"]) for row in rows if row[name])
        shown = [[place, value] for value, place in known[:SHOWN_LOWEST]]
        tables.append(Table(["place", name], shown, f"Lowest {name.replace('_', ' ')} of {len(known)} rows"))
    return tables


def _summary(before: Evaluation | None, after: Evaluation | None) -> str:
    if after is None:
        return ""
    name = "ranking_accuracy"
    if before is None:
        return f"Held-out {LABELS[name]}: {after.summary[name]} (95% interval)."
    return f"Held-out {LABELS[name]} went from {before.summary[name]} to {after.summary[name]} (95% intervals)."


def _distributions(before: Evaluation | None, after: Evaluation) -> list[Plot]:
    """How the score difference of chosen and rejected responses is spread, before and after."""
    gaps = {
        name: (one.scores.policy_chosen_logps - one.scores.policy_rejected_logps).numpy()
        for name, one in (("before", before), ("after", after))
        if one is not None
    }
    plots = [histogram(gaps, title="Log-probability of chosen minus rejected", x="nats")]
    if "chosen_logp_change" in after.figures:
        changes = {side: after.figures[f"{side}_logp_change"] for side in ("chosen", "rejected")}
        plots.append(histogram(changes, title="Change of log-probability against the reference", x="nats"))
    return plots


def training_plots(metrics: Metrics) -> list[Plot]:
    """The curves of a run, chosen and rejected apart; of `PANELS` those that were logged."""
    return [plot for panel, lines in PANELS.items() if (plot := _panel(panel, lines, metrics))]


def _panel(title: str, lines: Mapping[str, str], metrics: Metrics) -> Plot | None:
    found: dict[str, Curve] = {}
    for metric, name in lines.items():
        points = [(row["step"], row[metric]) for row in metrics if row.get(metric) is not None]
        if points:
            steps, values = zip(*points, strict=True)
            found[name] = Curve(steps, values)
    return curves(found, title=title) if found else None


def _flat(values: Mapping[str, Any], prefix: str = "") -> Sequence[tuple[str, Any]]:
    """Nested options under dotted names."""
    rows: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", value))
    return rows
