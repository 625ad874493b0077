"""`prefkit data strength` and `prefkit data mine`: data from the rewards that models gave to comparisons."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from prefkit.errors import OptionError

Output = Annotated[Path, typer.Option(help="JSON Lines file to write.")]


def strength(
    files: Annotated[
        list[str], typer.Argument(help="The same comparisons with the rewards of one model a file, in one order.")
    ],
    output: Output = Path("strength.jsonl"),
    flip: Annotated[float | None, typer.Option(help="Flip this share of the labels, the weakest, at most 0.5.")] = None,
    flip_below: Annotated[float | None, typer.Option(help="Flip labels of a strength below this instead.")] = None,
    groups: Annotated[int, typer.Option(min=1, help="Groups by strength, in the table and in `strength_group`.")] = 10,
    normalise: Annotated[
        bool, typer.Option("--normalise", help="Bring the models' rewards to one scale before they vote.")
    ] = False,
) -> None:
    """Measure how far several reward models agree with each label, and flip those that they contradict.

    Writes the comparisons with the mean `rewards`, which the objectives `reward_model_margin` and `madpo` take, and
    `strength_mean`, `strength_std`, `vote_share`, `strength_group`.

    Examples:

        prefkit data strength rewarded-1.jsonl rewarded-2.jsonl rewarded-3.jsonl --output strength.jsonl

        prefkit data strength rewarded-*.jsonl --flip 0.1 --output flipped.jsonl
    """
    from prefkit.comparisons import load_comparisons, write_comparisons
    from prefkit.objectives import strength_groups, vote
    from prefkit.report import Table

    _refuse_overwriting(files, output)
    found = vote(
        [load_comparisons(file) for file in files],
        flip_fraction=flip,
        flip_threshold=flip_below,
        groups=groups,
        normalise=normalise,
    )
    write_comparisons(found.comparisons, output)
    mean, std, share = found.strength
    placed = strength_groups(mean, groups)
    rows = []
    for group in sorted(set(placed.tolist())):
        own = placed == group
        rows.append(
            [group, int(own.sum()), *(float(each[own].mean()) for each in (mean, std, share)), float(mean[own].min())]
        )
    columns = ["group", "pairs", "strength", "deviation over models", "share of votes", "weakest"]
    console = Console()
    console.print(Table(columns, rows, f"Strength of labels, {len(files)} models"))
    below = float((mean < 0).double().mean())
    console.print(f"{below:.1%} of the labels have negative strength; {found.flips} flipped", highlight=False)
    console.print(f"{len(found.comparisons)} comparisons -> {output}", highlight=False, soft_wrap=True)


class Pairs(StrEnum):
    """Which pairs; see `prefkit.objectives.PairScheme`."""

    BEST_WORST = "best_worst"
    BEST_REST = "best_rest"
    ADJACENT = "adjacent"
    OPPOSITE = "opposite"
    HALF_OFFSET = "half_offset"
    ALL = "all"


def mine(
    file: Annotated[str, typer.Argument(help="Comparisons with `rewards`, such as --rewards-into writes.")],
    output: Output = Path("mined.jsonl"),
    pairs: Annotated[
        Pairs, typer.Option(help="Which candidates of a prompt, by rank, make a pair.")
    ] = Pairs.BEST_WORST,
    min_gap: Annotated[float, typer.Option(min=0, help="Rewards of a pair are further apart than this.")] = 0.0,
) -> None:
    """Make pairs of the candidates of each prompt by their rewards: of the best and the worst, or others.

    The difference of the rewards is each pair's `strength`, which the objective `osp` takes with `label: bt`, and the
    rewards stay beside the responses, for `madpo`.

    Examples:

        prefkit score my-model candidates.jsonl --followups default --rewards-into rewarded.jsonl

        prefkit data mine rewarded.jsonl --output pairs.jsonl

        prefkit data mine rewarded.jsonl --pairs all --output strong.jsonl
    """
    from prefkit.comparisons import load_comparisons, write_comparisons
    from prefkit.selection import mined_comparisons

    _refuse_overwriting([file], output)
    comparisons = load_comparisons(file)
    rows = write_comparisons(mined_comparisons(comparisons, scheme=pairs.value, min_gap=min_gap), output)
    Console().print(f"{rows} pairs -> {output}", highlight=False, soft_wrap=True)


def _refuse_overwriting(files: list[str], output: Path) -> None:
    for file in files:
        if output.exists() and Path(file).exists() and output.samefile(file):
            raise OptionError(f"{output}: is a file that is read; write to another one")
