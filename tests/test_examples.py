"""Every example runs as its first line says."""

import contextlib
import io
import re
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from commands import on_ranks
from problems import make_rows

mpi = pytest.mark.mpi
pytestmark = pytest.mark.ranks(2)

EXAMPLES = Path(__file__).parent.parent / "examples"
SAYS = {
    "averaging.py": r"accuracy 9\d\.\d+ % with \d+ exchanges in \d+ steps",
    "node_classification.py": r"accuracy (4[5-9]|5\d)\.\d % of nodes without labels, corrected and smoothed 6\d\.\d %",
    "categories.py": r"without crosses: 59 features, AUC 0\.5\d+\nwith the cross site:ad: 359 features, AUC 0\.8\d+",
    "text_hashing.py": r"4,096 features, accuracy [89]\d\.\d %: kitchen or weather",
    "libsvm_logistic.py": r"AUC 0\.9\d+ after \d+ of \d+ epochs",
    "larger_than_memory.py": r"accuracy 7\d\.\d+ % after 20 iterations, .*, [12]\d times the data read, memory",
    "mlp_lbfgs.py": r"accuracy 9[12]\.\d+ % after 20 iterations\n.*loss 0\.2\d+ after",
    "softmax_optimum.py": r"accuracy 9[12]\.\d+ %, loss 0\.33\d+, end: tolerance",
    "own_objective.py": r"value 100000\d\.\d+, end: tolerance, .*\n.*rounds: \{",
    "penalty_path.py": r"l1 0\.\d+    0 weights .*\n(l1 .*\n){7}best: \d+ weights, of them [78] of the 8",
    "mnist.py": r"accuracy 9\d\.\d+ % at [\d,]+ samples/s",
    # at the optimum the means of what is counted and of what is predicted are the same
    "own_model.py": r"weights \[ 0\.[45]\d? +-0\.(3|29|31) .*\n.*mean count (\d\.\d{6}), predicted \2\n",
    "split_model.py": r"1(44|60|50) of 300 weights on rank 0, furthest from the truth [1-9]e-(0[6-9]|1\d)",
    "staged_model.py": r"R² 0\.98\d, stages begin with layers \[0, [1-5]\]\na micro-batch takes \d+\.\d\d ms, n · d is",
    "jax_loss.py": r"accuracy 9\d\.\d+ % at [\d,]+ samples/s",
    "torch_module.py": r"accuracy 9\d\.\d+ % at [\d,]+ samples/s",
}
NEEDS = {"jax_loss.py": "jax", "torch_module.py": "torch"}


def test_every_example_is_run():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*SAYS, "resume.py", "simulated_network.py"}


def arguments(name, folder, comm):
    """The words after an example's name: a file that it needs, or a size that takes no longer than a test may."""
    if name != "libsvm_logistic.py":
        return {"own_objective.py": ["1e6"], "larger_than_memory.py": ["8e3"]}.get(name, [])
    x, y = make_rows(rows=1500, kind="binary")
    rows = (" ".join(f"{i}:{value:.4f}" for i, value in enumerate(row, start=1)) for row in x)
    text = "".join(f"{2 * label - 1:+d} {row}\n" for label, row in zip(y, rows, strict=True))
    if comm.rank == 0:
        (folder / "rows.svm").write_text(text)
    comm.barrier()
    return ["rows.svm"]


def run_example(name, *words, cwd=".", ranks=None):
    """What ``python NAME words...`` prints, errors last, in processes that are there already; collective."""

    def run():
        sys.argv, out, err = [name, *words], io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return out.getvalue(), err.getvalue()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [])
        outputs = on_ranks(run, cwd, ranks)
    return "".join(out for out, _ in outputs) + "".join(err for _, err in outputs)


@mpi
@pytest.mark.parametrize("name", SAYS)
def test_example(comm, name, shared_path):
    if name in NEEDS and find_spec(NEEDS[name]) is None:
        pytest.skip(f"not available: {NEEDS[name]}")
    assert re.search(SAYS[name], run_example(name, *arguments(name, shared_path, comm), cwd=shared_path))


@pytest.mark.parametrize(("name", "words"), [("mlp_lbfgs.py", ["tf"]), ("libsvm_logistic.py", [])])
def test_wrong_arguments_show_how_it_is_called(name, words):
    with pytest.raises(SystemExit, match=f"python examples/{name}"):
        run_example(name, *words)


@mpi
@pytest.mark.parametrize("library", ["jax", "torch"])
def test_lbfgs_on_models_of_other_libraries(library):
    if find_spec(library) is None:
        pytest.skip(f"not available: {library}")
    assert re.search(SAYS["mlp_lbfgs.py"], run_example("mlp_lbfgs.py", library))


@mpi
@pytest.mark.ranks(3)
def test_the_example_of_resuming_goes_on_on_three_ranks(shared_path):
    for ranks, *words in ((2,), (3, "2")):
        told = run_example("resume.py", *words, cwd=shared_path, ranks=ranks)
        assert re.search(rf"accuracy 9\d\.\d+ % after {(words or [1])[0]} epochs", told)
    assert "going on from mnist-run/step-000000235, after epoch 1" in told


def test_the_program_of_the_readme_is_the_example():
    readme = (EXAMPLES.parent / "README.md").read_text()
    body = (EXAMPLES / "mnist.py").read_text().split('"""', 2)[2].strip()
    assert body in readme
