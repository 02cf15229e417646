"""README.md and docs: the commands, the examples and the table of flags are true, and what they name is there."""

import csv
import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import ablate
import benchmark
import compare
import convert_to_hf_ckpt
import download_glue
import predict_glue
import pytest
import report
import reproduce
import summarize
import torch
from conftest import save_bert, write_glue
from test_run_glue import arguments
from transformers import AutoModelForTokenClassification, BertConfig, BertForTokenClassification

import run_glue
from bert_of_theseus.data.own_files import OwnFiles, read_own_files

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCUMENTS = [README, *sorted(ROOT.glob("docs/*.md"))]
SCRIPTS = (
    run_glue,
    ablate,
    benchmark,
    compare,
    convert_to_hf_ckpt,
    download_glue,
    predict_glue,
    report,
    reproduce,
    summarize,
)


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(), flags=re.MULTILINE | re.DOTALL)


def test_the_loop_for_ones_own_model_compresses_a_token_classifier(tmp_path):
    (code,) = [block for block in blocks(README, "python") if "compress(" in block]
    predecessor, successor = tmp_path / "predecessor", tmp_path / "successor"
    save_bert(predecessor)
    config = BertConfig.from_pretrained(predecessor, num_labels=5)
    BertForTokenClassification(config).save_pretrained(predecessor)
    for name, folder in (("path/to/predecessor", predecessor), ("path/to/successor", successor)):
        assert name in code
        code = code.replace(name, str(folder))
    ids = torch.randint(5, 20, (4, 7))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids % 5}
    exec(compile(code, "README.md", "exec"), {"loader": [batch] * 4})
    assert AutoModelForTokenClassification.from_pretrained(successor).config.num_hidden_layers == 2


def test_the_snippet_that_parts_a_file_loses_no_row(tmp_path, monkeypatch):
    (code,) = blocks(ROOT / "docs" / "own_data.md", "python")
    rows = [[f'text {i}, "quoted"\nand more', str(i % 2)] for i in range(40)]
    (tmp_path / "reviews").mkdir()
    with open(tmp_path / "reviews" / "all.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["sentence", "label"], *rows])
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "own_data.md", "exec"), {})
    parts = [read_own_files(OwnFiles(train=f"reviews/{name}.csv")).train.first for name in ("train", "dev", "test")]
    assert list(map(len, parts)) == [32, 4, 4]
    assert sorted(text for part in parts for text in part) == sorted(text for text, _ in rows)


def test_the_example_of_a_new_schedule_compresses_with_it(bert_folder, tmp_path, monkeypatch, caplog):
    (code,) = [block for block in blocks(README, "python") if "SCHEDULES" in block]
    monkeypatch.setattr(run_glue, "SCHEDULES", dict(run_glue.SCHEDULES))  # without the example in the end
    (tmp_path / "cosine.py").write_text(code)
    caplog.set_level("INFO")
    data, output = write_glue(tmp_path / "MRPC", "mrpc"), tmp_path / "successor"
    flags = "--do_train --do_eval --max_steps 12 --logging_steps 1 --save_steps 0 "
    flags += "--replacing_rate 0.4 --scheduler_type cosine --steps_for_replacing 8"
    words = arguments("mrpc", bert_folder, data, output, *flags.split())
    monkeypatch.setattr(sys, "argv", ["cosine.py", *map(str, words)])
    runpy.run_path(str(tmp_path / "cosine.py"), run_name="__main__")
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    rates = [line["replacing_rate"] for line in lines if "replacing_rate" in line]
    assert rates[0] == pytest.approx(0.4) and rates[4] == pytest.approx(0.7) and rates[8:] == [1] * 4
    assert rates == sorted(rates) and rates[1] - rates[0] < (rates[4] - rates[3]) / 2  # it starts slowly
    assert "from 0.4 to 1 at step 9" in caplog.text
    assert json.loads((output / "config.json").read_text())["num_hidden_layers"] == 2


def test_the_table_of_flags_is_that_of_the_command():
    table = (ROOT / "docs" / "flags.md").read_text()
    documented = [
        flag
        for row in re.findall(r"^\| (`--.*?) \|", table, flags=re.MULTILINE)
        for flag in re.findall("--[a-z0-9_]+", row)
    ]
    needed = ["--task_name", "mrpc", "--data_dir", "d", "--model_name_or_path", "m", "--output_dir", "o", "--do_train"]
    args = run_glue.parse_args(needed)
    assert sorted(documented) == sorted(f"--{name}" for name in vars(args))
    for flag, default in re.findall(r"^\| `--(\w+)` \| `?([\w.-]+)`? \|", table, flags=re.MULTILINE):
        value = getattr(args, flag)
        if default == "off":
            assert value is (flag == "do_train"), flag
        elif default in ("none", "half") and flag != "scheduler_type":
            assert value is None, flag
        elif default != "required":
            assert type(value)(default) == value, flag


def test_the_commands_are_accepted_as_they_stand():
    parsers = {script.__name__: script.parse_args for script in SCRIPTS}
    parsed = []
    for document in DOCUMENTS:
        for line in "\n".join(blocks(document, "bash")).replace("\\\n", " ").splitlines():
            words = shlex.split(line.replace("$TASK_NAME", "MRPC").replace("$TASK", "MRPC"), comments=True)
            at = next((i for i, word in enumerate(words) if word.endswith(".py")), None)
            if at is not None:
                parsers[Path(words[at]).stem](words[at + 1 :])
                parsed.append((document.name, Path(words[at]).stem))
    found = {name for document, name in parsed if document == "README.md"}
    assert parsed.count(("README.md", "run_glue")) == 6
    assert found == {
        "run_glue",
        "download_glue",
        "predict_glue",
        "summarize",
        "report",
        "compare",
        "benchmark",
        "ablate",
    }


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_every_file_that_is_named_is_there(document):
    text = document.read_text()
    names = re.findall(r"(?:scripts|tests|docs|bert_of_theseus)/[\w./-]+\.(?:py|sh|md|svg)", text)
    links = [target.split("#")[0] for target in re.findall(r"\]\(([^)]+)\)", text) if "://" not in target]
    assert all((ROOT / name).exists() for name in names), names
    assert all((document.parent / link).exists() for link in links), links


def test_every_link_to_a_section_has_one():
    for document in DOCUMENTS:
        headings = re.findall(r"^#+ (.*)", document.read_text(), flags=re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert set(re.findall(r"\]\(#([^)]+)\)", document.read_text())) <= anchors, document.name
