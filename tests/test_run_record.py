import copy
import json
import re
import shlex
import subprocess
import sys

import pytest
import torch
from conftest import save_bert
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bert_of_theseus.run_record import command, differences, git_commit, model_sha256, now, versions


def git(folder, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(
        ["git", "-C", folder, *identity, *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_the_commit_is_that_of_the_folder_and_says_where_files_differ(tmp_path):
    assert git_commit(tmp_path) is None
    git(tmp_path, "init", "-q")
    assert git_commit(tmp_path) is None
    (tmp_path / "file").write_text("a")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-qm", "a")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert git_commit(tmp_path) == commit
    (tmp_path / "file").write_text("b")
    assert git_commit(tmp_path) == f"{commit}-dirty"
    (tmp_path / "inside").mkdir()
    assert git_commit(tmp_path / "inside") is None  # the commit is another project's


def test_the_record_s_facts_are_those_of_this_process():
    assert shlex.split(command()) == sys.orig_argv
    assert versions()["torch"] == torch.__version__.split("+")[0] or versions()["torch"] == torch.__version__
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
    assert digest(lambda model, tokenizer, config: tokenizer("good film", truncation=True, max_length=3)) == same
    changes = [
        lambda model, tokenizer, config: model.classifier.bias.data.add_(1e-6),
        lambda model, tokenizer, config: config.update(attention_probs_dropout_prob=0.0),
        lambda model, tokenizer, config: tokenizer.add_tokens(["new"]),
    ]
    assert len({same, *map(digest, changes)}) == 4


RECORD = {
    "arguments": {"seed": 42, "learning_rate": 1e-5, "output_dir": "a"},
    "data": {"train.tsv": "0", "dev.tsv": "1"},
    "predecessor_sha256": "2",
    "processes": 1,
    "device_type": "cpu",
}


DEV = "dev.tsv has changed"


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, []),
        ({"arguments": {"output_dir": "b"}}, []),
        (
            {"arguments": {"seed": 1, "learning_rate": 0.1}},
            ["--seed was 42, is 1", "--learning_rate was 1e-05, is 0.1"],
        ),
        ({"arguments": {"new_flag": 3}}, []),
        ({"data": {"train.tsv": "9"}}, ["train.tsv has changed"]),
        ({"data": {"test.tsv": "9"}}, []),
        ({"predecessor_sha256": "9"}, ["the model to start from has changed"]),
        (
            {"processes": 2, "device_type": "cuda"},
            ["the number of processes was 1, is 2", "the kind of device was cpu, is cuda"],
        ),
    ],
)
def test_differences_are_named(change, found):
    now = copy.deepcopy(RECORD)
    for key, value in change.items():
        now[key] = now[key] | value if isinstance(value, dict) else value
    assert differences(RECORD, now, ["output_dir"]) == found
    assert differences(json.loads(json.dumps(RECORD)), now, ["output_dir"]) == found


def test_a_digest_that_is_not_there_yet_is_no_difference():
    now = {name: value for name, value in RECORD.items() if name != "predecessor_sha256"}
    assert differences(RECORD, now, []) == []
