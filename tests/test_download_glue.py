"""Downloading GLUE from a server on this machine that can also misbehave."""

import contextlib
import io
import os
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import download_glue
import pytest

WNLI_FILES = ["WNLI/dev.tsv", "WNLI/test.tsv", "WNLI/train.tsv"]


class Server(ThreadingHTTPServer):
    """Serves `files` (path to bytes). `faults` says how its next answers go wrong, one after the other.

    Faults: an int is an HTTP status; "break" ends the connection halfway, "stall" is silent from there;
    "ignore range" answers with the whole file.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {"WNLI.zip": wnli()}
        self.faults: list[int | str] = []
        self.requests: list[tuple[str, str | None]] = []  # path and Range header
        self.closing = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        path, wanted = self.path.removeprefix("/"), self.headers.get("Range")
        self.server.requests.append((path, wanted))
        fault = self.server.faults.pop(0) if self.server.faults else None
        data = self.server.files.get(path)
        start = int(wanted[len("bytes=") : -1]) if wanted and fault != "ignore range" else 0
        if isinstance(fault, int) or data is None or start >= len(data):
            self.send_error(fault or (404 if data is None else 416))
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start : len(data) // 2 if fault in ("break", "stall") else None])
        if fault == "stall":
            self.server.closing.wait(10)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        yield server
        server.closing.set()
        server.shutdown()


@pytest.fixture(autouse=True)
def pauses(monkeypatch) -> list[float]:
    """The pauses between tries in seconds, which no test waits for."""
    pauses = []
    monkeypatch.setattr(download_glue.time, "sleep", pauses.append)
    return pauses


def pairs(n_rows: int) -> bytes:
    """A file as WNLI and the diagnostic set have them."""
    rows = [f"{i}\tThe first sentence {i}.\tThe second one.\t{i % 2}\n" for i in range(n_rows)]
    return "".join(["index\tsentence1\tsentence2\tlabel\n", *rows]).encode()


def wnli(train: int = 635, dev: int = 71, **more: bytes) -> bytes:
    """WNLI's archive, with GLUE's rows where no other number is given, and more members."""
    members = {"WNLI/train.tsv": pairs(train), "WNLI/dev.tsv": pairs(dev), "WNLI/test.tsv": pairs(146)} | more
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def download(server, glue_dir, *args) -> subprocess.CompletedProcess:
    """Call the script's main function, which is quicker than a process."""
    argv = [str(arg) for arg in (glue_dir, "--base_url", server.url, *args)]
    with contextlib.redirect_stdout(io.StringIO()) as stdout, contextlib.redirect_stderr(io.StringIO()) as stderr:
        status = download_glue.main(argv)
    return subprocess.CompletedProcess(argv, status, stdout.getvalue(), stderr.getvalue())


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_only_the_files_of_glues_layout_come_and_a_second_run_downloads_nothing(server, tmp_path):
    server.files["AX.tsv"] = pairs(1104)
    glue_dir = tmp_path / "new" / "glue"
    done = download(server, glue_dir, "--tasks", "wnli", "diagnostic", "WNLI")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["WNLI", "diagnostic"]
    assert files_in(glue_dir) == [*WNLI_FILES, "diagnostic/diagnostic.tsv"]
    assert sorted(os.listdir(glue_dir)) == ["WNLI", "diagnostic"]
    assert (glue_dir / "WNLI/train.tsv").read_bytes() == pairs(635)

    done = download(server, glue_dir, "--tasks", "WNLI", "ax")
    assert done.returncode == 0 and done.stdout.count("already") == 2
    assert len(server.requests) == 2


def test_overwrite_downloads_complete_folders_again(server, tmp_path):
    for _ in range(2):
        assert download(server, tmp_path, "--tasks", "WNLI", "--overwrite").returncode == 0
    assert len(server.requests) == 2


def test_files_with_too_few_rows_are_replaced_and_other_files_stay(server, tmp_path):
    (tmp_path / "WNLI").mkdir()
    for name in ("train.tsv", "dev.tsv", "test.tsv", "notes.txt"):
        (tmp_path / "WNLI" / name).write_bytes(pairs(20))
    assert download(server, tmp_path, "--tasks", "WNLI").returncode == 0
    assert (tmp_path / "WNLI/train.tsv").read_bytes() == pairs(635)
    assert (tmp_path / "WNLI/notes.txt").read_bytes() == pairs(20)


def test_mrpcs_dev_set_is_the_rows_with_listed_ids_and_its_test_set_has_an_index_for_the_label(server, tmp_path):
    # The raw text as it is published: a byte-order mark, carriage returns, no line feed at the end.
    header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
    train = [f'1\t{i}\t{i + 1}\tHe said " é {i}\tShe said {i}' for i in range(3668 + 408)]
    test = [f"0\t{i}\t{i + 2}\tFirst {i}\tSecond {i}" for i in range(1725)]
    server.files = {
        "glue/mrpc_dev_ids.tsv": "\n".join(f"{i}\t{i + 1}" for i in range(5, 4080, 10)).encode(),
        "text/msr_paraphrase_train.txt": "\r\n".join([header, *train]).encode("utf-8-sig"),
        "text/msr_paraphrase_test.txt": "\r\n".join([header, *test]).encode("utf-8-sig"),
    }
    addresses = ("--base_url", server.url + "glue", "--mrpc_url", server.url + "text/")
    done = download(server, tmp_path, "--tasks", "MRPC", *addresses)
    assert (done.returncode, done.stderr) == (0, "")
    assert files_in(tmp_path) == ["MRPC/dev.tsv", "MRPC/test.tsv", "MRPC/train.tsv"]
    made = {path.name: path.read_bytes().decode().split("\n")[:-1] for path in (tmp_path / "MRPC").iterdir()}
    assert made["dev.tsv"] == [header, *train[5::10]]
    assert made["train.tsv"] == [header, *(row for i, row in enumerate(train) if i % 10 != 5)]
    assert made["test.tsv"][0] == "index\t#1 ID\t#2 ID\t#1 String\t#2 String"
    assert made["test.tsv"][-1] == "1724\t1724\t1726\tFirst 1724\tSecond 1724"


def test_what_is_no_text_where_text_was_expected_fails_in_one_line_and_the_others_are_installed(server, tmp_path):
    names = ("glue/mrpc_dev_ids.tsv", "glue/msr_paraphrase_train.txt", "glue/msr_paraphrase_test.txt")
    server.files |= dict.fromkeys(names, b"<html>\xff\xfe</html>")
    server.files["glue/WNLI.zip"] = server.files["WNLI.zip"]
    done = download(server, tmp_path, "--tasks", "MRPC", "WNLI", "--base_url", server.url + "glue")
    assert done.returncode == 1 and "WNLI: downloaded" in done.stdout
    assert "MRPC: failed: mrpc_dev_ids.tsv: what was downloaded is no text" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("faults", "reason"), [(["break"], "bytes early"), (["stall"], "timed out"), (["break", "ignore range"], "early")]
)
def test_a_download_that_breaks_off_is_continued_in_the_same_run(server, tmp_path, faults, reason):
    server.faults = faults
    done = download(server, tmp_path, "--tasks", "WNLI", "--timeout", 0.3)
    assert done.returncode == 0 and reason in done.stderr
    assert server.requests == [("WNLI.zip", None), ("WNLI.zip", f"bytes={len(server.files['WNLI.zip']) // 2}-")]
    assert (tmp_path / "WNLI/train.tsv").read_bytes() == pairs(635)


def test_a_download_that_breaks_off_is_kept_and_continued_by_the_next_run(server, tmp_path):
    server.faults = ["break"]
    done = download(server, tmp_path, "--tasks", "WNLI", "--retries", 0)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert files_in(tmp_path) == [".download/WNLI.zip.part"]
    assert download(server, tmp_path, "--tasks", "WNLI").returncode == 0
    assert server.requests[1:] == [("WNLI.zip", f"bytes={len(server.files['WNLI.zip']) // 2}-")]
    assert os.listdir(tmp_path) == ["WNLI"]


def test_a_part_of_another_version_of_an_archive_is_found_damaged_and_the_next_run_starts_again(server, tmp_path):
    archive, server.files["WNLI.zip"] = server.files["WNLI.zip"], wnli(train=500)
    server.faults = ["break"]
    download(server, tmp_path, "--tasks", "WNLI", "--retries", 0)
    server.files["WNLI.zip"] = archive
    assert "WNLI.zip is damaged" in download(server, tmp_path, "--tasks", "WNLI").stderr
    assert download(server, tmp_path, "--tasks", "WNLI").returncode == 0


def test_a_part_as_long_as_the_file_is_downloaded_anew(server, tmp_path):
    (tmp_path / ".download").mkdir()
    (tmp_path / ".download/WNLI.zip.part").write_bytes(bytes(len(server.files["WNLI.zip"])))
    assert download(server, tmp_path, "--tasks", "WNLI").returncode == 0
    assert server.requests[-1] == ("WNLI.zip", None)


def test_server_errors_are_tried_again_after_growing_pauses(server, tmp_path, pauses):
    server.faults = [500, 503, 502]
    assert download(server, tmp_path, "--tasks", "WNLI").returncode == 0
    assert pauses == [0.5, 1, 2]


def test_a_missing_file_is_not_tried_again_and_the_other_tasks_go_on(server, tmp_path):
    done = download(server, tmp_path, "--tasks", "RTE", "WNLI")
    assert done.returncode == 1
    (reason,) = done.stderr.splitlines()
    assert f"RTE: failed: {server.url}RTE.zip: HTTP 404" in reason and "--base_url" in reason
    assert [path for path, _ in server.requests] == ["RTE.zip", "WNLI.zip"]
    assert files_in(tmp_path) == WNLI_FILES


def test_a_server_that_is_not_there_and_a_folder_that_cannot_be_written_give_one_line_for_each_task(server, tmp_path):
    server.server_close()
    (tmp_path / "file").write_text("")
    for glue_dir in (tmp_path / "glue", tmp_path / "file"):
        done = download(server, glue_dir, "--tasks", "RTE", "WNLI", "--retries", 0)
        assert done.returncode == 1
        assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["RTE", "WNLI"]


def test_members_that_lead_outside_the_folder_are_never_unpacked(server, tmp_path):
    outside = ["../evil.tsv", "WNLI/../../evil.tsv", str(tmp_path / "evil.tsv")]
    server.files["WNLI.zip"] = wnli(**dict.fromkeys(outside, b"evil"))
    assert download(server, tmp_path / "glue", "--tasks", "WNLI").returncode == 0
    assert files_in(tmp_path) == [f"glue/{name}" for name in WNLI_FILES]


def test_a_damaged_archive_is_told_in_one_line_and_deleted(server, tmp_path):
    archive = wnli()
    flipped = bytearray(archive)
    flipped[200] ^= 0xFF  # in the first member's data
    misnamed = archive.replace(b"WNLI/dev.tsv", b"WNLI/dav.tsv")
    for damaged in (archive[: len(archive) // 2], bytes(flipped), b"<html>Please log in</html>", misnamed):
        server.files["WNLI.zip"] = damaged
        done = download(server, tmp_path, "--tasks", "WNLI")
        assert done.returncode == 1
        (reason,) = done.stderr.splitlines()
        assert "WNLI.zip is damaged" in reason
        assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_one_row_off_is_taken_with_a_warning(server, tmp_path):
    server.files["WNLI.zip"] = wnli(train=634)
    done = download(server, tmp_path, "--tasks", "WNLI")
    assert done.returncode == 0
    assert done.stderr == "WNLI: warning: train.tsv has 634 rows, expected 635\n"
    assert "already" in download(server, tmp_path, "--tasks", "WNLI").stdout


def test_a_file_that_is_ten_rows_off_is_an_error_and_leaves_the_folder_as_it_was(server, tmp_path):
    server.files["WNLI.zip"] = wnli(dev=61)
    (tmp_path / "WNLI").mkdir()
    (tmp_path / "WNLI/train.tsv").write_text("mine")
    done = download(server, tmp_path, "--tasks", "WNLI")
    assert done.returncode == 1
    assert done.stderr == "WNLI: failed: dev.tsv has 61 rows, expected 71\n"
    assert files_in(tmp_path) == ["WNLI/train.tsv"]
    assert (tmp_path / "WNLI/train.tsv").read_text() == "mine"


def test_tasks_go_by_folder_or_by_run_glues_names_in_any_case():
    def folders(*names: str) -> list[str]:
        return download_glue.parse_args(["GLUE", "--tasks", *names]).tasks

    assert folders("all", "RTE") == download_glue.parse_args(["GLUE"]).tasks == list(download_glue.SOURCES)
    assert folders("sst2", "STS-b", "MNLI-mm", "mnli", "ax") == ["SST-2", "STS-B", "MNLI", "diagnostic"]


def test_the_addresses_are_glues_own_where_no_other_is_given():
    args = download_glue.parse_args(["GLUE"])
    assert (args.base_url, args.mrpc_url) == (download_glue.BASE_URL, download_glue.MRPC_URL)
    args = download_glue.parse_args(["GLUE", "--base_url", "http://mirror/glue"])
    assert args.base_url == args.mrpc_url == "http://mirror/glue/"


@pytest.mark.parametrize(
    "wrong", [["--tasks", "squad"], ["--base_url", "file:///etc/"], ["--retries", "-1"], ["--timeout", "0"]]
)
def test_a_wrong_argument_is_refused_in_one_line(wrong, capsys):
    with pytest.raises(SystemExit, match="2"):
        download_glue.parse_args(["GLUE", *wrong])
    (line,) = capsys.readouterr().err.splitlines()
    assert wrong[0] in line


def test_the_script_runs_from_anywhere_and_without_a_terminal_shows_no_progress_bar(server, tmp_path):
    command = [sys.executable, download_glue.__file__, "glue", "--tasks", "WNLI", "RTE", "--base_url", server.url]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["WNLI"]
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["RTE"]
    assert files_in(tmp_path / "glue") == WNLI_FILES
