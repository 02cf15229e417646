"""Downloading GLUE, from a server of our own on this machine that can also misbehave."""

import contextlib
import hashlib
import io
import os
import stat
import subprocess
import sys
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

from scripts import download_glue

SCRIPT = Path(download_glue.__file__)
WNLI_ROWS = {"train.tsv": 635, "dev.tsv": 71, "test.tsv": 146}


class Server(ThreadingHTTPServer):
    """Serves `files` (path to bytes). `faults` (path to list) names how the next answers for a path go wrong.

    Faults: an int is an HTTP status; "break" ends the connection halfway, "stall" is silent from there;
    "ignore range" answers with the whole file.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list] = {}
        self.requests: list[tuple[str, str | None]] = []  # path and Range header
        self.closing = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        path, wanted = self.path.removeprefix("/"), self.headers.get("Range")
        self.server.requests.append((path, wanted))
        faults = self.server.faults.get(path)
        fault = faults.pop(0) if faults else None
        if isinstance(fault, int) or path not in self.server.files:
            self.send_error(fault if isinstance(fault, int) else 404)
            return
        data = self.server.files[path]
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        start = 0
        if wanted and fault != "ignore range" and self.headers.get("If-Range", etag) == etag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start >= len(data):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("ETag", etag)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        half = len(data) // 2 if fault in ("break", "stall") else len(data)
        self.wfile.write(data[start : max(start, half)])
        if fault == "stall":
            self.wfile.flush()
            self.server.closing.wait(10)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()
    thread.join(10)


def tsv(rows: int, columns: int = 4) -> bytes:
    """A header and rows that do not compress away."""
    lines = ["\t".join(f"column{column}" for column in range(columns))]
    for row in range(rows):
        lines.append("\t".join([str(row), *(hashlib.md5(b"%d" % (row + c)).hexdigest() for c in range(1, columns))]))
    return "\n".join(lines).encode() + b"\n"


def zipped(members: dict) -> bytes:
    """An archive; members' names may be ZipInfos."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def wnli(**rows: int) -> dict:
    """WNLI's members, with GLUE's rows but for those given: `train=634`."""
    counts = WNLI_ROWS | {f"{split}.tsv": count for split, count in rows.items()}
    return {f"WNLI/{name}": tsv(count) for name, count in counts.items()}


def mrpc_texts() -> dict[str, bytes]:
    """MRPC's raw text as it is published: a byte-order mark, carriage returns, no line feed at the end."""
    header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
    train = [f'1\t{i}\t{i + 1}\tHe said " é {i}\tShe said {i}' for i in range(3668 + 408)]
    test = [f"0\t{i}\t{i + 2}\tFirst {i}\tSecond {i}" for i in range(1725)]
    ids = [f"{i}\t{i + 1}" for i in range(5, 4080, 10)]
    return {
        "mrpc_dev_ids.tsv": "\n".join(ids).encode(),
        "msr_paraphrase_train.txt": b"\xef\xbb\xbf" + "\r\n".join([header, *train]).encode(),
        "msr_paraphrase_test.txt": b"\xef\xbb\xbf" + "\r\n".join([header, *test]).encode(),
    }


class Done(NamedTuple):
    """What a call of the script came to."""

    returncode: int
    stdout: str
    stderr: str


def run(*args) -> Done:
    """The script's main function: quicker than a process, and whatever it lets through fails the test."""
    with contextlib.redirect_stdout(io.StringIO()) as stdout, contextlib.redirect_stderr(io.StringIO()) as stderr:
        returncode = download_glue.main([str(arg) for arg in args])
    return Done(returncode, stdout.getvalue(), stderr.getvalue())


def download(server, glue_dir, *args) -> Done:
    return run(glue_dir, "--base_url", server.url, *args)


def start_script(*args, **kwargs) -> subprocess.Popen:
    command = [sys.executable, str(SCRIPT), *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs)


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


WNLI_FILES = ["WNLI/dev.tsv", "WNLI/test.tsv", "WNLI/train.tsv"]


def test_only_the_files_of_glues_layout_come_and_a_second_run_downloads_nothing(server, tmp_path):
    members = wnli()
    server.files["WNLI.zip"] = zipped(members | {"WNLI/original/train.tsv": b"x", "__MACOSX/WNLI/._dev.tsv": b"x"})
    server.files["AX.tsv"] = tsv(1104)
    done = download(server, tmp_path / "new" / "glue", "--tasks", "wnli", "diagnostic", "WNLI")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["WNLI", "diagnostic"]
    glue_dir = tmp_path / "new" / "glue"
    assert files_in(glue_dir) == [*WNLI_FILES, "diagnostic/diagnostic.tsv"]
    assert [path.name for path in glue_dir.iterdir() if path.name.startswith(".")] == []
    assert all((glue_dir / name).read_bytes() == data for name, data in members.items())

    requests = len(server.requests)
    done = download(server, glue_dir, "--tasks", "WNLI", "ax")
    assert done.returncode == 0
    assert done.stdout.count("already") == 2
    assert len(server.requests) == requests


def test_overwrite_downloads_again_what_is_there(server, tmp_path):
    server.files["WNLI.zip"] = zipped(wnli())
    for expected_requests in (1, 2):
        assert download(server, tmp_path, "--tasks", "WNLI", "--overwrite").returncode == 0
        assert len(server.requests) == expected_requests


def test_files_with_too_few_rows_are_replaced_and_the_summary_says_so(server, tmp_path):
    server.files["WNLI.zip"] = zipped(wnli())
    (tmp_path / "WNLI").mkdir()
    for name in WNLI_ROWS:
        (tmp_path / "WNLI" / name).write_bytes(tsv(20))
    done = download(server, tmp_path, "--tasks", "WNLI")
    assert done.returncode == 0
    assert "in place of what was there" in done.stdout
    assert (tmp_path / "WNLI/train.tsv").read_bytes() == tsv(635)


def test_mrpcs_dev_set_is_the_rows_with_the_listed_ids_and_its_test_set_has_an_index_for_the_label(server, tmp_path):
    server.files = mrpc_texts()
    done = download(server, tmp_path, "--tasks", "MRPC")
    assert (done.returncode, done.stderr) == (0, "")
    assert files_in(tmp_path) == ["MRPC/dev.tsv", "MRPC/test.tsv", "MRPC/train.tsv"]
    train, dev, test = (
        (tmp_path / "MRPC" / name).read_bytes().decode().split("\n")[:-1]
        for name in ("train.tsv", "dev.tsv", "test.tsv")
    )
    assert train[0] == dev[0] == "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
    assert dev[1] == '1\t5\t6\tHe said " é 5\tShe said 5'
    assert [line.split("\t")[1] for line in dev[1:]] == [str(i) for i in range(5, 4080, 10)]
    assert [line.split("\t")[1] for line in train[1:]] == [str(i) for i in range(4076) if i % 10 != 5]
    assert test[0] == "index\t#1 ID\t#2 ID\t#1 String\t#2 String"
    assert test[-1] == "1724\t1724\t1726\tFirst 1724\tSecond 1724"


def test_mrpcs_text_is_looked_for_at_mrpc_url_where_one_is_given(server, tmp_path):
    texts = mrpc_texts()
    server.files = {"glue/mrpc_dev_ids.tsv": texts.pop("mrpc_dev_ids.tsv")}
    server.files |= {f"text/{name}": data for name, data in texts.items()}
    addresses = ("--base_url", server.url + "glue", "--mrpc_url", server.url + "text/")
    assert run(tmp_path, "--tasks", "mrpc", *addresses).returncode == 0


def test_a_damaged_row_of_mrpcs_text_is_named_by_file_and_line(server, tmp_path):
    server.files = mrpc_texts()
    server.files["msr_paraphrase_test.txt"] += b"\r\n0\t7\t9\tonly one string"
    done = download(server, tmp_path, "--tasks", "MRPC")
    assert done.returncode == 1
    assert "msr_paraphrase_test.txt:1727: 4 columns; expected 5" in done.stderr
    assert files_in(tmp_path) == []


def test_a_download_that_breaks_off_is_continued_in_the_same_run(server, tmp_path):
    archive = server.files["WNLI.zip"] = zipped(wnli())
    server.faults["WNLI.zip"] = ["break"]
    assert download(server, tmp_path, "--tasks", "WNLI").returncode == 0
    assert server.requests == [("WNLI.zip", None), ("WNLI.zip", f"bytes={len(archive) // 2}-")]
    assert (tmp_path / "WNLI/train.tsv").read_bytes() == tsv(635)


def test_a_download_that_breaks_off_is_kept_and_continued_by_the_next_run(server, tmp_path):
    archive = server.files["WNLI.zip"] = zipped(wnli())
    server.faults["WNLI.zip"] = ["break"]
    done = download(server, tmp_path, "--tasks", "WNLI", "--retries", 0)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    (part,) = tmp_path.rglob("*.part")
    assert part.name == "WNLI.zip.part"
    assert part.read_bytes() == archive[: len(archive) // 2]
    assert download(server, tmp_path, "--tasks", "WNLI").returncode == 0
    assert server.requests[1:] == [("WNLI.zip", f"bytes={len(archive) // 2}-")]
    assert sorted(os.listdir(tmp_path)) == ["WNLI"]


def test_a_killed_run_leaves_nothing_under_a_final_name_and_the_next_one_goes_on(server, tmp_path):
    server.files["WNLI.zip"] = zipped(wnli())
    server.faults["WNLI.zip"] = ["stall"]
    with start_script(tmp_path, "--tasks", "WNLI", "--base_url", server.url) as process:
        part = tmp_path / ".download/WNLI.zip.part"
        deadline = time.monotonic() + 20
        while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
    size = part.stat().st_size
    assert [name for name in files_in(tmp_path) if not name.startswith(".download/")] == []
    assert download(server, tmp_path, "--tasks", "WNLI").returncode == 0
    assert server.requests[1:] == [("WNLI.zip", f"bytes={size}-")]
    assert sorted(os.listdir(tmp_path)) == ["WNLI"]


def test_a_part_of_a_file_that_the_server_has_since_replaced_is_not_continued(server, tmp_path):
    texts = mrpc_texts()
    server.files = dict(texts)
    server.files["msr_paraphrase_test.txt"] = texts["msr_paraphrase_test.txt"].replace(b"First", b"Older")
    server.faults["msr_paraphrase_test.txt"] = ["break"]
    assert download(server, tmp_path, "--tasks", "MRPC", "--retries", 0).returncode == 1
    server.files = texts
    assert download(server, tmp_path, "--tasks", "MRPC").returncode == 0
    assert b"Older" not in (tmp_path / "MRPC/test.tsv").read_bytes()


def test_a_server_that_sends_the_whole_file_instead_of_the_rest_is_no_trouble(server, tmp_path):
    server.files["WNLI.zip"] = zipped(wnli())
    server.faults["WNLI.zip"] = ["break", "ignore range"]
    assert download(server, tmp_path, "--tasks", "WNLI").returncode == 0
    assert [wanted is not None for _, wanted in server.requests] == [False, True]
    assert (tmp_path / "WNLI/train.tsv").read_bytes() == tsv(635)


def test_a_part_as_long_as_the_file_is_downloaded_anew(server, tmp_path):
    server.files["WNLI.zip"] = zipped(wnli())
    (tmp_path / ".download").mkdir()
    (tmp_path / ".download/WNLI.zip.part").write_bytes(bytes(len(server.files["WNLI.zip"])))
    assert download(server, tmp_path, "--tasks", "WNLI").returncode == 0
    assert server.requests[-1] == ("WNLI.zip", None)


def test_a_stalled_connection_is_given_up_after_the_timeout_and_continued(server, tmp_path):
    archive = server.files["WNLI.zip"] = zipped(wnli())
    server.faults["WNLI.zip"] = ["stall"]
    done = download(server, tmp_path, "--tasks", "WNLI", "--timeout", 0.3)
    assert done.returncode == 0
    assert "timed out" in done.stderr
    assert server.requests[1] == ("WNLI.zip", f"bytes={len(archive) // 2}-")


def test_a_server_error_is_tried_again(server, tmp_path):
    server.files["WNLI.zip"] = zipped(wnli())
    server.faults["WNLI.zip"] = [500, 503]
    assert download(server, tmp_path, "--tasks", "WNLI").returncode == 0
    assert len(server.requests) == 3


def test_a_missing_file_is_not_tried_again_and_the_other_tasks_go_on(server, tmp_path):
    server.files["WNLI.zip"] = zipped(wnli())
    done = download(server, tmp_path, "--tasks", "RTE", "WNLI")
    assert done.returncode == 1
    (reason,) = done.stderr.splitlines()
    assert f"RTE: {server.url}RTE.zip: HTTP 404" in reason
    assert "--base_url" in reason
    assert [path for path, _ in server.requests] == ["RTE.zip", "WNLI.zip"]
    assert files_in(tmp_path) == WNLI_FILES


def test_a_server_that_is_not_there_gives_one_line_a_task(server, tmp_path):
    server.server_close()
    done = download(server, tmp_path, "--tasks", "RTE", "WNLI", "--retries", 0)
    assert done.returncode == 1
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["RTE", "WNLI"]


def test_a_folder_that_cannot_be_written_gives_one_line(server, tmp_path):
    server.files["WNLI.zip"] = zipped(wnli())
    (tmp_path / "file").write_text("")
    done = download(server, tmp_path / "file", "--tasks", "WNLI")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1


def _link() -> zipfile.ZipInfo:
    link = zipfile.ZipInfo("WNLI/link")
    link.create_system = 3  # Unix, whose file modes it has
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    return link


@pytest.mark.parametrize("member", ["../evil.tsv", "/tmp/evil.tsv", "C:\\evil.tsv", "WNLI\\..\\..\\evil.tsv", _link()])
def test_an_archive_with_a_member_that_leads_outside_is_refused_whole(server, tmp_path, member):
    server.files["WNLI.zip"] = zipped(wnli() | {member: b"/etc"})
    done = download(server, tmp_path / "glue", "--tasks", "WNLI")
    assert done.returncode == 1
    (reason,) = done.stderr.splitlines()
    assert repr(getattr(member, "filename", member)) in reason
    assert files_in(tmp_path) == []


def test_a_damaged_archive_is_deleted_so_that_the_next_run_starts_again(server, tmp_path):
    archive = zipped(wnli())
    flipped = bytearray(archive)
    flipped[200] ^= 0xFF  # in the first member's data
    for damaged in (archive[: len(archive) // 2], bytes(flipped), b"<html>Please log in</html>"):
        server.files["WNLI.zip"] = damaged
        done = download(server, tmp_path, "--tasks", "WNLI")
        assert done.returncode == 1
        (reason,) = done.stderr.splitlines()
        assert "WNLI.zip is damaged" in reason
        assert files_in(tmp_path) == []
    server.files["WNLI.zip"] = archive
    assert download(server, tmp_path, "--tasks", "WNLI").returncode == 0


def test_an_archive_that_lacks_a_file_is_an_error_that_names_it(server, tmp_path):
    members = wnli()
    del members["WNLI/dev.tsv"]
    server.files["WNLI.zip"] = zipped(members)
    done = download(server, tmp_path, "--tasks", "WNLI")
    assert done.returncode == 1
    assert "there is no WNLI/dev.tsv in it" in done.stderr
    assert files_in(tmp_path) == []


def test_an_archive_that_unpacks_to_too_much_is_refused(server, tmp_path, monkeypatch):
    server.files["WNLI.zip"] = zipped(wnli())
    monkeypatch.setattr(download_glue, "MAX_UNPACKED", 10_000)
    done = download(server, tmp_path, "--tasks", "WNLI")
    assert done.returncode == 1
    assert "refused" in done.stderr
    assert files_in(tmp_path) == []


def test_a_file_that_is_one_row_off_is_taken_with_a_warning_and_counts_as_there(server, tmp_path):
    server.files["WNLI.zip"] = zipped(wnli(train=634))
    done = download(server, tmp_path, "--tasks", "WNLI")
    assert done.returncode == 0
    assert done.stderr == "WNLI: warning: train.tsv has 634 rows, expected 635\n"
    assert "already" in download(server, tmp_path, "--tasks", "WNLI").stdout


def test_a_file_that_is_ten_rows_off_is_an_error_and_leaves_the_folder_as_it_was(server, tmp_path):
    server.files["WNLI.zip"] = zipped(wnli(dev=61))
    done = download(server, tmp_path, "--tasks", "WNLI")
    assert done.returncode == 1
    (reason,) = done.stderr.splitlines()
    assert "dev.tsv has 61 rows, expected 71" in reason
    assert files_in(tmp_path) == []

    (tmp_path / "WNLI").mkdir()
    (tmp_path / "WNLI/train.tsv").write_text("mine")
    assert download(server, tmp_path, "--tasks", "WNLI").returncode == 1
    assert files_in(tmp_path) == ["WNLI/train.tsv"]
    assert (tmp_path / "WNLI/train.tsv").read_text() == "mine"


def test_rows_are_counted_as_the_reader_takes_them(tmp_path):
    (tmp_path / "QQP").mkdir()
    (tmp_path / "CoLA").mkdir()
    rows = tsv(5, columns=6) + b"a short row\n" + b"another\twithout\tits\tlabel"
    for name, count in {"QQP/train.tsv": 5, "QQP/test.tsv": 7, "CoLA/train.tsv": 8, "CoLA/test.tsv": 7}.items():
        (tmp_path / name).write_bytes(rows)
        assert download_glue.count_rows(tmp_path / name) == count


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        ([], list(download_glue.SOURCES)),
        (["all", "RTE"], list(download_glue.SOURCES)),
        (["sst2", "STS-b", "MNLI-mm", "mnli"], ["SST-2", "STS-B", "MNLI"]),
        (["ax", "Diagnostic"], ["diagnostic"]),
    ],
)
def test_tasks_go_by_folder_or_by_run_glues_names_in_any_case(names, folders):
    assert download_glue.parse_args(["GLUE", *(["--tasks", *names] if names else [])]).tasks == folders


def test_the_addresses_are_glues_own_unless_another_is_given():
    args = download_glue.parse_args(["GLUE"])
    assert (args.base_url, args.mrpc_url) == (download_glue.BASE_URL, download_glue.MRPC_URL)
    assert args.base_url.startswith("https://")
    args = download_glue.parse_args(["GLUE", "--base_url", "http://mirror/glue"])
    assert args.base_url == args.mrpc_url == "http://mirror/glue/"


@pytest.mark.parametrize(
    "wrong",
    [
        ["--tasks", "squad"],
        ["--base_url", "file:///etc/"],
        ["--base_url", "mirror"],
        ["--retries", "-1"],
        ["--timeout", "nan"],
    ],
)
def test_a_wrong_argument_is_refused_in_one_line(wrong, capsys):
    with pytest.raises(SystemExit) as exit:
        download_glue.parse_args(["GLUE", *wrong])
    assert exit.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert wrong[0] in line


def test_the_script_runs_from_anywhere_and_without_a_terminal_shows_no_progress_bar(server, tmp_path):
    server.files["WNLI.zip"] = zipped(wnli())
    process = start_script("glue", "--tasks", "WNLI", "RTE", "--base_url", server.url, cwd=tmp_path)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 1
    assert [line.split(":")[0] for line in stdout.splitlines()] == ["WNLI", "RTE"]
    assert [line.split(":")[0] for line in stderr.splitlines()] == ["RTE"]
    assert files_in(tmp_path / "glue") == WNLI_FILES
