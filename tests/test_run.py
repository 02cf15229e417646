"""The harness: files that are whole, locks, signals, records, and what a run leaves in its folder."""

import copy
import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import save_bert
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bert_of_theseus.run import files, lock
from bert_of_theseus.run.command_line import OneLineParser, UserError, above, aligned, at_least, one_line_errors
from bert_of_theseus.run.device import device_name, enough_memory
from bert_of_theseus.run.files import remove_folder, tidy_up, whole_file, whole_files, whole_folder, write_whole
from bert_of_theseus.run.folder import (
    FINISHED,
    STATE,
    UNFINISHED,
    as_results,
    checkpoint_folders,
    newest_state,
    read_record,
    read_results,
)
from bert_of_theseus.run.lock import LOCK, FolderLock
from bert_of_theseus.run.record import describe, differences, git_commit, model_sha256, now
from bert_of_theseus.run.run import Run
from bert_of_theseus.run.signals import StopSignals

ROOT = Path(__file__).parents[1]


def names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


# ----------------------------------------------------------------------------------------- files


def test_a_file_appears_whole_and_replaces_the_old_one(tmp_path):
    path = tmp_path / "results.txt"
    path.write_text("old")
    with whole_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and names(tmp_path) == ["results.txt"]
    write_whole(path, "text é")
    assert path.read_text(encoding="utf-8") == "text é" and names(tmp_path) == ["results.txt"]


def test_a_file_whose_writing_fails_leaves_the_old_one_and_nothing_else(tmp_path):
    path = tmp_path / "results.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), whole_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and names(tmp_path) == ["results.txt"]


def test_a_folder_appears_whole_and_replaces_the_old_one_as_a_whole(tmp_path):
    path = tmp_path / "new" / "checkpoint-best"
    with whole_folder(path) as temporary:
        (temporary / "old.txt").write_text("old")
        assert not path.exists()
    with whole_folder(path) as temporary:
        (temporary / "config.json").write_text("new")
        assert names(path) == ["old.txt"]
    assert names(tmp_path) == ["new/checkpoint-best/config.json"]


def test_in_a_folder_that_exists_files_are_replaced_and_others_stay(tmp_path):
    (tmp_path / "config.json").write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    with whole_files(tmp_path) as temporary:
        (temporary / "config.json").write_text("new")
        (temporary / "model.safetensors").write_text("weights")
    assert names(tmp_path) == ["config.json", "model.safetensors", "notes.txt"]
    assert (tmp_path / "config.json").read_text() == "new" and (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_whose_writing_fails_leaves_things_as_they_were(tmp_path, exists):
    path = tmp_path / "checkpoint-1"
    if exists:
        path.mkdir()
        (path / "config.json").write_text("old")
    before = names(tmp_path)
    with pytest.raises(RuntimeError), whole_folder(path) as temporary:
        (temporary / "config.json").write_text("half")
        raise RuntimeError
    assert names(tmp_path) == before and path.exists() == exists
    assert not exists or (path / "config.json").read_text() == "old"


def test_what_a_killed_process_left_is_put_back_or_removed(tmp_path):
    left = (
        ".checkpoint-best.replaced",
        ".checkpoint-5.replaced",
        "checkpoint-5",
        ".checkpoint-7.0123456789abcdef.tmp",
    )
    for name in left:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(name)
    (tmp_path / ".run.json.0123456789abcdef.tmp").write_text("{")
    (tmp_path / ".bashrc").write_text("mine")
    tidy_up(tmp_path)
    assert names(tmp_path) == [".bashrc", "checkpoint-5/config.json", "checkpoint-best/config.json"]
    assert (tmp_path / "checkpoint-best" / "config.json").read_text() == ".checkpoint-best.replaced"
    assert (tmp_path / "checkpoint-5" / "config.json").read_text() == "checkpoint-5"


def test_a_folder_that_is_removed_is_never_seen_in_part(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint-5"
    path.mkdir()
    seen = []
    monkeypatch.setattr(files.shutil, "rmtree", lambda folder, **_: seen.append((folder.name, path.exists())))
    remove_folder(path)
    ((name, existed),) = seen
    assert files.TEMPORARY.fullmatch(name) and not existed


@pytest.mark.parametrize("kind", [whole_folder, whole_files])
def test_whom_the_umask_lets_can_read_the_files(tmp_path, kind):
    before = os.umask(0o022)
    try:
        with kind(tmp_path / "c") as folder:
            (folder / "config.json").write_text("")
            (folder / "config.json").chmod(0o600)  # as safetensors does
    finally:
        os.umask(before)
    assert os.stat(tmp_path / "c").st_mode & 0o777 == 0o755
    assert os.stat(tmp_path / "c" / "config.json").st_mode & 0o777 == 0o644


# ------------------------------------------------------------------------------------------ lock


def test_a_folder_is_held_by_one_and_left_as_it_was(tmp_path):
    folder = tmp_path / "new" / "run"
    held, second = FolderLock(folder), FolderLock(folder)
    held.take()
    words = f"process {os.getpid()} on {socket.gethostname()}"
    assert (folder / LOCK).read_text() == words
    with pytest.raises(UserError, match=f"run is in use by {re.escape(words)}; wait"):
        second.take()
    second.release()
    assert (folder / LOCK).exists()
    held.release()
    assert not (tmp_path / "new").exists()  # nothing was written there
    held.take()
    (folder / "log.jsonl").write_text("")
    held.release()
    assert names(folder) == ["log.jsonl"]


def test_a_lock_that_no_process_holds_is_taken_over(tmp_path):
    (tmp_path / LOCK).write_text("process 1 on another machine")
    held = FolderLock(tmp_path)
    held.take()
    assert str(os.getpid()) in (tmp_path / LOCK).read_text()
    held.release()
    assert not names(tmp_path)


def test_a_lock_is_not_taken_on_a_file_that_its_holder_has_just_removed(tmp_path, monkeypatch):
    true_lock, tries = lock.fcntl.flock, []

    def removed_meanwhile(file, kind):
        true_lock(file, kind)
        tries.append(file)
        if len(tries) == 1:
            (tmp_path / LOCK).unlink()

    monkeypatch.setattr(lock.fcntl, "flock", removed_meanwhile)
    held = FolderLock(tmp_path)
    held.take()
    assert len(tries) == 2 and (tmp_path / LOCK).exists()
    held.release()


def test_a_file_is_no_folder_to_lock(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file; name a folder"):
        FolderLock(tmp_path / "file").take()


# --------------------------------------------------------------------------------------- signals


@pytest.fixture
def heard_signals():
    """The signals that this process does not ignore, as under nohup, say, it does."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number in before:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_process_at_once_or_when_it_asks(number, capfd, heard_signals):
    signals = StopSignals()
    signals.listen()
    with pytest.raises(SystemExit) as end:
        os.kill(os.getpid(), number)
    assert end.value.code == 128 + number
    signals.can_wait = True
    assert not signals.requested()
    os.kill(os.getpid(), number)
    assert "Stopping after this step" in capfd.readouterr().err
    assert signals.requested() and signals.name() == number.name
    signals.close()
    assert signal.getsignal(number) is signal.SIG_DFL


def test_a_signal_that_is_ignored_stays_so(heard_signals):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signals = StopSignals()
    signals.listen()
    os.kill(os.getpid(), signal.SIGHUP)
    assert not signals.requested()
    signals.close()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


SECOND = """
import os, signal, sys
from bert_of_theseus.run.signals import StopSignals
signals = StopSignals()
signals.listen()
signals.can_wait = True
try:
    os.kill(os.getpid(), signal.SIGTERM)
    print("still here", flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    print("and here", flush=True)
    signals._received -= 3
    os.kill(os.getpid(), signal.SIGINT)
finally:
    print("not here")
"""


def test_a_second_signal_ends_the_process_but_not_the_same_one_passed_on_by_torchrun():
    for environment, printed in (({}, "still here\n"), ({"TORCHELASTIC_RUN_ID": "one"}, "still here\nand here\n")):
        done = subprocess.run(
            [sys.executable, "-c", SECOND], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
        )
        assert (done.returncode, done.stdout) == (130, printed)


# --------------------------------------------------------------------------------------- records


def git(folder, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(
        ["git", "-C", folder, *identity, *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_the_commit_is_that_of_the_folder_and_says_where_files_differ(tmp_path):
    assert git_commit(tmp_path) is None
    git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("a")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-qm", "a")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert git_commit(tmp_path) == commit
    (tmp_path / "file").write_text("b")
    assert git_commit(tmp_path) == f"{commit}-dirty"
    (tmp_path / "inside").mkdir()
    assert git_commit(tmp_path / "inside") is None  # the commit is another project's


def test_the_processor_is_named_and_a_gpu_without_memory_is_told_with_what_to_do():
    assert re.fullmatch(r"\S.*, \d+ threads?", device_name(torch.device("cpu")))
    with pytest.raises(UserError, match=r"out of memory.* -- lower the batch size"), enough_memory():
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_record_describes_this_process(tmp_path):
    record = describe({"seed": 7}, torch.device("cpu"), tmp_path)
    assert record["seed"] == 7 and record["device_type"] == "cpu"
    assert record["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert Path(sys.orig_argv[0]).name in record["command"] and record["git_commit"] is None
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", now())


def test_a_model_s_digest_covers_weights_config_and_tokenizer_and_not_where_they_lie(tmp_path):
    def digest(change=lambda *_: None, folder=tmp_path / "a") -> str:
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        change(model, tokenizer, config)
        return model_sha256(model, tokenizer, config)

    save_bert(tmp_path / "a", n_layer=2)
    save_bert(tmp_path / "b", n_layer=2)
    same = digest()
    assert digest(folder=tmp_path / "b") == same
    changes = [
        lambda model, tokenizer, config: model.classifier.bias.data.add_(1e-6),
        lambda model, tokenizer, config: config.update(attention_probs_dropout_prob=0.0),
        lambda model, tokenizer, config: tokenizer.add_tokens(["new"]),
    ]
    assert len({same, *map(digest, changes)}) == 4


RECORD = {
    "arguments": {"seed": 42, "learning_rate": 1e-5, "output_dir": "a", "max_train_samples": None},
    "data": {"train.tsv": "0", "dev.tsv": "1"},
    "predecessor_sha256": "2",
    "processes": 1,
    "device_type": "cpu",
    "variant": None,
    "device": "x86_64, 2 threads",
    "git_commit": "abc",
    "versions": {"torch": "2.13.0"},
    "start": "now",
    "command": "python run_glue.py",
}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, []),
        ({"arguments": {"output_dir": "b", "save_steps": 3}}, []),
        (
            {"arguments": {"seed": 1, "learning_rate": 0.1}},
            ["--seed was 42, is 1", "--learning_rate was 1e-05, is 0.1"],
        ),
        ({"arguments": {"new_flag": 3}}, []),
        ({"data": {"train.tsv": "9"}}, ["train.tsv has changed"]),
        ({"data": {"test.tsv": "9"}}, []),
        (
            {"arguments": {"max_train_samples": 5}, "data": {"train.tsv": "9"}},
            ["--max_train_samples was None, is 5"],
        ),
        ({"predecessor_sha256": "9"}, ["the model to start from has changed"]),
        ({"variant": "anti-curriculum"}, ["the variant was None, is anti-curriculum"]),
        (
            {"processes": 2, "device_type": "cuda"},
            ["the number of processes was 1, is 2", "the kind of device was cpu, is cuda"],
        ),
    ],
)
def test_differences_from_the_run_to_resume_are_named(change, found):
    record = copy.deepcopy(RECORD)
    for key, value in change.items():
        record[key] = record[key] | value if isinstance(value, dict) else value
    assert differences(json.loads(json.dumps(RECORD)), record, {"output_dir", "save_steps"}) == found


# ------------------------------------------------------------------------------------------- run


class State:
    """Stands for what moves in training."""

    def __init__(self, step: int):
        self.step = step

    def state_dict(self) -> dict:
        return {"step": self.step}

    def own_state_dict(self) -> dict:
        return {}


def write_model(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


def started(folder: Path, resume: bool = False, overwrite: bool = False, limit: int | None = None) -> Run:
    """A run in the folder that has begun."""
    run = Run(folder, limit)
    run.__enter__()
    run.find(resume, overwrite, "a/model")
    record = copy.deepcopy(RECORD)
    run.check(record)
    run.saved = run.begin(record)
    return run


def left_alone(run: Run) -> None:
    """Leave a run as a killed process would, but for the lock."""
    run.__exit__(None, None, None)


def test_a_run_under_other_versions_is_resumed_with_one_warning(tmp_path, caplog):
    left_alone(started(tmp_path / "run"))
    with Run(tmp_path / "run") as run:
        run.find(True, False, "a/model")
        changes = {"versions": {"torch": "2.14.0"}, "git_commit": "def", "device": "x86_64, 4 threads"}
        run.check(copy.deepcopy(RECORD) | changes)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "2.13.0" in warning and "2.14.0" in warning and "def" in warning and "4 threads" in warning


def test_a_run_is_started_and_finished(tmp_path):
    folder = tmp_path / "run"
    run = started(folder)
    run.log(1, {"loss": 0.5})
    run.save_state(State(5), write_model)
    run.save_state(State(10), write_model)
    run.save_best(write_model)
    run.save_model(write_model)
    run.write("eval_results.txt", as_results({"b": 2.5, "a": 1.0}))
    assert read_results(folder) == {"a": 1.0, "b": 2.5}
    assert [path.parent.name for path in folder.rglob(STATE)] == ["checkpoint-10"]
    assert newest_state(folder).name == "checkpoint-10" and UNFINISHED in names(folder)
    run.finish({"steps": 10})
    run.__exit__(None, None, None)
    record = read_record(folder)
    assert record["steps"] == 10 and "end" in record and record["arguments"] == RECORD["arguments"]
    kept = ["checkpoint-10/config.json", "checkpoint-5/config.json", "checkpoint-best/config.json", "config.json"]
    assert [n for n in names(folder) if "events" not in n] == [*kept, "eval_results.txt", "log.jsonl", FINISHED]
    assert set(record["files"]) >= {"checkpoint-10", "checkpoint-5", "checkpoint-best", "config.json", "log.jsonl"}


def test_a_run_is_resumed_from_its_newest_state_and_logs_after_it_are_taken_back(tmp_path):
    run = started(tmp_path, limit=1)
    run.log(5, {"loss": 0.5})
    run.save_state(State(5), write_model)
    run.save_state(State(7), write_model, stopped=True)
    run.log(8, {"loss": 0.25})
    left_alone(run)
    (tmp_path / ".checkpoint-10.0123456789abcdef.tmp").mkdir()
    run = started(tmp_path, resume=True, limit=1)
    assert run.saved["state"] == {"step": 7}
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [
        {"step": 5, "loss": 0.5}
    ]
    run.save_state(State(10), write_model)
    assert [path.name for path in checkpoint_folders(tmp_path)] == ["checkpoint-10"]
    assert not list(tmp_path.glob("*stopped")) and not list(tmp_path.glob(".*.tmp"))
    run.finish({})
    left_alone(run)
    assert [part["after_step"] for part in read_record(tmp_path)["resumed"]] == [7]


def test_without_a_state_a_run_is_resumed_from_its_beginning(tmp_path):
    run = started(tmp_path)
    run.log(5, {"loss": 0.5})
    run.save_best(write_model)
    left_alone(run)
    (tmp_path / "notes.txt").write_text("mine")
    run = started(tmp_path, resume=True)
    assert run.saved is None and run.best_results() == {}
    assert [n for n in names(tmp_path) if "events" not in n] == [LOCK, "log.jsonl", "notes.txt", UNFINISHED]
    assert (tmp_path / "log.jsonl").read_text() == ""
    left_alone(run)


def test_overwriting_removes_what_the_record_says_is_the_run_s_and_nothing_else(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").write_text("")  # in a folder that was never a run's
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "mine").write_text("")
    (tmp_path / "vocab.txt").write_text("mine")
    mine = {"runs/mine", "checkpoint-3/mine", "vocab.txt"}
    with pytest.raises(UserError, match="is not empty; name another"):
        started(tmp_path)
    run = started(tmp_path, overwrite=True)
    assert mine < set(names(tmp_path))
    run.save_state(State(5), write_model)
    run.finish({})
    left_alone(run)
    run = started(tmp_path, overwrite=True)
    assert set(names(tmp_path)) - mine - {LOCK, UNFINISHED, "log.jsonl"} == {
        name for name in names(tmp_path) if "events" in name
    }
    assert len(list(tmp_path.glob("runs/events*"))) == 1
    left_alone(run)


def test_a_run_that_is_not_finished_is_neither_replaced_nor_resumed_unless_asked_to(tmp_path):
    left_alone(started(tmp_path))
    with pytest.raises(UserError, match="holds a run that is not finished; --resume resumes it"):
        started(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"arguments": 1}'])
def test_what_is_no_record_is_refused(tmp_path, text):
    (tmp_path / UNFINISHED).write_text(text)
    with pytest.raises(UserError, match=r"unfinished_run\.json is not the record of a run"):
        started(tmp_path, resume=True)


def test_a_run_of_an_older_version_is_not_resumed(tmp_path):
    (tmp_path / UNFINISHED).write_text(json.dumps(RECORD))
    with pytest.raises(UserError, match="holds a run of an older version"):
        started(tmp_path, resume=True)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), Exception("in Rust: full (os error 28)")])
def test_a_full_disk_is_told_with_what_there_is_to_resume_from(tmp_path, error):
    run = started(tmp_path)

    def fail(folder: Path) -> None:
        raise error

    wanted = r"checkpoint-5 cannot be written \(No space left on device; .* are free\): make room, then resume"
    with pytest.raises(UserError, match=rf"{wanted} with --resume from the beginning"):
        run.save_state(State(5), fail)
    run.save_state(State(3), write_model)
    with pytest.raises(UserError, match=rf"{wanted} with --resume from .*checkpoint-3"):
        run.save_state(State(5), fail)
    left_alone(run)


def test_other_errors_of_a_save_keep_their_kind(tmp_path):
    run = started(tmp_path)

    def fail(folder: Path) -> None:
        raise ValueError("a mistake of ours")

    with pytest.raises(ValueError, match="a mistake of ours"):
        run.save_model(fail)
    assert not (tmp_path / "config.json").exists()
    left_alone(run)


def test_what_a_new_run_replaces_counts_as_free(tmp_path):
    run = started(tmp_path)
    run.save_state(State(5), lambda folder: (folder / "weights").write_bytes(b"0" * 5_000_000))
    run.finish({})
    left_alone(run)
    with Run(tmp_path) as run:
        run.find(resume=False, overwrite=True, source="a/model")
        free = files.shutil.disk_usage(tmp_path).free
        told = run.check_disk(n_saves=0, saves_best=False, of_weights=free + 2_000_000, of_state=0)
        assert told.startswith("1 checkpoint of ")
        with pytest.raises(UserError, match=r"do not fit in .*; make room, raise --save_steps"):
            run.check_disk(n_saves=0, saves_best=False, of_weights=free, of_state=10**12)


# ---------------------------------------------------------------------------------- command line


def test_errors_that_a_user_can_mend_are_one_line_and_others_keep_their_traceback(tmp_path):
    in_the_way = FileExistsError(errno.EEXIST, "a file where a folder should be")
    for error in (UserError("no\nsuch"), OSError(errno.ENOSPC, "full"), in_the_way, KeyError("of this kind")):
        with pytest.raises(SystemExit) as end, one_line_errors("prog", KeyError):
            raise error
        assert end.value.code.startswith("prog: error: ") and "\n" not in end.value.code
    for error in (ValueError(), FileNotFoundError(errno.ENOENT, "a mistake of ours")):
        with pytest.raises(type(error)), one_line_errors("prog"):
            raise error


def test_numbers_beyond_their_bounds_are_refused_in_one_line(capsys):
    parser = OneLineParser(prog="prog")
    parser.add_argument("--steps", type=at_least(1))
    parser.add_argument("--rate", type=above(0))
    assert parser.parse_args(["--steps", "1", "--rate", "0.5"]).rate == 0.5
    for words, reason in (
        ("--steps 0", "0 is not at least 1"),
        ("--rate 0", "0 is not above 0"),
        ("--rate nan", "nan is not a finite number"),
        ("--rate inf", "inf is not a finite number"),
    ):
        with pytest.raises(SystemExit):
            parser.parse_args(words.split())
        (line,) = capsys.readouterr().err.splitlines()
        assert reason in line


def test_a_table_is_aligned():
    assert aligned([["", "acc"], ["bert", "0.5"], ["b", "0.25"]]) == "       acc\nbert   0.5\nb     0.25"


def test_a_copy_of_a_checkpoint_is_no_state_to_resume_from(tmp_path):
    for name in ("checkpoint-400-backup", "checkpoint-500_old", "checkpoint-5"):
        (tmp_path / name).mkdir()
        (tmp_path / name / STATE).write_text("")
    assert newest_state(tmp_path).name == "checkpoint-5"


def test_a_run_that_is_half_removed_can_be_removed_again(tmp_path, monkeypatch):
    run = started(tmp_path)
    run.save_model(write_model)
    run.finish({})
    left_alone(run)

    def killed(path: Path, missing_ok: bool = False) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), Run(tmp_path) as run:
        run.find(resume=False, overwrite=True, source="a/model")
        patch.setattr(Path, "unlink", killed)
        try:
            run.begin(copy.deepcopy(RECORD))
        finally:
            patch.undo()
    assert "config.json" in read_record(tmp_path)["files"]
    left_alone(started(tmp_path, overwrite=True))
    assert not (tmp_path / "config.json").exists()


def test_an_abbreviated_flag_is_refused(capsys):
    parser = OneLineParser(prog="prog")
    parser.add_argument("--replacing_rate", type=float)
    with pytest.raises(SystemExit):
        parser.parse_args(["--replacing_rat", "0.3"])
    assert "--replacing_rat" in capsys.readouterr().err
