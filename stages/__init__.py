"""The stages of the pipeline, each run as `python -m stages.NAME`."""

import sys

if sys.version_info < (3, 11):
    sys.exit(f"Python 3.11 or newer is needed, and this is {sys.version.split()[0]}; `make demo` sets up the right one")
