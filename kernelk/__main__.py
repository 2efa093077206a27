"""`python -m kernelk`: the command line where the `kernelk` program is not on PATH."""

from .cli.main import main

raise SystemExit(main())
