"""The stages of the pipeline, each run as `python -m stages.NAME`."""

import signal
import sys

if sys.version_info < (3, 11):
    sys.exit(f"Python 3.11 or newer is needed, and this is {sys.version.split()[0]}; `make demo` sets up the right one")
if sys.argv[0] == "-m":  # Python looks for the stage to run: until it has started, Ctrl-C ends it without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)
