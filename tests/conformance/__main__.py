import argparse
import sys
from pathlib import Path

from .runner import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description="Run conformance vectors.")
    parser.add_argument("folder", type=Path, help="folder of JSON files")
    parser.add_argument("--slug", help="only this file, without .json")
    options = parser.parse_args()
    files = sorted(options.folder.glob(f"{options.slug or '*'}.json"))
    if not files:
        parser.error(f"no {options.slug or '*'}.json in {options.folder}")
    outcomes = [outcome for file in files for outcome in run(file)]
    for outcome in outcomes:
        print(outcome)
    failed = sum(outcome.problem is not None for outcome in outcomes)
    print(f"{len(outcomes) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
