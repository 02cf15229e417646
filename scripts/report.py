#!/usr/bin/env python
"""Fill in the tables of documents from the records of reproduce.sh, and draw the pictures that the documents show.

report.py RESULTS_DIR DOCUMENT ...

What stands in a document between <!-- NAME --> and <!-- /NAME --> becomes the table NAME of the results in
RESULTS_DIR, and of <!-- FOLDER/NAME --> that of RESULTS_DIR/FOLDER; a picture is FOLDER_NAME.png beside the document. A
new document gets all tables and pictures.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from grid.documents import fill_in

from bert_of_theseus.run.command_line import OneLineParser, one_line_errors


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(prog="report.py", description=__doc__)
    parser.add_argument("results_dir", type=Path, metavar="RESULTS_DIR", help="of the records")
    parser.add_argument("documents", type=Path, nargs="+", metavar="DOCUMENT", help="Markdown files; a new one is made")
    return parser.parse_args(argv)


def main() -> None:
    args = parse_args()
    with one_line_errors("report.py"):
        for document in args.documents:
            fill_in(document, args.results_dir)


if __name__ == "__main__":
    main()
