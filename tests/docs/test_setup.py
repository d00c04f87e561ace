"""What the README says to run is what CI runs."""

from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_ci_runs_the_readmes_test_line():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    (given,) = [line for line in lines if line.endswith("pytest -n 3 --oracle --vllm")]
    assert given in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_contributing_installs_the_same():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    (given,) = [line for line in lines if line.endswith("pytest -n 3 --oracle --vllm")]
    install = given.split(" && ")[0]
    assert install in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
