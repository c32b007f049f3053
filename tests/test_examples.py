"""Every example runs as its first line says."""

import re
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SAYS = {
    "averaging.py": r"accuracy 9\d\.\d+ % with \d+ exchanges in \d+ steps",
    "mnist.py": r"accuracy 9\d\.\d+ % at [\d,]+ samples/s",
}


def test_every_example_is_run():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SAYS)


@pytest.mark.parametrize("name", SAYS)
def test_example(mpirun, name):
    done = mpirun(2, str(EXAMPLES / name), timeout=120)
    assert done.returncode == 0, done.stderr
    assert re.search(SAYS[name], done.stdout)


def test_the_program_of_the_readme_is_the_example():
    readme = (EXAMPLES.parent / "README.md").read_text()
    body = (EXAMPLES / "mnist.py").read_text().split('"""', 2)[2].strip()
    assert body in readme
