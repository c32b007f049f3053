"""Is `converged` ever said where it is not so?  Random hard problems, each judged by an independent solution.

    python tests/hard_problems.py [--count 300] [--ranks 1,2,3] [--seed 0] [--only 17,203]

Every problem (see `hard_tables`) is fitted at each rank count by a program of its own, which fits one after another;
then `hard_solutions`, which shares no code with the package, finds the optimum of the same table.  A run is *wrong*
where it says that it converged and

* the optimum is better by more than 10 times the tolerance (a relative gap of 1e-4), or
* a coefficient is more than 0.2 standard errors off (of the inverse Hessian at the optimum), or
* ranks of one run give different results, or runs at two rank counts that converged are 0.2 standard errors apart.

A program that crashes or hangs is wrong too.  At least 95 % of the runs in float64, and of those in float32 with
standardized features, must converge.  The exit status is 0 only if nothing is wrong and enough converged.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hard_solutions import Solution, Unfit, solve
from hard_tables import Problem, draw
from run import mpi_environment, mpiexec_command

TOL = 1e-5
MOST_GAP, MOST_OFF = 10 * TOL, 0.2
LEAST_CONVERGED = 0.95
MOST_ATTEMPTS = 50
SILENCE = 300.0  # seconds without a result after which a program is ended: the first ones wait for kernels to compile
GROUPS = ("float64", "float32 standardize", "float32")  # the first two must converge


@dataclass
class Verdict:
    """What a run came to.

    Attributes:
        problem, ranks: what was run.
        end: ``converged``, ``not converged``, ``refused`` or ``crashed``.
        wrong: what is wrong with it, in words; empty where nothing is.
        gap, off: see `Solution`; None where there are no parameters.
        told: the run's own words.
    """

    problem: Problem
    ranks: int
    end: str
    wrong: str = ""
    gap: float | None = None
    off: float | None = None
    told: str = ""

    @property
    def group(self) -> str:
        """Which of `GROUPS` the run belongs to."""
        problem = self.problem
        return problem.dtype + " standardize" * (problem.dtype == "float32" and problem.standardize)


def choose(seed: int, numbers: Sequence[int]) -> tuple[dict[int, Solution], Counter[str]]:
    """Solutions of the problems with these numbers, and why earlier attempts at them were left out."""
    found: dict[int, Solution] = {}
    left_out: Counter[str] = Counter()
    for number in numbers:
        for attempt in range(MOST_ATTEMPTS):
            problem = draw(seed, number, attempt)
            if problem is None:
                left_out["too few rows of a class"] += 1
                continue
            try:
                found[number] = solve(problem)
                break
            except Unfit as error:
                left_out[str(error)] += 1
        else:
            raise RuntimeError(f"problem {number} of seed {seed}: none of {MOST_ATTEMPTS} attempts has an optimum")
    return found, left_out


def run_all(problems: Sequence[Problem], ranks: int, folder: Path) -> dict[int, dict[str, Any]]:
    """What came of each problem at so many ranks, by number; after a crash or a hang the rest is started anew."""
    results: dict[int, dict[str, Any]] = {}
    lines = folder / "results.jsonl"
    while len(results) < len(problems):
        rest = [problem for problem in problems if problem.number not in results]
        (folder / "tasks.json").write_text(json.dumps([(p.seed, p.number, p.attempt) for p in rest]))
        lines.write_text("")
        with open(folder / "stderr.txt", "w") as errors:
            status = _run(ranks, folder, errors)
        done = [json.loads(line) for line in lines.read_text().splitlines()]
        results |= {found.pop("number"): found for found in done}
        failed = next((problem for problem in rest if problem.number not in results), None)
        if failed is not None:
            last = (folder / "stderr.txt").read_text().split("-----")[-1].strip().splitlines()
            results[failed.number] = {"crashed": f"{status}: {' | '.join(last[-3:])}"}
    return results


def _run(ranks: int, folder: Path, errors: Any) -> str:
    """Run one program to its end; how it ended."""
    command = [*mpiexec_command(ranks), sys.executable, "-m", "mpi4py", str(Path(__file__).with_name("hard_runs.py"))]
    with subprocess.Popen(
        [*command, str(folder)], env=mpi_environment(), stdin=subprocess.DEVNULL, stdout=errors, stderr=errors
    ) as process:
        size, since = -1, time.monotonic()
        while process.poll() is None:
            time.sleep(0.05)
            now = (folder / "results.jsonl").stat().st_size
            if now != size:
                size, since = now, time.monotonic()
            if time.monotonic() - since > SILENCE:
                process.terminate()  # mpiexec takes its ranks down with it
                process.wait(30)
                return f"no result for {SILENCE:.0f} s"
        return f"status {process.returncode}"


def judge(solution: Solution, ranks: int, found: dict[str, Any]) -> Verdict:
    """The verdict on what a run ``found``."""
    problem = solution.problem
    if "crashed" in found:
        return Verdict(problem, ranks, "crashed", "crashed", told=found["crashed"])
    if "refused" in found:
        return Verdict(problem, ranks, "refused", told=found["refused"])
    gap, off = solution.gap(found["w"]), solution.off(found["w"])
    if gap < -1e-8 and not solution.has_noise:
        raise RuntimeError(f"problem {problem.number}: the run is better than the independent solution by {-gap:.1e}")
    end = "converged" if found["converged"] else "not converged"
    told = f"{found['status']}, {found['reason']}, {found['iterations']} iterations"
    verdict = Verdict(problem, ranks, end, gap=gap, off=off, told=told)
    if not found["alike"]:
        verdict.wrong = "ranks disagree"
    elif end == "converged" and gap > MOST_GAP:
        verdict.wrong = "gap"
    elif end == "converged" and off > MOST_OFF and not (solution.has_noise and gap < 0):  # fits rounding, too
        verdict.wrong = "coefficients"
    return verdict


def compare(solution: Solution, runs: dict[int, dict[str, Any]], verdicts: Sequence[Verdict]) -> None:
    """Find wrong what converged at two rank counts to results that are apart."""
    right = [verdict for verdict in verdicts if verdict.end == "converged" and not verdict.wrong]
    for one, other in itertools.combinations(right, 2):
        if (one.gap or 0) < 0 or (other.gap or 0) < 0:
            continue
        if solution.off(runs[one.ranks]["w"], runs[other.ranks]["w"]) > MOST_OFF:
            other.wrong = f"not as at {one.ranks} ranks"


def table(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """Counts by model, method, dtype and standardizing, as lines."""
    layout = "{:9}{:10}{:21}{:>5}{:>10}{:>14}{:>8}{:>8}{:>6}"
    ends = ("converged", "not converged", "refused", "crashed")
    yield layout.format("model", "method", "features", "runs", *ends, "wrong")

    def line(words: Sequence[str], part: Sequence[Verdict]) -> str:
        counts = Counter(verdict.end for verdict in part)
        wrong = sum(bool(verdict.wrong) for verdict in part)
        return layout.format(*words, len(part), *(counts[end] for end in ends), wrong)

    def kind(verdict: Verdict) -> tuple[str, str, str]:
        problem = verdict.problem
        return problem.model, problem.method, problem.dtype + " standardize" * problem.standardize

    for each in sorted({kind(verdict) for verdict in verdicts}):
        yield line(each, [verdict for verdict in verdicts if kind(verdict) == each])
    for group in GROUPS:
        yield line(("all", "", group), [verdict for verdict in verdicts if verdict.group == group])
    yield line(("all", "", ""), verdicts)


def details(verdicts: Sequence[Verdict], seed: int) -> Iterator[str]:
    """Every run that is wrong, did not converge or was refused, with the command that repeats it."""
    for verdict in sorted(verdicts, key=lambda verdict: (not verdict.wrong, verdict.end)):
        if not verdict.wrong and verdict.end == "converged":
            continue
        problem, numbers = verdict.problem, ""
        if verdict.gap is not None and verdict.off is not None:
            numbers = f" gap {verdict.gap:.1e}, {verdict.off:.2g} standard errors;"
        head = f"WRONG ({verdict.wrong})" if verdict.wrong else verdict.end
        again = f"python tests/hard_problems.py --seed {seed} --only {problem.number} --ranks {verdict.ranks}"
        yield f"{head}: {problem};{numbers} {verdict.told}\n    {again}"


def missed(verdicts: Sequence[Verdict]) -> list[str]:
    """What was asked for and is not so, in words."""
    wrong = sum(bool(verdict.wrong) for verdict in verdicts)
    found = [f"{wrong} runs are wrong"] if wrong else []
    for group in GROUPS[:2]:
        part = [verdict for verdict in verdicts if verdict.group == group]
        converged = sum(verdict.end == "converged" for verdict in part)
        if part and converged < LEAST_CONVERGED * len(part):
            found.append(f"{converged} of {len(part)} {group} runs converged, fewer than {LEAST_CONVERGED:.0%}")
    return found


def check(seed: int, numbers: Sequence[int], rank_counts: Sequence[int], speak: Any = print) -> list[Verdict]:
    """Verdicts on the problems with these numbers at all rank counts."""
    began = time.monotonic()
    solutions, left_out = choose(seed, numbers)
    for why, count in left_out.items():
        speak(f"drawn anew {count} times: {why}")
    speak(f"{len(solutions)} independent solutions, {time.monotonic() - began:.1f} s")
    problems = [solution.problem for solution in solutions.values()]
    runs: dict[int, dict[int, dict[str, Any]]] = {}
    for ranks in rank_counts:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            runs[ranks] = run_all(problems, ranks, Path(folder))
        speak(f"{ranks} rank{'s' * (ranks > 1)}: {time.monotonic() - began:.1f} s")
    verdicts = []
    for number, solution in solutions.items():
        found = {ranks: runs[ranks][number] for ranks in rank_counts}
        ones = [judge(solution, ranks, each) for ranks, each in found.items()]
        compare(solution, found, ones)
        verdicts += ones
    return verdicts


def main() -> int:
    """Run, judge and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300, help="how many problems (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first (default: %(default)s)")
    parser.add_argument("--only", help="numbers of single problems, with commas between them")
    parser.add_argument("--ranks", default="1,2,3", help="rank counts (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all problems (default: %(default)s)")
    parser.add_argument("--wrong-only", action="store_true", help="tell nothing of runs that did not converge")
    options = parser.parse_args()
    only = options.only and [int(number) for number in options.only.split(",")]
    numbers = only or range(options.first, options.first + options.count)
    verdicts = check(options.seed, numbers, [int(ranks) for ranks in options.ranks.split(",")])
    told = [verdict for verdict in verdicts if verdict.wrong or not options.wrong_only]
    for line in itertools.chain(details(told, options.seed), table(verdicts)):
        print(line)
    if only:
        for verdict in verdicts:
            gap, off = (float("nan") if number is None else number for number in (verdict.gap, verdict.off))
            print(
                f"{verdict.problem.number} at {verdict.ranks}: {verdict.end}, gap {gap:.2e}, {off:.2g} standard errors"
            )
    failures = missed(verdicts)
    print(f"FAILED: {'; '.join(failures)}" if failures else "passed: nothing wrong, and enough converged")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
