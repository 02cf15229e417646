"""What the commands share: arguments and errors in one line, plain logging, tables, files that are whole."""

import argparse
import logging
import os
import secrets
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that prints its description as it is written, and says what is wrong in one line."""

    def __init__(self, **settings):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace=None):
        args = sys.argv[1:] if args is None else args
        for argument in args:
            if argument.startswith("--") and argument.endswith("=--"):  # of which argparse may make an empty list
                self.error(f"argument {argument[:-3]}: -- is no value")
        return super().parse_known_args(args, namespace)

    def error(self, message: str):
        message = " ".join(message.split())  # which repeats what was typed
        self.exit(2, f"{self.prog}: error: {message} (--help lists the flags)\n")


LARGEST = 10**15  # beyond it floats no longer tell one whole number from the next


def at_least(bound: float, kind: type = int):
    """An argparse type: a number of this kind that is not below the bound, nor beyond all use."""
    return _number(kind, lambda value: value >= bound, f"at least {bound}")


def above(bound: float, kind: type = float):
    """An argparse type: a number of this kind above the bound, and not beyond all use."""
    return _number(kind, lambda value: value > bound, f"above {bound}")


def _number(kind: type, fits, words: str):
    def parse(text: str):
        value = kind(text)
        if not fits(value):
            raise argparse.ArgumentTypeError(f"{text} is not {words}")
        if value > LARGEST:
            raise argparse.ArgumentTypeError(f"{text} is beyond all use")
        return value

    parse.__name__ = kind.__name__  # argparse says "invalid int value"
    return parse


def check_task(parser: argparse.ArgumentParser, args: argparse.Namespace, what_for: str) -> None:
    """Make of args.task_name the name of a task that has labels; the parser's error where there is none."""
    from glue_processors import TASKS, find_task

    tasks = [name for name, task in TASKS.items() if task.metrics]
    try:
        args.task_name = find_task(args.task_name).name
    except KeyError:
        args.task_name = None
    if args.task_name not in tasks:
        parser.error(f"--task_name: there is no such task to {what_for} on; there are {', '.join(tasks)}")


@contextmanager
def one_line_errors(prog: str, *kinds: type[Exception]) -> Iterator[None]:
    """One line on standard error and exit status 1 where such an error, or one of the disk, occurs; 130 on Ctrl-C."""
    try:
        yield
    except (*kinds, OSError) as error:
        raise SystemExit(f"{prog}: error: {' '.join(str(error).split())}") from error
    except KeyboardInterrupt:
        print(f"\n{prog}: interrupted", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None


def log_plainly() -> None:
    """Log messages as they are to standard error, without the chatter of the libraries."""
    import transformers

    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    for chatty in ("httpx", "httpcore", "huggingface_hub"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table of such rows: the first column to the left, all others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    )


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """The same as a table of Markdown, the first row its head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [rows[0], ["-" * width for width in widths], *rows[1:]]
    return "".join(f"| {' | '.join(map(str.ljust, line, widths))} |\n" for line in lines)


def write_whole(path: Path, content: bytes) -> None:
    """Write a small file that is whole or not there."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
