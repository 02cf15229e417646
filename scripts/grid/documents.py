"""Documents with the tables and pictures of grids."""

import re
from collections.abc import Callable
from pathlib import Path

from bert_of_theseus.run.command_line import UserError
from grid.cells import Results, read_grid
from grid.output import draw, write
from grid.pictures import pictures
from grid.tables import TABLES


def filled(text: str, read: Callable[[str], Results]) -> str:
    """The text with each table as the results of its folder give it; UserError where it names one that there is not."""

    def fill(match: re.Match) -> str:
        folder, _, name = match[1].rpartition("/")
        if name not in TABLES:
            raise UserError(f"there is no table {name}; there are {', '.join(TABLES)}")
        table = TABLES[name](read(folder)) or "No run tells this.\n"
        return f"<!-- {match[1]} -->\n{table}<!-- /{match[1]} -->"

    return re.sub(r"<!-- ([\w/-]+) -->\n.*?<!-- /\1 -->", fill, text, flags=re.DOTALL)


def reader(results_dir: Path) -> Callable[[str], Results]:
    """What reads, once, the results of a folder in `results_dir`."""
    known: dict[str, Results] = {}

    def read(folder: str) -> Results:
        if folder not in known:
            known[folder] = read_grid(results_dir / folder)
            if not known[folder].runs:
                raise UserError(
                    f"{results_dir / folder}: there is no run.json that can be read; reproduce.sh makes them"
                )
        return known[folder]

    return read


def fill_in(document: Path, results_dir: Path) -> str:
    """Fill in the document's tables, or write a new one, and the pictures that it shows; returns its text."""
    read = reader(results_dir)
    if document.exists():
        text = document.read_text()
    else:
        tables = [f"## {name.capitalize()}\n\n<!-- {name} -->\n<!-- /{name} -->\n" for name in TABLES]
        text = "\n".join(["# Results\n", *tables, *(f"![](results_{name}.png)\n" for name in pictures(read("")))])
    text = filled(text, read)
    shown = {}
    for file, folder, name in re.findall(r"!\[[^]]*\]\((([\w-]+)_([a-z]+)\.png)\)", text):
        if folder == "results" or (results_dir / folder).is_dir():
            found = pictures(read("" if folder == "results" else folder))
            if name not in found:
                raise UserError(f"{document}: there is no picture {file}; there are {', '.join(found)}")
            shown[file] = found[name]
    write(document.parent, {document.name: text} | draw(shown))
    return text
