"""How every stage meets the command line: a user's mistake ends in one clear line, a bug of ours in a traceback."""

import signal
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable

from stages.core.errors import UserError


def run(main: Callable[[Namespace], None], parser: ArgumentParser) -> None:
    """Parse the command line, call `main` with it, and exit with status 1 and one line on a UserError or a full disk,
    a missing permission and the like (OSError); `--debug` shows where it came from. SIGTERM ends in a line as well."""
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args()

    def terminate(*_) -> None:
        sys.exit(f"{parser.prog}: ended from outside (SIGTERM); run this again")

    signal.signal(signal.SIGTERM, terminate)
    try:
        main(args)
    except KeyboardInterrupt:
        sys.exit(130)
    except (UserError, OSError) as error:
        if args.debug:
            raise
        sys.exit(f"{parser.prog}: {error}")
