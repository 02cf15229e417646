#!/usr/bin/env python
"""Download GLUE into its folder layout: GLUE_DIR/MRPC/train.tsv and so on, ready for run_glue.py --data_dir.

What is there already is not downloaded again, and a download that broke off is continued by the next call.
"""

import argparse
import contextlib
import http.client
import os
import shutil
import ssl
import stat
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from typing import NamedTuple
from urllib.parse import urlsplit

from command_line import OneLineParser, above, at_least
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from glue_processors import TASKS, GlueDataError, find_task

BASE_URL = "https://dl.fbaipublicfiles.com/glue/data/"
MRPC_URL = "https://dl.fbaipublicfiles.com/senteval/senteval_data/"
MAX_UNPACKED = 2 * 1024**3  # bytes taken from one archive; the largest of GLUE's, MNLI, stays far below
CHUNK = 1 << 16

# What a connection that breaks, stalls or never comes about raises. Other OSErrors are the disk's: no retry helps.
BROKEN_CONNECTION = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)


class DownloadError(Exception):
    """A file that could not be downloaded; the message names its address."""


# The next three make the .tsv files `names` in `folder`, an empty one named as in GLUE, from what was downloaded.


def unzip(downloads: list[Path], folder: Path, names: list[str]) -> None:
    """Take the files from an archive that holds them under the folder's name; GlueDataError where it is unfit."""
    (archive,) = downloads
    try:
        with zipfile.ZipFile(archive) as members:
            check_members(archive.name, members.infolist(), [f"{folder.name}/{name}" for name in names])
            for name in names:
                with members.open(f"{folder.name}/{name}") as source, open(folder / name, "wb") as target:
                    shutil.copyfileobj(source, target)
    except (GlueDataError, OSError):
        raise
    except Exception as error:  # whatever a damaged archive makes zipfile and its decompressors raise
        raise GlueDataError(f"{archive.name} is damaged ({error}) and was deleted; try again") from None


def check_members(archive: str, members: list[zipfile.ZipInfo], wanted: list[str]) -> None:
    """GlueDataError where a member would land outside a folder, is wanted but missing, or is too large."""
    for member in members:
        path = PureWindowsPath(member.filename)  # it knows both kinds of slashes, and drives
        if path.anchor or ".." in path.parts or stat.S_ISLNK(member.external_attr >> 16):
            raise GlueDataError(f"{archive}: refused; its member {member.filename!r} leads outside the folder")
    sizes = {member.filename: member.file_size for member in members}  # zipfile reads no more than this
    for name in wanted:
        if name not in sizes:
            raise GlueDataError(f"{archive}: there is no {name} in it")
    unpacked = sum(sizes[name] for name in wanted)
    if unpacked > MAX_UNPACKED:
        raise GlueDataError(f"{archive}: refused; {unpacked:,} bytes when unpacked, at most {MAX_UNPACKED:,} are taken")


def copy(downloads: list[Path], folder: Path, names: list[str]) -> None:
    """Take the one download as it is, under GLUE's name."""
    shutil.copyfile(downloads[0], folder / names[0])


def split_mrpc(downloads: list[Path], folder: Path, names: list[str]) -> None:
    """Make MRPC's files from its raw text: the rows whose two ids are listed are dev, the others train."""
    ids, train, test = downloads
    dev_ids = {tuple(row) for row in read_rows(ids, columns=2)}
    (header, *train_rows), (_, *test_rows) = (read_rows(text, columns=5) for text in (train, test))
    split = {"train.tsv": [header], "dev.tsv": [header], "test.tsv": [[b"index", *header[1:]]]}
    for row in train_rows:
        split["dev.tsv" if tuple(row[1:3]) in dev_ids else "train.tsv"].append(row)
    # A test set of GLUE has no labels: the index takes their column.
    split["test.tsv"] += [[b"%d" % index, *row[1:]] for index, row in enumerate(test_rows)]
    for name in names:
        (folder / name).write_bytes(b"".join(b"\t".join(row) + b"\n" for row in split[name]))


def read_rows(path: Path, columns: int) -> list[list[bytes]]:
    """The columns of each line, bare of byte-order mark and line ends; GlueDataError where their number is another."""
    lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").removesuffix(b"\n").split(b"\n")
    rows = [line.removesuffix(b"\r").split(b"\t") for line in lines]
    for number, row in enumerate(rows, start=1):
        if len(row) != columns:
            raise GlueDataError(f"{path.name}:{number}: {len(row)} columns; expected {columns}, parted by tabs")
    return rows


class Source(NamedTuple):
    """Where the files of one of GLUE's folders come from."""

    unpack: Callable[[list[Path], Path, list[str]], None]
    urls: tuple[str, ...]


_MRPC_FILES = ("{base_url}mrpc_dev_ids.tsv", "{mrpc_url}msr_paraphrase_train.txt", "{mrpc_url}msr_paraphrase_test.txt")

SOURCES: dict[str, Source] = {
    "CoLA": Source(unzip, ("{base_url}CoLA.zip",)),
    "SST-2": Source(unzip, ("{base_url}SST-2.zip",)),
    "MRPC": Source(split_mrpc, _MRPC_FILES),
    "STS-B": Source(unzip, ("{base_url}STS-B.zip",)),
    "QQP": Source(unzip, ("{base_url}QQP-clean.zip",)),
    "MNLI": Source(unzip, ("{base_url}MNLI.zip",)),
    "QNLI": Source(unzip, ("{base_url}QNLIv2.zip",)),
    "RTE": Source(unzip, ("{base_url}RTE.zip",)),
    "WNLI": Source(unzip, ("{base_url}WNLI.zip",)),
    "diagnostic": Source(copy, ("{base_url}AX.tsv",)),
}


def expected_rows(folder: str) -> dict[str, int]:
    """The files of one of GLUE's folders and their rows, without headers and short rows that readers skip."""
    return {
        file: rows
        for task in TASKS.values()
        if task.folder == folder
        for file, rows in zip((task.train, task.dev, task.test), task.rows, strict=True)
        if file
    }


def count_rows(path: Path) -> int:
    """The rows of a file in one of GLUE's folders, without its header and without short rows that readers skip."""
    task = next(task for task in TASKS.values() if task.folder == path.parent.name)
    labelled = path.name.startswith(("train", "dev"))
    skip_short_rows = labelled and task.skip_short_rows
    n_tabs = max(*task.sentences, task.label) if skip_short_rows else 0
    with open(path, "rb") as lines:
        rows = sum(line.count(b"\t") >= n_tabs for line in lines)
    return max(0, rows - (task.header or not labelled))


def wrong_files(folder: Path, rows: dict[str, int], warn: bool = False) -> list[str]:
    """What is wrong with the files of a folder, in words; nothing where all are there with the right rows.

    Copies in circulation can be a row off at the end of a file: with `warn` that is said, on stderr.
    """
    wrong = []
    for name, expected in rows.items():
        path = folder / name
        if not path.is_file():
            wrong.append(f"{name} is missing")
            continue
        found = count_rows(path)
        difference = f"{name} has {found:,} rows, expected {expected:,}"
        if abs(found - expected) > 1:
            wrong.append(difference)
        elif found != expected and warn:
            print(f"{folder.name}: warning: {difference}", file=sys.stderr)
    return wrong


def download(url: str, path: Path, retries: int, timeout: float) -> None:
    """Download `url` to `path`, going on from NAME.part where an earlier try has left one.

    Raises:
        DownloadError: the server has no such file, or all tries failed; what has come stays in NAME.part.
    """
    part = path.with_name(f"{path.name}.part")
    for attempt in range(retries + 1):
        try:
            receive(url, part, timeout)
            part.replace(path)
            return
        except urllib.error.HTTPError as error:
            reason = f"HTTP {error.code} {error.reason}"
            if error.code == 416:  # a part as long as the file, or longer, is no part of it
                part.unlink(missing_ok=True)
            elif error.code < 500:
                raise DownloadError(f"{url}: {reason}; --base_url or --mrpc_url can name another address") from None
        except BROKEN_CONNECTION as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        if attempt < retries:
            pause = min(0.5 * 2**attempt, 30)
            print(f"{path.name}: {reason}; next try in {pause:g} s", file=sys.stderr)
            time.sleep(pause)
    raise DownloadError(f"{url}: {reason} (tries: {retries + 1}); call again to go on")


def receive(url: str, part: Path, timeout: float) -> None:
    """One try to complete `part`; raises what urllib does, or HTTPException where the answer ends early."""
    version = part.with_suffix(".version")  # of the server's file that the part is from
    size = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={size}-"} if size else {}
    if size and version.exists() and (validator := version.read_text()):
        headers["If-Range"] = validator
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout) as response:
        if response.status != 206:  # the whole file: there was no part, it is of another version, or parts are unknown
            part.write_bytes(b"")  # before its version changes: that must never be another's
            etag = response.headers.get("ETag", "W/")
            version.write_text(response.headers.get("Last-Modified", "") if etag.startswith("W/") else etag)
            size = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {size}-"):
            part.unlink(missing_ok=True)
            raise http.client.HTTPException("the server sent another part than was asked for")
        total = None if response.length is None else size + response.length
        progress = tqdm(desc=part.stem, total=total, initial=size, unit="B", unit_scale=True, disable=None)
        with open(part, "ab") as file, progress:
            # read1 hands over what has come; read would lose it when the connection stalls.
            while file.tell() != total and (chunk := response.read1(CHUNK)):
                progress.update(file.write(chunk))
            if total is not None and file.tell() != total:
                raise http.client.HTTPException(f"the connection ended after {file.tell():,} of {total:,} bytes")
    version.unlink(missing_ok=True)


def install(name: str, args: argparse.Namespace) -> str:
    """Put one of GLUE's folders in place, whole and checked, and say in a line what was done.

    Raises:
        DownloadError: as `download`.
        GlueDataError: what was downloaded is not what GLUE has; the folder is left as it was.
        OSError: of the disk.
    """
    source, rows = SOURCES[name], expected_rows(name)
    folder, working = args.glue_dir / name, args.glue_dir / ".download"
    if not args.overwrite and not wrong_files(folder, rows):
        return f"already in {folder}"
    unpacked = working / name
    shutil.rmtree(unpacked, ignore_errors=True)  # a killed call's
    unpacked.mkdir(parents=True)
    urls = [url.format(base_url=args.base_url, mrpc_url=args.mrpc_url) for url in source.urls]
    downloads = [working / url.rpartition("/")[2] for url in urls]
    try:
        for url, path in zip(urls, downloads, strict=True):
            if not path.exists():
                download(url, path, args.retries, args.timeout)
        try:
            source.unpack(downloads, unpacked, list(rows))
            if wrong := wrong_files(unpacked, rows, warn=True):
                raise GlueDataError(f"{', '.join(path.name for path in downloads)}: {'; '.join(wrong)}")
        finally:
            for path in downloads:
                path.unlink(missing_ok=True)
        folder.mkdir(exist_ok=True)
        replaced = [file for file in rows if (folder / file).exists()]
        for file in rows:
            with open(unpacked / file, "rb") as written:
                os.fsync(written.fileno())
            (unpacked / file).replace(folder / file)
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    counts = ", ".join(f"{file} {count_rows(folder / file):,}" for file in rows)
    return f"downloaded to {folder} (rows: {counts}){' in place of what was there' if replaced else ''}"


def folders(text: str) -> list[str]:
    """An argparse type: the folders that a task's name, a folder's or "all" stands for."""
    if text.lower() == "all":
        return list(SOURCES)
    try:
        return [find_task("ax" if text.lower() == "diagnostic" else text).folder]
    except KeyError:
        raise argparse.ArgumentTypeError(f"there is no task {text!r}; there are all, {', '.join(SOURCES)}") from None


def address(text: str) -> str:
    """An argparse type: a web address, with a slash at its end."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:  # a bad port is a ValueError
        raise argparse.ArgumentTypeError(f"{text!r} is not an address like {BASE_URL}")
    return text.rstrip("/") + "/"


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line; `tasks` become the folders to make, each once."""
    parser = OneLineParser(prog="download_glue.py", description=__doc__)
    add = parser.add_argument
    add("glue_dir", metavar="GLUE_DIR", type=Path, help="where the tasks' folders go; made if it is not there")
    add(
        "--tasks",
        nargs="+",
        type=folders,
        default=[list(SOURCES)],
        metavar="TASK",
        help=f"all (the default), or some of {', '.join(SOURCES)}; run_glue.py's names (sst2, mnli, ax ...) do as well",
    )
    add("--overwrite", action="store_true", help="download tasks again whose files are there already")
    add("--base_url", type=address, help=f"where the archives are (default: {BASE_URL})")
    add("--mrpc_url", type=address, help=f"where MRPC's raw text is (default: --base_url if given, else {MRPC_URL})")
    add("--retries", type=at_least(0), default=5, help="tries after the first, a file (default: %(default)s)")
    add(
        "--timeout",
        type=above(0),
        default=30,
        help="seconds without a byte that end a try (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    args.mrpc_url = args.mrpc_url or args.base_url or MRPC_URL
    args.base_url = args.base_url or BASE_URL
    args.tasks = list(dict.fromkeys(folder for some in args.tasks for folder in some))
    return args


def main(argv: list[str] | None = None) -> int:
    """Install the tasks one after the other; the exit status is 0 if all are there."""
    args = parse_args(argv)
    failures = []
    for name in args.tasks:
        try:
            print(f"{name}: {install(name, args)}", flush=True)
        except (DownloadError, OSError, ValueError) as error:
            print(f"{name}: failed", flush=True)
            reason = str(error) or type(error).__name__
            failures.append(f"{name}: {' '.join(reason.split())}")
    with contextlib.suppress(OSError):  # it is not empty where there is something to go on with
        (args.glue_dir / ".download").rmdir()
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted; call again to go on")
