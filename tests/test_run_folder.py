import errno
import json
import os
import socket
from pathlib import Path

import pytest

from bert_of_theseus import run_folder
from bert_of_theseus.run_folder import (
    FINISHED,
    LOCK,
    STARTED,
    STATE,
    CannotWrite,
    FolderInUse,
    begin,
    check_free,
    checkpoints,
    clear,
    earlier_record,
    finish,
    forget_older,
    is_empty,
    is_finished,
    locked,
    newest_state,
    write_text,
    writing,
)


def make(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_folder_is_held_by_one_and_left_as_it_was(tmp_path):
    folder = tmp_path / "new" / "run"
    with locked(folder):
        assert (folder / LOCK).read_text() == f"process {os.getpid()} on {socket.gethostname()}"
        with pytest.raises(FolderInUse, match=f"run is in use by process {os.getpid()} on"), locked(folder):
            raise AssertionError
        with pytest.raises(FolderInUse):
            check_free(folder)
        assert is_empty(folder)
    assert not (tmp_path / "new").exists()  # nothing was written
    with locked(folder):
        make(folder, "log.jsonl")
    check_free(folder)
    assert names(folder) == {"log.jsonl"}


def test_a_lock_that_no_process_holds_is_taken_over(tmp_path):
    make(tmp_path, LOCK)
    check_free(tmp_path)
    with locked(tmp_path):
        assert "process" in (tmp_path / LOCK).read_text()
    assert not names(tmp_path)


def test_a_lock_is_not_taken_on_a_file_that_its_holder_has_just_removed(tmp_path, monkeypatch):
    true_try, tries = run_folder._try_lock, []

    def removed_meanwhile(lock, *kind):
        true_try(lock, *kind)
        tries.append(lock)
        if len(tries) == 1:
            (tmp_path / LOCK).unlink()

    monkeypatch.setattr(run_folder, "_try_lock", removed_meanwhile)
    with locked(tmp_path):
        assert len(tries) == 2 and (tmp_path / LOCK).exists()


def test_what_a_run_left_is_cleared_and_nothing_else(tmp_path):
    mine = {"notes.txt", "checkpoint-mine", "cached_train_mrpc.npz"}
    make(tmp_path, "notes.txt", "checkpoint-mine/x", "cached_train_mrpc.npz", STARTED, "log.jsonl", "runs/events")
    make(tmp_path, f"checkpoint-5/{STATE}", "checkpoint-7-stopped/x", "checkpoint-best/x", "config.json", "vocab.txt")
    clear(tmp_path, but_not=STARTED)
    assert names(tmp_path) == mine | {STARTED}
    make(tmp_path, "vocab.txt")  # without a model it is none of a run's
    clear(tmp_path)
    assert names(tmp_path) == mine | {"vocab.txt"}


def test_the_newest_state_is_the_one_of_the_last_step(tmp_path):
    assert newest_state(tmp_path) is None
    make(
        tmp_path,
        f"checkpoint-5/{STATE}",
        "checkpoint-100/x",
        f"checkpoint-30/{STATE}",
        f"checkpoint-12-stopped/{STATE}",
    )
    assert newest_state(tmp_path) == tmp_path / "checkpoint-30"
    make(tmp_path, f"checkpoint-31-stopped/{STATE}", f"checkpoint-best/{STATE}", f"checkpoint-x-stopped/{STATE}")
    assert newest_state(tmp_path) == tmp_path / "checkpoint-31-stopped"
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-5", "checkpoint-30", "checkpoint-100"]


def test_what_the_newest_checkpoint_makes_superfluous_is_forgotten(tmp_path):
    make(tmp_path, *(f"checkpoint-{n}/{STATE}" for n in (5, 10, 15)), "checkpoint-12-stopped/x", "checkpoint-best/x")
    forget_older(tmp_path, tmp_path / "checkpoint-15", limit=2)
    assert names(tmp_path) == {"checkpoint-10", "checkpoint-15", "checkpoint-best"}
    assert [path.parent.name for path in tmp_path.rglob(STATE)] == ["checkpoint-15"]
    make(tmp_path, f"checkpoint-17-stopped/{STATE}")
    forget_older(tmp_path, tmp_path / "checkpoint-17-stopped", limit=2)  # which is not counted
    assert names(tmp_path) == {"checkpoint-10", "checkpoint-15", "checkpoint-17-stopped", "checkpoint-best"}
    forget_older(tmp_path, None, limit=None)
    assert names(tmp_path) == {"checkpoint-10", "checkpoint-15", "checkpoint-best"} and not list(tmp_path.rglob(STATE))


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), Exception("in Rust: full (os error 28)")])
def test_a_full_disk_is_told_with_the_size_and_what_there_is_to_go_on_from(tmp_path, error):
    wanted = r"x cannot be written \(No space left on device; it takes 12 MB, .* are free\): make room, then go on"
    with pytest.raises(CannotWrite, match=wanted), writing(tmp_path, tmp_path / "x", 12_000_000):
        raise error
    make(tmp_path, f"checkpoint-5/{STATE}")
    with pytest.raises(CannotWrite, match=r"make room, then go on with --resume: .*checkpoint-5 is whole"):
        with writing(tmp_path, "x", 1):
            raise error


def test_other_errors_are_no_full_disk(tmp_path):
    with pytest.raises(CannotWrite, match=r"standard output cannot be written \(Broken pipe\): go on with --resume"):
        with writing(tmp_path, "standard output", 1):
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
    with pytest.raises(ValueError, match="a mistake of ours"), writing(tmp_path, "x", 1):
        raise ValueError("a mistake of ours")


RECORD = {"arguments": {}, "data": {}, "versions": {}}


def test_a_run_is_begun_and_finished(tmp_path):
    assert earlier_record(tmp_path) is None
    make(tmp_path, "notes.txt", FINISHED, f"checkpoint-5/{STATE}", ".checkpoint-7.00.tmp/x")
    begin(tmp_path, RECORD, earlier=None, checkpoint=None, limit=None)
    assert names(tmp_path) == {"notes.txt", STARTED}
    assert earlier_record(tmp_path) == RECORD and not is_finished(earlier_record(tmp_path))

    make(tmp_path, f"checkpoint-5/{STATE}", f"checkpoint-10/{STATE}", "log.jsonl", ".run.json.00.tmp")
    begin(tmp_path, {}, RECORD, tmp_path / "checkpoint-10", limit=1)  # killed before it could forget the older one
    assert names(tmp_path) == {"notes.txt", STARTED, "checkpoint-10", "log.jsonl"}
    finish(tmp_path, {"end": "now"})
    assert names(tmp_path) == {"notes.txt", FINISHED, "checkpoint-10", "log.jsonl"} and not list(tmp_path.rglob(STATE))
    assert earlier_record(tmp_path) == RECORD | {"end": "now"} and is_finished(earlier_record(tmp_path))


def test_a_run_is_begun_again_where_it_has_no_checkpoint(tmp_path):
    make(tmp_path, "checkpoint-best/x", "log.jsonl", "config.json", "model.safetensors")
    write_text(tmp_path / STARTED, json.dumps(RECORD))
    begin(tmp_path, {}, RECORD, checkpoint=None, limit=None)
    assert names(tmp_path) == {STARTED} and earlier_record(tmp_path) == RECORD


def test_of_a_folder_that_is_half_cleared_no_run_is_finished(tmp_path, monkeypatch):
    make(tmp_path, FINISHED, STARTED, f"checkpoint-5/{STATE}", "config.json", "log.jsonl")
    removed = []
    monkeypatch.setattr(run_folder, "remove_folder", lambda path: removed.append(path.name))
    monkeypatch.setattr(Path, "unlink", lambda path: removed.append(path.name))
    clear(tmp_path)
    assert removed[0] == FINISHED and removed[1] == "checkpoint-5" and removed[-1] == STARTED


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"arguments": 1, "data": {}, "versions": {}}'])
def test_what_is_no_record_is_refused(tmp_path, text):
    (tmp_path / STARTED).write_text(text)
    with pytest.raises(ValueError, match=r"unfinished_run\.json is damaged, or no record"):
        earlier_record(tmp_path)
