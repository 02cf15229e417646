#!/usr/bin/env python
"""Download GLUE into its folder layout: GLUE_DIR/MRPC/train.tsv and so on, ready for run_glue.py --data_dir.

Complete folders are left alone. Call the script again to continue a download that broke off.
"""

import argparse
import contextlib
import http.client
import shutil
import sys
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bert_of_theseus.data.task import DataError
from bert_of_theseus.run.command_line import OneLineParser, UserError, above, at_least, one_line_errors
from bert_of_theseus.run.files import whole_files
from glue_processors import TASKS, GlueTask, find_task, read_examples

BASE_URL = "https://dl.fbaipublicfiles.com/glue/data/"
MRPC_URL = "https://dl.fbaipublicfiles.com/senteval/senteval_data/"
CHUNK = 1 << 16  # bytes


def files_of(folder_name: str) -> dict[str, tuple[GlueTask, str, int]]:
    """The files in one of GLUE's folders by name: the task, the split and the number of rows of each."""
    return {
        file: (task, split, n_rows)
        for task in TASKS.values()
        for split, n_rows in zip(("train", "dev", "test"), task.rows, strict=True)
        if task.folder == folder_name and (file := getattr(task, split))
    }


def check(folder_name: str, folder: Path) -> dict[str, int]:
    """Read the files of one of GLUE's folders and count their rows. Some copies are one row off: that is a warning.

    Raises:
        DataError: a file is missing or damaged, or more than one row off.
    """
    counts = {}
    for file, (task, split, expected) in files_of(folder_name).items():
        counts[file] = len(read_examples(task, folder, split).first)
        difference = f"{file} has {counts[file]:,} rows, expected {expected:,}"
        if abs(counts[file] - expected) > 1:
            raise DataError(difference)
        if counts[file] != expected:
            print(f"{folder_name}: warning: {difference}", file=sys.stderr)
    return counts


# The next three functions make the files of one of GLUE's folders in `target`, an empty folder, from the downloads.


def unzip(downloads: list[Path], target: Path, folder_name: str) -> None:
    """Take the .tsv files from an archive, which holds them under the folder's name."""
    (archive,) = downloads
    try:
        with zipfile.ZipFile(archive) as members:
            # Only these names are taken, so no other member can reach the disk, wherever its path leads.
            for file in files_of(folder_name):
                with members.open(f"{folder_name}/{file}") as source, open(target / file, "wb") as unpacked:
                    shutil.copyfileobj(source, unpacked)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:  # KeyError: there is no such member
        raise UserError(f"{archive.name} is damaged ({error}) and was deleted; try again") from error


def copy(downloads: list[Path], target: Path, folder_name: str) -> None:
    """Take the one download as the folder's one file."""
    (file,) = files_of(folder_name)
    shutil.copyfile(downloads[0], target / file)


def split_mrpc(downloads: list[Path], target: Path, folder_name: str) -> None:
    """Split MRPC's raw text: rows with a listed pair of ids are the dev set, the others the train set."""
    ids, (header, *rows), (test_header, *test_rows) = map(read_rows, downloads)
    dev_ids = {tuple(row) for row in ids}
    write_rows(target / "train.tsv", [header] + [row for row in rows if tuple(row[1:3]) not in dev_ids])
    write_rows(target / "dev.tsv", [header] + [row for row in rows if tuple(row[1:3]) in dev_ids])
    # GLUE's test sets have no labels. Here an index takes the place of the label.
    indexed = [[str(index), *row[1:]] for index, row in enumerate(test_rows)]
    write_rows(target / "test.tsv", [["index", *test_header[1:]], *indexed])


def read_rows(path: Path) -> list[list[str]]:
    """The cells of each line."""
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path.name}: what was downloaded is no text in UTF-8 ({error})") from error
    # Not splitlines(), which would also split at rare characters within a sentence.
    return [line.split("\t") for line in text.removesuffix("\n").split("\n")]


def write_rows(path: Path, rows: list[list[str]]) -> None:
    """Write rows as lines, with tabs between the cells."""
    path.write_text("".join("\t".join(row) + "\n" for row in rows), "utf-8")


# For each folder the function that makes its files, and the downloads that it needs. MRPC's text is at --mrpc_url.
SOURCES: dict[str, tuple[Callable[[list[Path], Path, str], None], list[str]]] = {
    "CoLA": (unzip, ["CoLA.zip"]),
    "SST-2": (unzip, ["SST-2.zip"]),
    "MRPC": (split_mrpc, ["mrpc_dev_ids.tsv", "msr_paraphrase_train.txt", "msr_paraphrase_test.txt"]),
    "STS-B": (unzip, ["STS-B.zip"]),
    "QQP": (unzip, ["QQP-clean.zip"]),
    "MNLI": (unzip, ["MNLI.zip"]),
    "QNLI": (unzip, ["QNLIv2.zip"]),
    "RTE": (unzip, ["RTE.zip"]),
    "WNLI": (unzip, ["WNLI.zip"]),
    "diagnostic": (copy, ["AX.tsv"]),
}


def download(url: str, path: Path, retries: int, timeout: float) -> None:
    """Download `url` to `path`, and continue NAME.part if an earlier try left one.

    Raises:
        UserError: the server has no such file, or all tries failed. NAME.part stays.
    """
    part = path.with_name(f"{path.name}.part")
    for attempt in range(retries + 1):
        try:
            receive(url, part, timeout)
            part.replace(path)
            return
        except urllib.error.HTTPError as error:
            reason = f"HTTP {error.code} {error.reason}"
            if error.code == 416:  # the part is as long as the file, or longer
                part.unlink(missing_ok=True)
            elif error.code < 500:
                raise UserError(f"{url}: {reason}; --base_url or --mrpc_url can name another address") from error
        except (OSError, http.client.HTTPException) as error:
            reason = str(error)
        if attempt < retries:
            pause = min(0.5 * 2**attempt, 30)
            print(f"{path.name}: {reason}; next try in {pause:g} s", file=sys.stderr)
            time.sleep(pause)
    raise UserError(f"{url}: {reason} (tries: {retries + 1}); call again to continue")


def receive(url: str, part: Path, timeout: float) -> None:
    """Try once to download what `part` lacks; OSError or HTTPException where the connection breaks."""
    size = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={size}-"} if size else {})
    with urllib.request.urlopen(request, timeout=timeout) as response:
        if response.status != 206:  # the server sends the whole file
            size = 0
        total = None if response.length is None else size + response.length
        progress = tqdm(desc=part.stem, total=total, initial=size, unit="B", unit_scale=True, disable=None)
        with open(part, "ab" if size else "wb") as file, progress:
            # read() would lose what has come when the connection stalls.
            while chunk := response.read1(CHUNK):
                progress.update(file.write(chunk))
        if response.length:
            raise http.client.HTTPException(f"the connection ended {response.length:,} bytes early")


def install(folder_name: str, args: argparse.Namespace) -> str:
    """Put one of GLUE's folders in place, complete and checked, and say in a line what was done.

    Raises:
        UserError: a download failed or is damaged. The folder is left as it was.
        DataError: the files are not GLUE's. The folder is left as it was.
    """
    folder, working = args.glue_dir / folder_name, args.glue_dir / ".download"
    if not args.overwrite:
        with contextlib.suppress(DataError):
            check(folder_name, folder)
            return f"already in {folder}"
    working.mkdir(parents=True, exist_ok=True)
    unpack, names = SOURCES[folder_name]
    downloads = [working / name for name in names]
    for path in downloads:
        if not path.exists():
            url = (args.mrpc_url if path.name.startswith("msr_") else args.base_url) + path.name
            download(url, path, args.retries, args.timeout)
    try:
        with whole_files(folder) as target:
            unpack(downloads, target, folder_name)
            counts = check(folder_name, target)
    finally:
        for path in downloads:
            path.unlink()
    rows = ", ".join(f"{file} {n_rows:,}" for file, n_rows in counts.items())
    return f"downloaded to {folder} (rows: {rows})"


def folders(text: str) -> list[str]:
    """An argparse type: the folders for a task's name, a folder's name or "all"."""
    if text.lower() == "all":
        return list(SOURCES)
    try:
        return [find_task(text).folder]
    except KeyError:
        raise argparse.ArgumentTypeError(f"there is no task {text!r}; there are all, {', '.join(SOURCES)}") from None


def address(text: str) -> str:
    """An argparse type: a web address, with a slash at its end."""
    if urlsplit(text).scheme not in ("http", "https"):
        raise argparse.ArgumentTypeError(f"{text!r} is not an address like {BASE_URL}")
    return text.rstrip("/") + "/"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; `tasks` become the folders to make, each once."""
    parser = OneLineParser(prog="download_glue.py", description=__doc__)
    add = parser.add_argument
    add("glue_dir", metavar="GLUE_DIR", type=Path, help="where the tasks' folders go; made if it is not there")
    names = f"all (the default), or some of {', '.join(SOURCES)}; run_glue.py's names (sst2, mnli, ax ...) do as well"
    add("--tasks", nargs="+", type=folders, default=[list(SOURCES)], metavar="TASK", help=names)
    add("--overwrite", action="store_true", help="download complete folders again")
    add("--base_url", type=address, help=f"where the archives are (default: {BASE_URL})")
    add("--mrpc_url", type=address, help=f"where MRPC's raw text is (default: --base_url if given, else {MRPC_URL})")
    add("--retries", type=at_least(0), default=5, help="tries after the first, for each file (default: %(default)s)")
    add("--timeout", type=above(0), default=30, help="seconds without a byte that end a try (default: %(default)s)")
    args = parser.parse_args(argv)
    args.mrpc_url = args.mrpc_url or args.base_url or MRPC_URL
    args.base_url = args.base_url or BASE_URL
    args.tasks = list(dict.fromkeys(folder for some in args.tasks for folder in some))
    return args


def main(argv: list[str] | None = None) -> int:
    """Install the tasks one after the other; the exit status is 0 if all are there."""
    args = parse_args(argv)
    n_failures = 0
    for name in args.tasks:
        try:
            print(f"{name}: {install(name, args)}", flush=True)
        except (UserError, DataError, OSError) as error:
            print(f"{name}: failed: {error}", file=sys.stderr)
            n_failures += 1
    with contextlib.suppress(OSError):  # the folder holds a part to continue, or was never made
        (args.glue_dir / ".download").rmdir()
    return 1 if n_failures else 0


if __name__ == "__main__":
    with one_line_errors("download_glue.py"):
        sys.exit(main())
