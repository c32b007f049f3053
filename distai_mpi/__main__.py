"""``python -m distai_mpi`` is the command ``distai-mpi``."""

import sys

from .cli.entry import main

sys.exit(main())
