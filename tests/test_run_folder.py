import os
import socket
from pathlib import Path

import pytest

from bert_of_theseus import run_folder
from bert_of_theseus.run_folder import (
    LOCK,
    STARTED,
    STATE,
    CannotWrite,
    FolderInUse,
    check_free,
    checkpoints,
    clear,
    forget_older,
    is_empty,
    locked,
    newest_state,
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

    def removed_meanwhile(lock):
        true_try(lock)
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


def test_what_cannot_be_written_is_told_with_its_size_and_what_there_is_to_go_on_from(tmp_path):
    wanted = r"x cannot be written \(No space left on device\): it takes 12 MB, .* free; make room, then start again"
    with pytest.raises(CannotWrite, match=wanted), writing(tmp_path, tmp_path / "x", 12_000_000):
        raise OSError(28, "No space left on device")
    make(tmp_path, f"checkpoint-5/{STATE}")
    with pytest.raises(CannotWrite, match=r"with --resume: .*checkpoint-5 is whole"), writing(tmp_path, "x", 1):
        raise OSError(28, "No space left on device")
