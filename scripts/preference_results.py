"""Preference models on real judgements: the figures of docs/preference-results.md.

    python scripts/preference_results.py ../shared/data [--only SET] [--embedder FOLDER]

For each set a table of held-out figures by cross-validation over prompts; for sets whose people judged enough, a table
and a plot for people whom the models have not met; for sets whose options recur, how circular they are. Features and
finished sets are kept in the output folder, so that a run that was stopped goes on; --fresh measures again.
`results.json` there has all figures in full precision, `tables.md` the tables of the page.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from judgement_sets import NAMES, NEUTRAL, SETS, Features, JudgedSet, Said, features_of
from scipy.special import expit
from sklearn.base import BaseEstimator

from prefkit.diagnostics import (
    Candidate,
    CrossValidation,
    Judgements,
    NewPeople,
    annotator_ceiling,
    cross_validate,
    held_out_figures,
    new_people,
)
from prefkit.objectives import flip_weakest
from prefkit.preference import (
    BradleyTerry,
    Calibrated,
    Ensemble,
    GeneralPreference,
    IdealPoints,
    RewardNetwork,
    Thurstone,
    cyclicity,
    vote_strength,
)
from prefkit.report import Table
from prefkit.training.progress import bar

FOLDS, INNER = 4, 2
BASELINE = "Bradley-Terry"
RIDGES = (30.0, 300.0, 3000.0)
PROTOTYPES = (1, 2, 3, 5)
LABELS = (0, 2, 5, 10, 20)
LEAST_VOTES = 30
READINESS = "Bradley-Terry, and each person's readiness"
JOKE_PARTS = 5
LINEAR: dict[str, Any] = {"hidden": (), "learning_rate": 0.05, "weight_decay": 0.05}
UPDATES, BATCH = 120, 2000
WITH_PEOPLE = ("dices", "multipico", "ukp_convarg")


class Voted(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no annotations
    """A linear reward fitted after a vote of ten rewards has flipped, softened or given margins to the labels."""

    def __init__(self, how: str = "flip", fraction: float = 0.1, epochs: int = 60) -> None:
        self.how, self.fraction, self.epochs = how, fraction, epochs

    def fit(self, X: Any, y: Any, sample_weight: Any) -> Voted:
        voter = RewardNetwork(**{**LINEAR, "learning_rate": 0.01}, epochs=2, batch_size=64)
        vote = vote_strength(voter, X, y, members=10)
        margins = None
        if self.how == "flip":
            y = np.where(flip_weakest(vote.mean, fraction=self.fraction).mask.numpy(), 1 - y, y)
        elif self.how == "soft":
            said = expit(np.where(y >= 0.5, 1.0, -1.0) * vote.mean.numpy())
            y = 0.5 * (y + said)
        else:
            margins = vote.mean.numpy()
        self.model_ = RewardNetwork(**LINEAR, epochs=self.epochs).fit(X, y, sample_weight, margins=margins)
        return self

    def decision_function(self, X: Any) -> Any:
        return self.model_.decision_function(X)


class WrongContext(RewardNetwork):
    """A reward of contexts that is told another context than the judge's: what is lost is what contexts are worth."""

    def decision_function(self, X: Any) -> Any:
        turned = np.array(X)
        turned[..., -self.context_features :] = np.roll(turned[..., -self.context_features :], 1, axis=-1)
        return super().decision_function(turned)


class Options:
    """A set's options, each a text under a criterion, and its judgements."""

    def __init__(self, judged: JudgedSet, features: Features) -> None:
        said = judged.said
        self.criteria = sorted({each.criterion for each in said if each.criterion is not None})
        size = len(judged.texts)
        neutral = any(each.second == NEUTRAL for each in said)
        # The readiness is larger than standardised features, so that penalties hardly touch it.
        values = np.column_stack([features.values, np.full(size, 3.0)]) if neutral else features.values
        blocks = {name: list(columns) for name, columns in features.blocks.items()}
        if neutral:
            # The readiness to say yes belongs to every model of answers about one text.
            blocks = {name: [*columns, values.shape[1] - 1] for name, columns in blocks.items()}
        if self.criteria:
            named = values[:, blocks["named"]]
            tables = []
            for place in range(len(self.criteria)):
                own = np.zeros((size, len(self.criteria)))
                own[:, place] = 1.0
                products = np.concatenate([named * own[:, [each]] for each in range(len(self.criteria))], axis=1)
                tables.append(np.concatenate([values, products, own], axis=1))
            start, products = values.shape[1], named.shape[1] * len(self.criteria)
            blocks["named by criterion"] = list(range(start, start + products))
            blocks["criterion"] = list(range(start + products, start + products + len(self.criteria)))
            values = np.concatenate(tables)
        if neutral:
            values = np.concatenate([values, np.zeros((1, values.shape[1]))])
        self.blocks = blocks
        shift = np.array([size * self.criteria.index(each.criterion) if each.criterion else 0 for each in said])
        first = np.array([each.first for each in said]) + shift
        second = np.where([each.second == NEUTRAL for each in said], len(values) - 1, 0)
        second = np.where([each.second == NEUTRAL for each in said], second, [each.second for each in said] + shift)
        people = [each.person for each in said]
        self.data = Judgements(
            np.stack([first, second], axis=1),
            np.array([each.outcome for each in said]),
            np.array([each.group for each in said]),
            np.array([float(each.count) for each in said]),
            annotators=None if people[0] is None else people,
            items=np.unique(np.stack([first, second], axis=1), axis=0, return_inverse=True)[1].reshape(-1),
            features=values,
        )
        self.criterion = np.array([each.criterion or "" for each in said])

    def columns(self, *names: str) -> list[int]:
        return sorted({column for name in names for column in self.blocks[name]})

    def feature_sets(self) -> dict[str, list[int]]:
        rest = [name for name in ("words", "states", "embeddings") if name in self.blocks]
        return {"named": self.columns("named"), **{f"named, {name}": self.columns("named", name) for name in rest}}

    def best(self) -> dict[str, list[int]]:
        """Named features alone, and with the best embedding that there is: for the slower models."""
        sets = self.feature_sets()
        last = "named, embeddings" if "embeddings" in self.blocks else "named, states"
        return {"named": sets["named"], last: sets[last]}


def models(options: Options, judged: JudgedSet) -> dict[str, Any]:
    """Every model that applies to a set; lists are candidates among which the training part chooses."""
    sets, best = options.feature_sets(), options.best()
    length = options.blocks["named"][:1] + (options.blocks["named"][-1:] if judged.said[0].second == NEUTRAL else [])
    updates = math.ceil(len(options.data) * (FOLDS - 1) / FOLDS / BATCH)
    how: dict[str, Any] = {"epochs": max(1, round(UPDATES / updates)), "batch_size": BATCH}
    found: dict[str, Any] = {
        "length alone": Candidate(BradleyTerry(ridge=1.0), length),
        BASELINE: [
            Candidate(BradleyTerry(ridge=ridge), columns, f"{name}; ridge {ridge:g}")
            for name, columns in sets.items()
            for ridge in RIDGES
        ],
        "Thurstone": [
            Candidate(Thurstone(ridge=ridge), columns, f"{name}; ridge {ridge:g}")
            for name, columns in best.items()
            for ridge in RIDGES
        ],
        "reward head on the built-in model (worldpm's form)": [
            Candidate(BradleyTerry(ridge=ridge), options.columns("states"), f"ridge {ridge:g}") for ridge in RIDGES
        ],
        "reward network": [
            Candidate(RewardNetwork(weight_decay=decay, **how), columns, f"{name}; decay {decay:g}")
            for name, columns in best.items()
            for decay in (0.1, 1.0)
        ],
        "five reward networks, calibrated": Candidate(
            Calibrated(Ensemble(RewardNetwork(weight_decay=1.0, **how), members=5)), options.columns("named")
        ),
        "general preference, dimension 6 (gpm)": [
            Candidate(GeneralPreference(tau=0.5, weight_decay=1.0, **how), columns, name)
            for name, columns in best.items()
        ],
        "linear reward of named features (domain-rm)": Candidate(
            RewardNetwork(**LINEAR, epochs=60), options.columns("named")
        ),
    }
    if judged.said[0].second != NEUTRAL:
        for name in ("flip", "soft", "margin"):
            found[f"the same after a vote: {name} (secrets-rm)"] = Candidate(Voted(name), options.columns("named"))
    if options.criteria:
        found[f"{BASELINE}, criterion as context (context-pm)"] = [
            Candidate(BradleyTerry(ridge=ridge), options.columns(*extra, "named by criterion"), f"ridge {ridge:g}")
            for extra in (("named",), ("named", list(options.best())[-1].split(", ")[1]))
            for ridge in RIDGES
        ]
        seen = options.columns("named") + options.blocks["criterion"]
        network = {**LINEAR, "hidden": (16,), "context_features": len(options.criteria), "epochs": 60}
        found["reward network of features and criterion (context-pm)"] = Candidate(RewardNetwork(**network), seen)
        found["the same, told a wrong criterion"] = Candidate(WrongContext(**network), seen)
    if options.data.annotators is not None:
        found["ideal points (pal)"] = [
            Candidate(_ideal(count), columns, f"{name}; K = {count}")
            for name, columns in best.items()
            for count in PROTOTYPES[:3]
        ]
    return found


def _ideal(prototypes: int) -> IdealPoints:
    return IdealPoints(prototypes=prototypes, loss="logistic", width=16, steps=120, batch_size=4000, weight_decay=0.1)


def over_prompts(options: Options, judged: JudgedSet, folds: int) -> tuple[CrossValidation, list[Table]]:
    """The table of a set, and one by criterion."""
    made = models(options, judged)
    with bar(True) as progress:
        task = progress.add_task(judged.name, total=len(made) * folds, note="")
        found = cross_validate(
            made, options.data, folds=folds, inner=INNER, watch=lambda name: progress.update(task, advance=1, note=name)
        )
    odds = {"chance": np.zeros(len(options.data)), **found.odds}
    if judged.said[0].second == NEUTRAL:
        own, choice = own_readiness(options)
        odds[READINESS] = cross_validate({READINESS: choice}, own, folds=folds, inner=INNER).odds[READINESS]
    if judged.name != "hh_rlhf":
        odds["the other people (ceiling)"] = annotator_ceiling(options.data)
    clusters = np.array([f"{a}-{b}" for a, b in options.data.X]) if judged.name == "humour_pairs" else None
    found = CrossValidation(found.data, odds, found.chosen, found.seconds, clusters)
    tables = [found.table(BASELINE, f"{judged.name}: held out, over {judged.unit}")]
    if options.criteria:
        shown = [name for name in odds if name == BASELINE or "criterion" in name or "ceiling" in name]
        rows: list[list[Any]] = []
        for criterion in options.criteria:
            own = options.criterion == criterion
            for name in shown:
                kept = own & np.isfinite(odds[name])
                data = options.data.take(kept)
                figures = held_out_figures(odds[name][kept], data.y, weights=data.weights, clusters=data.groups)
                rows.append([criterion, name, figures.log_likelihood, figures.accuracy])
        title = f"{judged.name}: by criterion"
        tables.append(Table(["criterion", "model", "log-likelihood", "accuracy"], rows, title))
    return found, tables


def own_readiness(options: Options) -> tuple[Judgements, list[Candidate]]:
    """Answers with a feature a person: the simplest model of people, who differ in how readily they say yes."""
    data = options.data
    assert data.annotators is not None
    assert data.features is not None
    person = np.unique(np.array(data.annotators, dtype=str), return_inverse=True)[1]
    best = list(options.best().values())[-1]
    seen = data.features[:, best][data.X[:, 0]]
    n = len(data)
    values = np.zeros((n + 1, seen.shape[1] + person.max() + 1))
    values[:n, : seen.shape[1]] = seen
    # Three times as large, so that the penalty leaves these weights freer than those of features.
    values[np.arange(n), seen.shape[1] + person] = 3.0
    X = np.stack([np.arange(n), np.full(n, n)], axis=1)
    own = Judgements(X, data.y, data.groups, data.weights, features=values)
    return own, [Candidate(BradleyTerry(ridge=ridge), name=f"ridge {ridge:g}") for ridge in RIDGES]


def over_people(options: Options, judged: JudgedSet) -> NewPeople:
    """People whom the models have not met; of those with enough judgements."""
    data = options.data
    assert data.annotators is not None
    names, count = np.unique(np.array(data.annotators, dtype=str), return_counts=True)
    enough = set(names[count >= LEAST_VOTES].tolist())
    data = data.take(np.array([str(person) in enough for person in data.annotators]))
    everybody = [
        Candidate(BradleyTerry(ridge=ridge), columns, f"{name}; ridge {ridge:g}")
        for name, columns in options.best().items()
        for ridge in RIDGES
    ]
    people = [
        Candidate(_ideal(count), columns, f"{name}; K = {count}")
        for name, columns in options.best().items()
        for count in PROTOTYPES
    ]
    with bar(True) as progress:
        task = progress.add_task(f"{judged.name}: new people", total=FOLDS, note="")
        return new_people(
            {"ideal points": people},
            data,
            everybody=everybody,
            alone=Candidate(BradleyTerry(ridge=3.0), options.columns("named")),
            labels=LABELS,
            folds=FOLDS,
            inner=INNER,
            watch=lambda _: progress.advance(task),
        )


def circles(judged: JudgedSet) -> list[Table]:
    """How circular the votes on recurring options are."""
    X = np.array([[each.first, each.second] for each in judged.said for _ in range(each.count)])
    y = np.array([each.outcome for each in judged.said for _ in range(each.count)])
    found = cyclicity(X, y, samples=100)
    shown = found.table()
    return [Table(shown.columns, shown.rows, f"{judged.name}: circles"), found.cycles_table(most=3)]


def by_name(judged: JudgedSet) -> Table:
    """Options known by name, over pairs: an option that is in no training pair is predicted as even."""
    X = np.array([[each.first, each.second] for each in judged.said])
    y, count = np.array([each.outcome for each in judged.said]), np.array([float(each.count) for each in judged.said])
    pair = np.unique(X, axis=0, return_inverse=True)[1].reshape(-1)
    fold = (np.random.default_rng(0).permutation(pair.max() + 1) % JOKE_PARTS)[pair]
    rows: list[list[Any]] = []
    for name, model in {
        "Bradley-Terry, ridge 0.1": BradleyTerry(ridge=0.1),
        "Bradley-Terry, ridge 1": BradleyTerry(ridge=1.0),
        "Bradley-Terry, ridge 3": BradleyTerry(ridge=3.0),
        "Thurstone, ridge 3": Thurstone(ridge=3.0),
    }.items():
        odds = np.zeros(len(y))
        for held in range(JOKE_PARTS):
            model.fit(X[fold != held], y[fold != held], count[fold != held])
            known = np.isin(X, model.items_).all(axis=1) & (fold == held)
            log_p = model.predict_log_proba(X[known])
            odds[known] = log_p[:, 1] - log_p[:, 0]
        found = held_out_figures(odds, y, weights=count, clusters=pair)
        rows.append([name, found.log_likelihood, found.accuracy, found.calibration])
    title = f"{judged.name}: by name, over pairs"
    return Table(["model", "log-likelihood", "accuracy", "calibration error"], rows, title)


def new_jokes(judged: JudgedSet) -> JudgedSet:
    """Pairs whose two texts fall into one of five parts, which is held out whole: no text is seen twice."""
    part = np.random.default_rng(0).integers(JOKE_PARTS, size=len(judged.texts))
    kept = [
        each._replace(group=f"part {part[each.first]}") for each in judged.said if part[each.first] == part[each.second]
    ]
    return JudgedSet(judged.name, judged.about, judged.unit, judged.texts, kept)


def measured(name: str, data: Path, output: Path, embedder: Path | None) -> dict[str, Any]:
    """All figures of a set; its plot is written beside them."""
    start = time.perf_counter()
    judged = SETS[name](data)
    made = judged
    tables: list[Table] = []
    if name == "humour_pairs":
        tables += [by_name(judged), *circles(judged)]
        made = new_jokes(judged)
    if name == "ukp_convarg":
        tables += circles(judged)
    options = Options(made, features_of(judged, output / "features", embedder))
    found, more = over_prompts(options, made, JOKE_PARTS if name == "humour_pairs" else FOLDS)
    tables = [*more, *tables]
    chosen = {"over prompts": dict(found.chosen)}
    if name in WITH_PEOPLE:
        people = over_people(options, made)
        tables.append(people.table(f"{name}: {people.people} new people"))
        chosen["over people"] = dict(people.chosen)
        plot = people.plot(f"{name}: {people.people} people whom the models have not met")
        plot.figure.savefig(output / f"preference-people-{name}.svg", metadata={"Date": None})
    return {
        "about": judged.about,
        "counts": counts(judged),
        "named features": NAMES,
        "tables": [table.to_dict() for table in tables],
        "chosen": chosen,
        "seconds of each model": dict(found.seconds),
        "seconds": time.perf_counter() - start,
    }


def counts(judged: JudgedSet) -> dict[str, Any]:
    said: Sequence[Said] = judged.said
    people = {each.person for each in said if each.person is not None}
    ties = sum(each.count for each in said if each.outcome == 0.5)
    total = sum(each.count for each in said)
    return {
        "judgements": total,
        "ties": ties / total,
        "pairs": len({(each.first, each.second) for each in said}),
        "people": len(people),
        "groups": len({each.group for each in said}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path, help="folder of the sets")
    parser.add_argument("--only", action="append", choices=list(SETS), help="measure this set; may be repeated")
    parser.add_argument("--output", type=Path, default=Path("runs/preference-results"), help="figures and features")
    parser.add_argument("--embedder", type=Path, help="folder of a text encoder: an example of a user's embeddings")
    parser.add_argument("--fresh", action="store_true", help="measure sets again that were finished")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore", message="features that are constant")
    results = {}
    for name in SETS:
        done = arguments.output / f"{name}.json"
        wanted = not arguments.only or name in arguments.only
        if wanted and (arguments.fresh or not done.is_file()):
            found = measured(name, arguments.data, arguments.output, arguments.embedder)
            done.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        if done.is_file():
            results[name] = json.loads(done.read_text(encoding="utf-8"))
    lines = [line for name, found in results.items() for line in page_of(name, found)]
    (arguments.output / "tables.md").write_text("\n".join(lines), encoding="utf-8")
    (arguments.output / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def page_of(name: str, found: dict[str, Any]) -> list[str]:
    """A set's tables as the page shows them."""
    lines = [f"## {name}", "", f"{found['about']}: {found['counts']}, {found['seconds']:.0f} s", ""]
    for table in found["tables"]:
        columns, rows = table["columns"], table["rows"]
        if "labels" in columns:
            columns, rows = by_labels(rows)
        lines += [f"**{table['title']}**", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        lines += [f"| {' | '.join(map(cell, row))} |" for row in rows] + [""]
    for kind, chosen in found["chosen"].items():
        for model, names in chosen.items():
            lines.append(
                f"- {kind}, {model}: {'; '.join(f'{names.count(each)} x {each}' for each in sorted(set(names)))}"
            )
    return [*lines, ""]


def by_labels(rows: list[list[Any]]) -> tuple[list[str], list[list[Any]]]:
    """New people with a column a number of labels: log-likelihood of everybody's model, and gains over it."""
    counts_of = sorted({row[1] for row in rows})
    shown = {}
    for name, count, likelihood, gain, _ in rows:
        shown.setdefault(name, {})[count] = likelihood if gain is None else gain
    return ["model", *map(str, counts_of)], [[name, *(own[each] for each in counts_of)] for name, own in shown.items()]


def cell(value: Any) -> str:
    """A value of a table; intervals with three decimals."""
    if isinstance(value, dict):
        shown = f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]".replace("-", "\u2212")
        return shown.replace("\u22120.000", "0.000")
    return "" if value is None else str(value)


if __name__ == "__main__":
    main()
