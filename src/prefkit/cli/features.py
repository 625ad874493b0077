"""`prefkit features`: reward models on a domain's features, from few judgements."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from prefkit.errors import OptionError, RecordError

features = typer.Typer(
    name="features",
    help="Reward models on named features of texts, from few judgements.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

File = Annotated[str, typer.Argument(help="Comparisons with `features`, a mapping a response, unless computed.")]
Folder = Annotated[Path, typer.Argument(help="Folder that `prefkit features fit` wrote.")]


@features.command()
def fit(
    file: File,
    names: Annotated[
        str,
        typer.Option(
            "--features",
            help="Names with their ranges where these are not 0 to 5: `relevance,words:0:400`. Computed if not in the "
            "file: words, lines, word-variety, prompt-overlap.",
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder to write the model to.")],
    layers: Annotated[str, typer.Option(help="Sizes of the hidden layers, such as `4,2`; none is linear.")] = "",
    activation: Annotated[str, typer.Option(help="After the first layer: tanh, sigmoid or relu.")] = "tanh",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the pairs.")] = 150,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW.")] = 0.05,
    weight_decay: Annotated[float, typer.Option(min=0, help="Of AdamW.")] = 0.05,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Pairs an update; all by default.")] = None,
    held_out: Annotated[float, typer.Option(min=0, max=0.9, help="Share of the prompts to measure on.")] = 0.2,
    data_format: Annotated[str | None, typer.Option("--format", help="Name of the format.")] = None,
    seed: Annotated[int, typer.Option(help="Of the first weights and of the held-out part.")] = 0,
) -> None:
    """Fit a reward to features, and measure it on prompts that were held out, beside the plain mean of the features.

    Examples:

        prefkit features fit opinpref.jsonl --features relevance,conciseness --output reward

        prefkit features fit pairs.jsonl --features words:0:300,prompt-overlap:0:1 --output reward
    """
    from prefkit.comparisons import load_comparisons, split_comparisons
    from prefkit.diagnostics import bootstrap_interval
    from prefkit.preference import FEATURE_FUNCTIONS, DomainReward, RewardNetwork, domain_features
    from prefkit.report import Table

    wanted = [_named(part) for part in names.split(",") if part.strip()]
    ranges = {name: bounds for name, bounds in wanted if bounds is not None}
    names_only = [name for name, _ in wanted]
    domain = domain_features(names_only, [name for name in names_only if name in FEATURE_FUNCTIONS], ranges)
    how: dict[str, Any] = {
        "hidden": tuple(_whole(size) for size in _list(layers)),
        "activation": activation,
        "inner_activation": None,
        "epochs": epochs,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "batch_size": batch_size,
        "seed": seed,
    }
    reward = DomainReward(domain, RewardNetwork(**how))
    data = load_comparisons(file, format=data_format)
    skipped: list[RecordError] = []
    console = Console()
    if held_out:
        parts = split_comparisons(data, {"train": 1 - held_out, "test": held_out}, seed=seed)
        reward.fit(parts["train"], skipped)
        rows = []
        for name, naive in (("this reward", False), ("mean of the features", True)):
            wins, prompts = reward.wins(parts["test"], [], naive=naive)
            rows.append([name, bootstrap_interval(wins, clusters=prompts)])
        console.print(Table(["on held-out prompts", "accuracy [95% interval]"], rows))
    else:
        reward.fit(data, skipped)
    reward.save(output)
    _show(reward.explain(), console)
    console.print(f"reward model -> {output}", highlight=False, soft_wrap=True)
    _report(skipped, console)


@features.command()
def score(
    folder: Folder,
    file: File,
    output: Annotated[Path, typer.Option(help="JSON Lines file to write.")] = Path("rewarded.jsonl"),
    data_format: Annotated[str | None, typer.Option("--format", help="Name of the format.")] = None,
) -> None:
    """Write the comparisons with the `rewards` of their responses, for objectives, votes and mining.

    Example:

        prefkit features score reward candidates.jsonl --output rewarded.jsonl
    """
    from prefkit.comparisons import load_comparisons, write_comparisons
    from prefkit.preference import DomainReward

    reward = DomainReward.load(folder)
    if output.exists() and Path(file).exists() and output.samefile(file):
        raise OptionError(f"{output}: is the file that is read; write to another one")
    skipped: list[RecordError] = []
    data = load_comparisons(file, format=data_format)
    rows = write_comparisons(reward.annotate(data, skipped), output)
    console = Console()
    console.print(f"{rows} comparisons -> {output}", highlight=False, soft_wrap=True)
    _report(skipped, console)


@features.command()
def explain(folder: Folder) -> None:
    """Say what each feature is worth to a reward model, in log-odds over its whole range."""
    from prefkit.preference import DomainReward

    _show(DomainReward.load(folder).explain(), Console())


def _show(worth: dict[str, float], console: Console) -> None:
    from prefkit.report import Table

    rows = [[name, value] for name, value in sorted(worth.items(), key=lambda entry: -abs(entry[1]))]
    console.print(Table(["feature", "worth (log-odds)"], rows))


def _report(skipped: list[RecordError], console: Console) -> None:
    if skipped:
        console.print(f"{len(skipped)} comparisons set aside; the first: {skipped[0]}", markup=False, emoji=False)


def _named(part: str) -> tuple[str, tuple[float, float] | None]:
    name, *bounds = part.strip().split(":")
    try:
        numbers = [float(bound) for bound in bounds]
    except ValueError:
        raise OptionError(f"--features: a range is name:low:high, got '{part}'") from None
    if len(numbers) not in (0, 2):
        raise OptionError(f"--features: a range is name:low:high, got '{part}'")
    return name, (numbers[0], numbers[1]) if numbers else None


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _whole(size: str) -> int:
    if not size.isdigit() or int(size) < 1:
        raise OptionError(f"--layers: sizes must be whole numbers of at least 1, got '{size}'")
    return int(size)
