"""Plans runs: what a probe measures, how long a run takes on other ranks, and which ranks are best."""

from .candidates import Choice, candidates, check_memory, check_mesh, check_split, choose, told, words
from .learn import learn
from .machine import Link, Machine, from_toml, read_machine
from .model import Candidate, Learned, Planner, Prediction
from .probe import probe
from .trial import Job
from .workload import Probe, Shape, Timing, Workload

__all__ = [
    "Candidate",
    "Choice",
    "Job",
    "Learned",
    "Link",
    "Machine",
    "Planner",
    "Prediction",
    "Probe",
    "Shape",
    "Timing",
    "Workload",
    "candidates",
    "check_memory",
    "check_mesh",
    "check_split",
    "choose",
    "from_toml",
    "learn",
    "probe",
    "read_machine",
    "told",
    "words",
]
