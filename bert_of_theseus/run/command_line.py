"""What the commands share: arguments, errors in one line, plain logging, and tables."""

import argparse
import errno
import logging
import math
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class UserError(Exception):
    """Something that the user can mend. The message says in one line what is wrong, where, and what to do."""


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that prints its description as written, and each mistake in one line."""

    def __init__(self, **settings):
        # No abbreviations: a misspelt flag must not be taken for another one.
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **settings)

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())} (--help lists the flags)\n")


def at_least(bound: float, kind: type = int):
    """An argparse type: a number of this kind that is not below the bound."""
    return _number(kind, lambda value: value >= bound, f"at least {bound}")


def above(bound: float, kind: type = float):
    """An argparse type: a number of this kind above the bound."""
    return _number(kind, lambda value: value > bound, f"above {bound}")


def _number(kind: type, fits, words: str):
    def parse(text: str):
        value = kind(text)
        if not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"{text} is not a finite number")
        if not fits(value):
            raise argparse.ArgumentTypeError(f"{text} is not {words}")
        return value

    parse.__name__ = kind.__name__  # argparse says "invalid int value"
    return parse


# Errors of the system that a user can mend: no room, no permission, a reader of the output that has gone, a file where
# a folder should be or the other way round.
MENDABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS, errno.EPIPE}
MENDABLE |= {errno.EEXIST, errno.ENOTDIR, errno.EISDIR}


@contextmanager
def one_line_errors(prog: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turn a UserError, an error of these kinds, or a mendable one of the system, into one line and exit status 1.

    Ctrl-C ends with one line and status 130. Every other error keeps its traceback.
    """
    try:
        yield
    except (UserError, *kinds) as error:
        raise SystemExit(f"{prog}: error: {' '.join(str(error).split())}") from error
    except OSError as error:
        if error.errno not in MENDABLE:
            raise
        raise SystemExit(f"{prog}: error: {error}") from error
    except KeyboardInterrupt:
        print(f"\n{prog}: interrupted", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None


class _PlainFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return "warning: " * (record.levelno == logging.WARNING) + super().format(record)


def log_plainly() -> None:
    """Log messages as they are to standard error, warnings as such, without the libraries' own chatter."""
    import transformers  # here, so that commands without a model start without it

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PlainFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for name in ("httpx", "httpcore", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table as text: the first column to the left, all others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    )


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; the first row is its head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [rows[0], ["-" * width for width in widths], *rows[1:]]
    return "".join(f"| {' | '.join(map(str.ljust, line, widths))} |\n" for line in lines)
