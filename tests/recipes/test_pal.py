from __future__ import annotations

import numpy as np

from prefkit.recipes import pal


def test_people_of_a_group_choose_alike_and_groups_differ() -> None:
    world = pal.World(np.random.default_rng(0), 2, by_prompt=False)
    rows = [world.judge(["a"], np.array([group]), 500, np.random.default_rng(1)) for group in (0, 0, 1)]
    np.testing.assert_array_equal(rows[0].options, rows[2].options)
    np.testing.assert_array_equal(rows[0].chosen, rows[1].chosen)
    assert (rows[0].chosen != rows[2].chosen).mean() > 0.1
    assert rows[0].people == ["a"] * 500


def test_prompts_move_ideal_points() -> None:
    world = pal.World(np.random.default_rng(0), 2, by_prompt=True)
    judged = world.judge(["a", "b"], np.array([0, 1]), 10, np.random.default_rng(1))
    ideal = np.einsum("nij,nj->ni", world.maps[np.repeat([0, 1], 10)], judged.prompts)
    distance = np.linalg.norm(judged.options @ world.metric - ideal[:, None], axis=2)
    np.testing.assert_array_equal(judged.chosen == 1, distance[:, 0] < distance[:, 1])


def test_as_many_prototypes_as_groups_serve_people_better() -> None:
    rng = np.random.default_rng(0)
    world = pal.World(rng, 3, by_prompt=False)
    group, people = np.arange(12) % 3, [f"p{i}" for i in range(12)]
    train, test = world.judge(people, group, 40, rng), world.judge(people, group, 40, rng)
    few = world.judge(["new"], np.array([1]), 20, rng)
    scores = []
    for count in (1, 3):
        model = pal.IdealPoints(prototypes=count).fit(train.options, train.chosen, annotators=train.people)
        scores.append(model.score(test.options, test.chosen, annotators=test.people))
        assert 0.5 < pal._few_shot(model, few, few, 20) <= 1
    assert scores[1] > scores[0] + 0.05
