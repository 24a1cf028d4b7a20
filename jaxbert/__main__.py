"""`python -m jaxbert` is the `jaxbert` command."""

import sys

from jaxbert.cli import main

sys.exit(main())
