"""`prefkit data`: look at comparisons, check them, convert them, split them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.panel import Panel
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text as Styled

from prefkit.comparisons import Comparison, Comparisons, Health, Skipped, check_comparisons, load_comparisons
from prefkit.comparisons import ranks as ranks_of
from prefkit.comparisons.canonical import dumps, to_dict, write_comparisons
from prefkit.comparisons.record import Label, StepLabels, Text
from prefkit.comparisons.split import assign_parts
from prefkit.errors import OptionError, PrefkitError

data = typer.Typer(
    name="data",
    help="Look at comparisons, check them, convert them, split them.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


class Target(StrEnum):
    """What `convert` writes."""

    PREFKIT = "prefkit"
    TRL_PREFERENCE = "trl_preference"
    TRL_UNPAIRED = "trl_unpaired"


class Strategy(StrEnum):
    """Which pairs a comparison of several responses gives."""

    ALL = "all"
    BEST_WORST = "best_worst"
    ADJACENT = "adjacent"


class By(StrEnum):
    """What two parts of a split must not share."""

    PROMPT = "prompt"
    OPENING = "opening"


File = Annotated[str, typer.Argument(help="File, glob, `datasets` folder, or name of a data set on the hub.")]
FormatName = Annotated[str | None, typer.Option("--format", help="Name of the format. Default: told from the fields.")]
Columns = Annotated[
    list[str] | None,
    typer.Option("--columns", help="Which column holds what, for files of any layout: `chosen=better`. Repeatable."),
]
FormatOptions = Annotated[
    list[str] | None,
    typer.Option("--option", help="Option of the format: `criterion=each`. Repeatable; values are YAML."),
]
SplitName = Annotated[str | None, typer.Option("--split", help="Split of a `datasets` folder or hub data set.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Read at most this many comparisons.")]


@data.command(
    epilog="Examples:\n\n`prefkit data check pairs.jsonl`\n\n"
    "`prefkit data check votes.csv --columns prompt=question --columns response_a=a --columns response_b=b "
    "--columns winner=vote`\n\n`prefkit data check ratings.parquet --format helpsteer --option criterion=each --json`"
)
def check(
    file: File,
    format: FormatName = None,
    columns: Columns = None,
    option: FormatOptions = None,
    split: SplitName = None,
    limit: Limit = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Summarise the health of a data set: what is in it, and what could spoil a fit.

    Rows and bad rows by line and reason, duplicates, identical pairs, conflicting labels, ties, length and position
    bias.
    """
    comparisons = load(file, format, columns, option, split, limit)
    with counter("checking") as advance:
        health = check_comparisons(comparisons, advance)
    if as_json:
        typer.echo(json.dumps(health.as_dict(), indent=2))
        return
    console = Console()
    console.print(_health_table(health))
    if health.reasons:
        console.print(_reasons_table(health))


@data.command(
    epilog="Examples:\n\n`prefkit data convert hh.jsonl.gz pairs.jsonl`\n\n"
    "`prefkit data convert ranked.jsonl pairs.jsonl --to trl_preference --strategy best_worst --min-margin 1`\n\n"
    "`prefkit data convert rated.jsonl labels.jsonl --to trl_unpaired --threshold 4`"
)
def convert(
    file: File,
    output: Annotated[Path, typer.Argument(help="JSON Lines file to write.")],
    to: Annotated[Target, typer.Option("--to", help="What to write. `prefkit` keeps everything.")] = Target.PREFKIT,
    format: FormatName = None,
    columns: Columns = None,
    option: FormatOptions = None,
    split: SplitName = None,
    limit: Limit = None,
    strategy: Annotated[
        Strategy | None, typer.Option(help="Pairs of a comparison, for `trl_preference`. Default: all.")
    ] = None,
    min_margin: Annotated[
        float | None, typer.Option(min=0.0, help="Smallest gap of a pair, for `trl_preference`. Default: 0.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Smallest good rating, for `trl_unpaired` from ratings.")
    ] = None,
) -> None:
    """Write comparisons in the canonical form, or in the columns of TRL's trainers.

    Rows that cannot be used are written next to the output, with file, line, field and problem.
    """
    given = {"strategy": strategy, "min_margin": min_margin, "threshold": threshold}
    how: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    applies = {Target.TRL_PREFERENCE: {"strategy", "min_margin"}, Target.TRL_UNPAIRED: {"threshold"}}.get(to, set())
    if strange := sorted(set(how) - applies):
        raise OptionError(f"--{strange[0].replace('_', '-')} does not apply to --to {to.value}")
    comparisons = load(file, format, columns, option, split, limit)
    _refuse_overwriting(file, output)
    with counter("converting") as advance:
        rows = write_comparisons(_counted(comparisons, advance), output, to.value, **how)
    typer.echo(f"{output}: {rows} rows ({comparisons.format} to {to.value})")
    _report_skipped(comparisons.skipped, output.with_name(output.name + ".skipped.jsonl"))


@data.command(
    "split",
    epilog="Examples:\n\n`prefkit data split pairs.jsonl parts/`\n\n"
    "`prefkit data split chats.jsonl parts/ --parts train=0.8,validation=0.1,test=0.1 --seed 1 --by opening`",
)
def split_file(
    file: File,
    output: Annotated[Path, typer.Argument(help="Folder to write one JSON Lines file a part into.")],
    parts: Annotated[str, typer.Option(help="Names and shares of the parts.")] = "train=0.9,test=0.1",
    seed: Annotated[int, typer.Option(help="Another seed gives another split.")] = 0,
    by: Annotated[
        By, typer.Option(help="`opening` also keeps conversations with the same first user turn together.")
    ] = By.PROMPT,
    format: FormatName = None,
    columns: Columns = None,
    option: FormatOptions = None,
    split: SplitName = None,
    limit: Limit = None,
) -> None:
    """Split by prompt, so that no prompt of one part occurs in another.

    The part of a prompt is decided by a hash of its text and the seed, whatever else is in the file.
    """
    shares = {name: _share(name, value) for name, value in _assignments(parts.split(","), "--parts").items()}
    comparisons = load(file, format, columns, option, split, limit)
    output.mkdir(parents=True, exist_ok=True)
    paths = {name: output / f"{name}.jsonl" for name in shares}
    for path in paths.values():
        _refuse_overwriting(file, path)
    counts = dict.fromkeys(shares, 0)
    with counter("splitting") as advance, ExitStack() as stack:
        part_of = assign_parts(_counted(comparisons, advance), shares, seed=seed, by=by.value)
        files = {name: stack.enter_context(path.open("w", encoding="utf-8")) for name, path in paths.items()}
        for comparison in _counted(comparisons, advance):
            name = part_of(comparison)
            files[name].write(dumps(to_dict(comparison)) + "\n")
            counts[name] += 1
    for name, path in paths.items():
        typer.echo(f"{path}: {counts[name]} comparisons")
    _report_skipped(comparisons.skipped, output / "skipped.jsonl")


@data.command(
    epilog="Examples:\n\n`prefkit data show pairs.jsonl`\n\n`prefkit data show HuggingFaceH4/ultrafeedback_binarized "
    "--split test_prefs --count 1 --whole`"
)
def show(
    file: File,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many comparisons.")] = 3,
    whole: Annotated[bool, typer.Option("--whole", help="Do not shorten long texts.")] = False,
    format: FormatName = None,
    columns: Columns = None,
    option: FormatOptions = None,
    split: SplitName = None,
) -> None:
    """Show the first comparisons, as they are understood."""
    comparisons = load(file, format, columns, option, split, count)
    console = Console()
    found = list(comparisons)
    for comparison in found:
        console.print(_panel(comparison, whole))
    if not found:
        worst = f"; the first: {_place(comparisons.skipped)}" if len(comparisons.skipped) else ""
        raise PrefkitError(f"{file}: no comparison can be used, {len(comparisons.skipped)} rows are bad{worst}")
    console.print(f"format {comparisons.format}", style="dim", markup=False)


# --- arguments


def load(
    file: str,
    format: str | None,
    columns: list[str] | None,
    option: list[str] | None,
    split: str | None,
    limit: int | None,
) -> Comparisons:
    """Comparisons by the options of a command."""
    return load_comparisons(
        file,
        format=format,
        columns=_assignments(columns, "--columns") if columns else None,
        options=format_options(option),
        split=split,
        limit=limit,
    )


def format_options(option: list[str] | None) -> dict[str, Any]:
    """Options of a format as the command line gives them, `name=value` with values in YAML."""
    return {name: yaml.safe_load(value) for name, value in _assignments(option or [], "--option").items()}


def _assignments(texts: list[str], flag: str) -> dict[str, str]:
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip() or not value:
            raise OptionError(f"{flag}: expected name=value, got '{text}'")
        found[name.strip()] = value
    return found


def _share(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise OptionError(f"--parts: the share of '{name}' must be a number, got '{value}'") from None


def _refuse_overwriting(file: str, output: Path) -> None:
    if output.exists() and Path(file).exists() and output.samefile(file):
        raise OptionError(f"{output}: is the file that is read; write to another one")


# --- output


@contextmanager
def counter(what: str) -> Iterator[Callable[[], None]]:
    """A counter on standard error, shown on terminals only."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description} {task.completed:,.0f}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda: bar.advance(task)


def _counted(comparisons: Comparisons, advance: Callable[[], None]) -> Iterator[Comparison]:
    for comparison in comparisons:
        yield comparison
        advance()


def _report_skipped(skipped: Skipped, path: Path) -> None:
    if len(skipped):
        skipped.write(path)
        typer.echo(f"{path}: {len(skipped)} rows set aside (the first: {_place(skipped)})")


def _place(skipped: Skipped) -> str:
    row = skipped.rows[0]
    field = f"field '{row.field}': " if row.field else ""
    return f"{row.source}:{row.line}: {field}{row.problem}"


def _health_table(health: Health) -> Table:
    table = Table(title=Styled(health.source), show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right", overflow="fold")
    kinds = ", ".join(f"{name} {count:,}" for name, count in health.kinds.items())
    for name, value in (
        ("format", health.format or "-"),
        ("rows", f"{health.rows:,}"),
        ("bad rows", f"{health.bad_rows:,}"),
        ("judgements", kinds or "-"),
        ("prompts", f"{health.prompts:,}"),
        ("responses a prompt", f"{health.responses_per_prompt:.2f}"),
        ("different contexts", f"{health.joint:,}"),
        ("pairs", f"{health.pairs:,}"),
        ("ties", f"{health.ties:,} (both bad: {health.both_bad:,})"),
        ("duplicates", f"{health.duplicates:,}"),
        ("sides exchanged", f"{health.exchanged:,}"),
        ("identical pairs", f"{health.identical:,}"),
        ("conflicting labels", f"{health.conflicts:,} (same annotator: {health.contradictions:,})"),
        ("longer one wins", _percent(health.longer_wins.value, health.longer_wins.interval)),
        ("first one wins", _percent(health.first_wins.value, health.first_wins.interval)),
        ("annotators", f"{health.annotators:,}" if health.annotators else "not given"),
        ("criteria", ", ".join(f"{name} {count:,}" for name, count in health.criteria.items()) or "not given"),
    ):
        table.add_row(name, Styled(value))
    return table


def _percent(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.1%} ({interval[0]:.1%} to {interval[1]:.1%})" if value == value else "-"


def _reasons_table(health: Health) -> Table:
    table = Table(title="bad rows", show_header=True)
    table.add_column("rows", justify="right")
    table.add_column("problem", overflow="fold")
    for problem, count in health.reasons.items():
        table.add_row(f"{count:,}", Styled(problem))
    table.add_section()
    for row in health.examples:
        field = f"field '{row.field}': " if row.field else ""
        table.add_row("", Styled(f"{row.source}:{row.line}: {field}{row.problem}"))
    return table


def _panel(comparison: Comparison, whole: bool) -> Panel:
    body = Styled()
    for index, prompt in enumerate(comparison.prompts):
        label = f"prompt of response {index}" if comparison.joint else "prompt"
        body.append(f"{label}\n", style="bold")
        body.append(_short(prompt, whole) + "\n\n")
    marks = _marks(comparison)
    for index, response in enumerate(comparison.responses):
        best = marks[index] in ("rank 0", "good")
        body.append(f"response {index}: {marks[index]}\n", style="bold green" if best else "bold")
        body.append(_short(response, whole) + "\n\n")
    for name in ("criterion", "annotator", "strength", "rationale"):
        value = getattr(comparison, name)
        if value is not None:
            body.append(f"{name}: ", style="bold")
            body.append(f"{value}\n")
    body.rstrip()
    place = ":".join(str(part) for part in (comparison.source, comparison.line) if part is not None)
    return Panel(body, title=Styled(place), title_align="left")


def _marks(comparison: Comparison) -> list[str]:
    match comparison.judgement:
        case Label(good):
            return ["good" if good else "bad"]
        case StepLabels(values):
            return ["steps " + ", ".join("-" if value is None else f"{value:g}" for value in values)]
    return [f"rank {rank}" for rank in ranks_of(comparison)]


def _short(text: Text, whole: bool, most: int = 600) -> str:
    if not isinstance(text, str):
        text = "\n".join(f"{message['role']}: {message['content']}" for message in text)
    return text if whole or len(text) <= most else f"{text[: most // 2]} […] {text[-most // 2 :]}"
