"""`prefkit audit` and `prefkit advise`: what comparisons can teach a model, and which method fits them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.console import Console

from prefkit.cli.common import BatchSize, MaxLength, Precision
from prefkit.cli.data import Columns, File, FormatName, FormatOptions, Limit, SplitName, counter, load

if TYPE_CHECKING:
    from prefkit.diagnostics import Advice, DataFindings

ModelName = Annotated[
    str | None, typer.Option("--model", help="Folder or hub name of the model; `builtin` ships with it.")
]
Rows = Annotated[int, typer.Option(min=1, help="Comparisons that a model scores, a random sample.")]


def audit(
    file: File,
    model: ModelName = None,
    reference: Annotated[
        str | None, typer.Option(help="The model before training, if --model is the trained one; an adapter brings it.")
    ] = None,
    run: Annotated[Path | None, typer.Option(help="Run folder: its trained model against the one before it.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for audit.html and its data.")] = Path("."),
    rows: Rows = 1000,
    values: Annotated[
        Path | None, typer.Option(help="JSON Lines of `prompt` and `topic`: also how stances moved in training.")
    ] = None,
    judge: Annotated[str | None, typer.Option(help="Model that labels stances, for --values.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer, for --values.")] = 256,
    beta: Annotated[float, typer.Option(help="Temperature for which losses and thresholds are given.")] = 0.1,
    format: FormatName = None,
    columns: Columns = None,
    option: FormatOptions = None,
    split: SplitName = None,
    limit: Limit = None,
    batch_size: BatchSize = 8,
    max_length: MaxLength = None,
    precision: Precision = "fp32",
) -> None:
    """Look at comparisons, and at what a model makes of them: one HTML page, JSON, and every figure as CSV.

    Without a model: health, style, label noise by votes, groups of annotators, circles, strength, likeness. With one:
    label noise by its states, likelihood displacement (CHES), difficulty, ranking accuracy and its ideal; with a
    trained one, what training moved.

    Examples:

        prefkit audit pairs.jsonl --model builtin --output audit

        prefkit audit pairs.jsonl --run runs/dpo --output audit
    """
    from prefkit.recipes.audit import AuditOptions, audit_file

    options = AuditOptions.parse(
        {
            "model": model,
            "reference": reference,
            "run": None if run is None else str(run),
            "rows": rows,
            "values": None if values is None else str(values),
            "judge": judge,
            "max_new_tokens": max_new_tokens,
            "beta": beta,
            "batch_size": batch_size,
            "max_length": max_length,
            "precision": precision,
        }
    )
    comparisons = load(file, format, columns, option, split, limit)
    with counter("reading") as on_row, counter("scoring") as on_scored:
        found = audit_file(comparisons, options, on_row=on_row, on_scored=on_scored)
    output.mkdir(parents=True, exist_ok=True)
    page = found.report.write(output / "audit.html")
    if found.model is not None:
        (output / "audit-pairs.csv").write_text(found.model.pairs_table().csv(), encoding="utf-8")
    console = Console()
    for section in found.report.sections:
        console.print(section.heading, style="bold", highlight=False)
        console.print(f"  {section.text}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"{page}, {page.with_suffix('.json').name} and {page.stem}-data/", highlight=False, soft_wrap=True)


def advise(
    file: File,
    model: ModelName = None,
    output: Annotated[Path, typer.Option(help="Folder to write one run.yaml a recommendation into.")] = Path("advice"),
    rows: Rows = 1000,
    format: FormatName = None,
    columns: Columns = None,
    option: FormatOptions = None,
    split: SplitName = None,
    limit: Limit = None,
    batch_size: BatchSize = 8,
    max_length: MaxLength = None,
    precision: Precision = "fp32",
) -> None:
    """Say which methods fit comparisons, the most pressing first, with the evidence and a run.yaml for each.

    `run.yaml` is that of the first; the others are numbered in their order. The rules are in the documentation.

    Example:

        prefkit advise pairs.jsonl --model builtin && prefkit train advice/run.yaml
    """
    from prefkit.diagnostics import advice_table
    from prefkit.diagnostics import advise as ask
    from prefkit.recipes.audit import AuditOptions, audit_file

    options = AuditOptions.parse(
        {"model": model, "rows": rows, "batch_size": batch_size, "max_length": max_length, "precision": precision}
    )
    comparisons = load(file, format, columns, option, split, limit)
    with counter("reading") as on_row, counter("scoring") as on_scored:
        found = audit_file(comparisons, options, on_row=on_row, on_scored=on_scored)
    advice = ask(found.data, found.model)
    Console().print(advice_table(advice))
    reading = {"path": file, "format": format, "split": split, "limit": limit}
    data: dict[str, Any] = {name: value for name, value in reading.items() if value is not None}
    if columns:
        data["columns"] = dict(text.split("=", 1) for text in columns)
    if option:
        data["options"] = {n: yaml.safe_load(v) for n, v in (text.split("=", 1) for text in option)}
    output.mkdir(parents=True, exist_ok=True)
    for place, each in enumerate(advice, start=1):
        own = data
        if each.rule.finding == "annotator groups":
            own = {"path": str(_write_groups(comparisons, found.data, output))}
        written = output / ("run.yaml" if place == 1 else f"run-{place}.yaml")
        written.write_text(_run_yaml(each, model, own, max_length), encoding="utf-8")
        typer.echo(f"{written}: {each.rule.finding} -> {each.objective['kind']}")


def _run_yaml(advice: Advice, model: str | None, data: dict[str, Any], max_length: int | None) -> str:
    config: dict[str, Any] = {
        "model": {"path": model or "builtin"},
        "data": {**data, "held_out": 0.1},
        "objective": advice.objective,
        "output": f"runs/{advice.objective['kind']}",
    }
    if max_length is not None:
        config["encoding"] = {"max_length": max_length}
    head = f"# {advice.rule.finding}: {advice.evidence.text}.\n# {advice.rule.remedy}.\n"
    return head + yaml.safe_dump(config, sort_keys=False, allow_unicode=True)


def _write_groups(comparisons: Any, data: DataFindings, output: Path) -> Path:
    """One file a group of annotators; the path of the largest."""
    from prefkit.comparisons import write_comparisons
    from prefkit.diagnostics import Groups

    assert isinstance(data.groups, Groups)
    counts = {}
    for place, members in enumerate(data.groups.members, start=1):
        path, names = output / f"group-{place}.jsonl", set(members)
        counts[path] = write_comparisons((c for c in comparisons if c.annotator in names), path)
    return max(counts, key=lambda path: counts[path])
