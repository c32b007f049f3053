"""``python -m distai_mpi`` is the command ``distai-mpi``."""

import sys

from .cli.main import main

sys.exit(main())
