"""What a program ends in that cannot go on: bad input, a full disk, a damaged file; and one place that reports it."""

import argparse
import contextlib
import errno
import io
import os
import re
import resource
import sys
from collections.abc import Callable

STANDARD_OUTPUT = "standard output"
# Exit statuses: what the user can mend; as a shell reports a process that SIGINT or SIGPIPE has ended.
USAGE, INTERRUPTED, READER_HAS_LEFT = 2, 128 + 2, 128 + 13

# Packages whose own exceptions are about files: what is in them, or that they cannot be read or written.
_ABOUT_FILES = {
    *("orbax", "safetensors", "tensorstore", "tokenizers", "zlib", "zstandard"),
    # Those that speak to object stores.
    *("aiohttp", "botocore", "gcsfs", "google", "s3fs"),
}

_MAKE_ROOM = "make room, then run the same command again"
_ELSEWHERE = "see to what may be done there, or choose another place"
_WAY_OUT = {
    errno.ENOSPC: _MAKE_ROOM,
    errno.EDQUOT: _MAKE_ROOM,
    errno.EROFS: "choose another place",
    errno.EACCES: _ELSEWHERE,
    errno.EPERM: _ELSEWHERE,
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


class UserError(ValueError, argparse.ArgumentTypeError):
    """Bad input: the message names the file, record or config field and says what to do about it.

    Of an argument that is refused while a command line is read, argparse repeats the words of this kind of error alone.
    """


def run_main(main: Callable[[], None]) -> None:
    """Runs a command line's `main`.

    What `explain` explains becomes one line on stderr and exit status 2. Ctrl-C, and a reader of standard output that
    has left, such as `head`, end it without a word. Any other exception is a fault of the program and keeps its
    traceback.
    """
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _report_unraisable
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names of files need not be text, and a terminal need not have every character: as on standard error.
        sys.stdout.reconfigure(errors="backslashreplace")
    _raise_limit_of_open_files()
    error: BaseException | None = None
    try:
        main()
    except BaseException as raised:
        error = raised
    unwritten = _flush_standard_output()
    if unwritten and _says_no_more(error, unwritten):
        error = unwritten
    if error is None:
        return
    if isinstance(error, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    if isinstance(error, BrokenPipeError) and error.filename in (None, STANDARD_OUTPUT):
        sys.exit(READER_HAS_LEFT)
    text = explain(error)
    if text is None:
        raise error
    print(f"error: {text}", file=sys.stderr)
    sys.exit(USAGE)


def explain(error: BaseException) -> str | None:
    """What went wrong, for whoever can mend it by other input or a better disk; None for a fault of the program.

    An error of the operating system has to name its file; `files.naming` gives a name to one that does not.
    """
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        return _explain_os_error(error)
    if isinstance(error, MemoryError):
        return "out of memory"
    return brief(error) if about_files(error) else None


def about_files(error: BaseException) -> bool:
    """Whether a package's own exception is about a file or an object."""
    packages = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    # `tokenizers` raises bare Exception, and tensorstore ValueErrors that say where in its sources they come from.
    theirs = type(error) is Exception or (type(error) is ValueError and "tensorstore" in str(error))
    return theirs or bool(packages & _ABOUT_FILES)


def brief(error: BaseException) -> str:
    """An error's first line; of tensorstore's, which go on and on, the system's words or what comes first."""
    text = str(error).strip() or repr(error)
    if found := re.search(r"\[os_error_code='(\d+)'", text):
        return os.strerror(int(found.group(1)))
    return re.split(r" \[(?:\w+|source locations)=", text.splitlines()[0])[0]


def _explain_os_error(error: OSError) -> str:
    if error.errno is None:
        return str(error) or repr(error)
    names = [
        os.fsdecode(name) if isinstance(name, bytes) else str(name)
        for name in (error.filename, error.filename2)
        if name is not None
    ]
    reason = error.strerror or os.strerror(error.errno)
    if not names and about_files(error):  # aiohttp's say to whom they could not connect
        reason = brief(error)
    text = f"{' -> '.join(names)}: {reason}" if names else reason
    way_out = _WAY_OUT.get(error.errno)
    return f"{text}; {way_out}" if way_out else text


def _raise_limit_of_open_files() -> None:
    """To what the system allows: checkpoints, loaders and their workers together may want more than the usual 1,024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # some systems allow less than they say
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _report_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    # tensorstore's threads, when a save has failed: the failure itself is reported, and they come after it.
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _says_no_more(error: BaseException | None, unwritten: OSError) -> bool:
    """Whether `main` ended as it should, or in the error that standard output gives again."""
    if isinstance(error, SystemExit):
        return error.code in (None, 0)
    return error is None or (isinstance(error, OSError) and error.errno == unwritten.errno)


def _flush_standard_output() -> OSError | None:
    if sys.stdout is None or sys.stdout.closed:
        return None
    try:
        sys.stdout.flush()
    except OSError as error:
        # The interpreter would try again at its end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        error.filename = STANDARD_OUTPUT
        return error
    return None
