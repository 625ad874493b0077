"""`prefkit leaderboard`: items in the order of their strengths, from comparisons of who beat whom."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from prefkit.errors import OptionError


class Law(StrEnum):
    """How strengths become choices."""

    BRADLEY_TERRY = "bradley_terry"
    THURSTONE = "thurstone"


class TieLaw(StrEnum):
    """What a tie is."""

    HALF = "half"
    RAO_KUPPER = "rao_kupper"
    DAVIDSON = "davidson"


def leaderboard(
    file: Annotated[str, typer.Argument(help="File, data set folder or hub name of the comparisons.")],
    items: Annotated[
        str | None,
        typer.Option(
            help="Fields with the names of the two items, `model_a,model_b`; one field with a list of names; or "
            "`responses`. Found by default."
        ),
    ] = None,
    winner: Annotated[
        str | None,
        typer.Option(help="For tables of results without texts: the column that says who won (a, b, tie)."),
    ] = None,
    law: Annotated[Law, typer.Option(help="How strengths become choices.")] = Law.BRADLEY_TERRY,
    ties: Annotated[TieLaw, typer.Option(help="A tie is half a win, or an outcome of its own.")] = TieLaw.HALF,
    ridge: Annotated[float, typer.Option(min=0.0, help="Penalty of squared strengths; 0 is maximum likelihood.")] = 0.0,
    confidence: Annotated[float, typer.Option(help="Coverage of the intervals.")] = 0.95,
    elo: Annotated[bool, typer.Option("--elo", help="In points: 400 for odds of 10 to 1, around 1000.")] = False,
    cycles: Annotated[
        bool, typer.Option("--cycles", help="Also test for circular preferences, and list them.")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="Also write the leaderboard to this JSON file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw it to this file (svg, png, pdf).")] = None,
    save: Annotated[Path | None, typer.Option(help="Also save the model to this folder.")] = None,
    data_format: Annotated[
        str | None, typer.Option("--format", help="Name of the format; detected by default.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", help="Option of the format: `outcomes={left: a, right: b}`. Repeatable."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Read at most so many comparisons.")] = None,
) -> None:
    """Rank named items, such as models, by who beat whom: strengths, intervals, ranks.

    Examples:

        prefkit leaderboard arena.jsonl --elo --plot board.svg

        prefkit leaderboard results.csv --items home,guest --winner outcome --ties davidson
    """
    from prefkit.cli.data import format_options
    from prefkit.comparisons import load_comparisons
    from prefkit.preference import BradleyTerry, Thurstone, cyclicity, named_comparisons, save_preference_model

    fields = None if items is None else [field.strip() for field in items.split(",")]
    columns = None
    if winner is not None:
        if fields is None or len(fields) != 2:
            raise OptionError("--winner needs the two columns that name the items: --items model_a,model_b")
        prompt = "{" + "} {".join(fields) + "}"
        columns = {"prompt": prompt, "response_a": fields[0], "response_b": fields[1], "winner": winner}
        fields = ["responses"]
    if law is Law.THURSTONE and ties is not TieLaw.HALF:
        raise OptionError("--ties applies to --law bradley_terry; under thurstone a tie is half a win")
    if law is Law.THURSTONE and elo:
        raise OptionError("--elo applies to --law bradley_terry: strengths under thurstone are no log-odds")
    comparisons = load_comparisons(
        file, format=data_format, columns=columns, options=format_options(option) or None, limit=limit
    )
    data = named_comparisons(comparisons, fields)
    model = Thurstone(ridge=ridge) if law is Law.THURSTONE else BradleyTerry(ties=ties.value, ridge=ridge)
    model.fit(data.X, data.y, data.weights)
    board = model.leaderboard(confidence)
    board = board.elo() if elo else board
    console = Console()
    console.print(board.table(file))
    console.print(f"{len(data.y)} comparisons of {len(board.standings)} items", highlight=False)
    if ties is not TieLaw.HALF:
        name = "threshold of ties" if ties is TieLaw.RAO_KUPPER else "log nu of ties"
        console.print(f"{name}: {model.tie_:.3f}", highlight=False)
    if cycles:
        found = cyclicity(data.X, data.y)
        console.print(found.table())
        if found.cycles:
            console.print(found.cycles_table())
    if output is not None:
        written = {
            "scale": board.scale,
            "confidence": board.confidence,
            "comparisons": len(data.y),
            "standings": [asdict(standing) for standing in board.standings],
        }
        output.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if plot is not None:
        board.plot(file).figure.savefig(plot)
    if save is not None:
        save_preference_model(model, save)
    for path in (output, plot, save):
        if path is not None:
            console.print(str(path), highlight=False, soft_wrap=True)
    set_aside = len(data.skipped) + len(comparisons.skipped)
    if set_aside:
        first = data.skipped[0] if data.skipped else comparisons.skipped.rows[0].problem
        console.print(f"{set_aside} comparisons set aside; the first: {first}", style="yellow", markup=False)
