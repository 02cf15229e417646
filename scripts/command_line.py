"""What the commands share: arguments that are refused in one line."""

import argparse


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that prints its description as it is written, and says what is wrong in one line."""

    def __init__(self, **settings):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message} (--help lists the flags)\n")


def at_least(bound: float, kind: type = int):
    """An argparse type: a finite number of this kind that is not below the bound."""
    return _number(kind, lambda value: value >= bound, f"at least {bound}")


def above(bound: float, kind: type = float):
    """An argparse type: a finite number of this kind above the bound."""
    return _number(kind, lambda value: value > bound, f"above {bound}")


def _number(kind: type, fits, words: str):
    def parse(text: str):
        value = kind(text)
        if not fits(value) or value == float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not {words}")
        return value

    parse.__name__ = kind.__name__  # argparse says "invalid int value"
    return parse
