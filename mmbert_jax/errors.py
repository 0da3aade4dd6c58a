"""What bad input ends in: one error class, and one place where a command line reports it."""

import sys
from collections.abc import Callable


class UserError(ValueError):
    """Bad input: the message names the file, record or config field and says what to do about it."""


def run_main(main: Callable[[], None]) -> None:
    """Runs a command line's `main`; a `UserError` becomes one line on stderr and exit status 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
