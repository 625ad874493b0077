import subprocess
import sys
from pathlib import Path

import pytest

from . import runner

ROOT = Path(__file__).parents[2]
VECTORS = ROOT.parent / "shared" / "golden"
PASSING = {
    "rdpo": None,  # all of them
    "dove": None,
    "mapl": None,
    "osp": None,
    "rationales": None,
    "vpo": None,
    "lcpo": None,
    "madpo": None,
    "calibrated-decoding": None,
    "curry-dpo": None,
    "ift": None,
    "tpo": None,
    "spo": None,
    "sparsepo": None,
    "gpm": None,
    "pal": None,
    "secrets-rm": None,
    "worldpm": None,
    "context-pm": None,
    "domain-rm": None,
    "flr": None,
    "ches": None,
    "dissecting": None,
    "ranking-accuracy": None,
    "value-drifts": None,
    "diffusion-dpo": None,
    "smpo-diffusion": None,
    "inpo": None,
    "diffusion-dro": None,
    "self-npo": None,
    "prefpaint": None,
    "rso": {"sigmoid_norm_loss", "hinge_norm_loss", "hinge_loss", "slic_loss"},
}


@pytest.mark.parametrize("slug", PASSING)
def test_vectors(slug: str) -> None:
    file = VECTORS / f"{slug}.json"
    if not file.exists():
        pytest.skip(f"the conformance vectors are not at {VECTORS}")
    wanted = PASSING[slug]
    outcomes = [o for o in runner.run(file) if wanted is None or o.function.split(".")[1] in wanted]
    assert outcomes
    assert wanted is None or len(outcomes) == len(wanted)
    assert [str(outcome) for outcome in outcomes if outcome.problem] == []


DOUBLE = {"inputs": {"x": [1, 2]}, "expected": {"losses": [2.0, 4.0], "loss": 3.0, "grad_x": [1.0, 1.0]}}


def test_runner_takes_the_mean_and_the_gradient() -> None:
    assert runner.check(lambda x: {"losses": 2 * x["x"]}, **DOUBLE, relative=1e-7) is None


def test_runner_names_the_first_difference() -> None:
    problem = runner.check(lambda x: {"losses": 2.001 * x["x"]}, **DOUBLE, relative=1e-7)
    assert problem is not None
    assert problem.startswith("losses[0]: expected 2.0, got 2.001")


def test_runner_finds_a_wrong_gradient() -> None:
    problem = runner.check(lambda x: {"losses": (2 * x["x"]).detach() + 0 * x["x"]}, **DOUBLE, relative=1e-7)
    assert problem == "grad_x[0]: expected 1.0, got 0.0"


@pytest.mark.parametrize(
    ("expected", "actual"),
    [([1.0, 2.0], [1.0]), ({"a": 1}, {"b": 1}), ("A", "B"), (None, 0), (1.0, float("nan")), ([True], [False])],
)
def test_runner_sees_differences_of_structure(expected: object, actual: object) -> None:
    assert runner.difference(expected, actual, 1e-7) is not None


def test_command_counts_a_missing_adapter_as_failed(tmp_path: Path) -> None:
    (tmp_path / "nowhere.json").write_text('{"slug": "nowhere", "functions": [{"name": "f", "cases": []}]}')
    command = [sys.executable, "-m", "tests.conformance", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == "nowhere.f: FAILED: no adapter\n0 passed, 1 failed\n"
