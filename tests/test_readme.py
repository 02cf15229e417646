import re
import shlex
from pathlib import Path

import benchmark
import download_glue
import predict_glue
import summarize
import torch
from conftest import save_bert
from transformers import AutoModelForTokenClassification, BertConfig, BertForTokenClassification

import run_glue

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def test_the_loop_for_ones_own_model_compresses_a_token_classifier(tmp_path):
    (code,) = [block for block in blocks("python") if "compress(" in block]
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


def test_the_table_of_flags_is_that_of_the_command():
    table = README.split("## All flags")[1].split("\n## ")[0]
    documented = {
        flag
        for row in re.findall(r"^\| (`--.*?) \|", table, flags=re.MULTILINE)
        for flag in re.findall("--[a-z0-9_]+", row)
    }
    needed = ["--task_name", "mrpc", "--data_dir", "d", "--model_name_or_path", "m", "--output_dir", "o", "--do_eval"]
    args = run_glue.parse_args(needed)
    assert documented == {f"--{name}" for name in vars(args)}
    for flag, default in re.findall(r"^\| `--(\w+)` \| `?([\w.-]+)`? \|", table, flags=re.MULTILINE):
        value = getattr(args, flag)
        if default == "off":
            assert value is (flag == "do_eval"), flag
        elif default not in ("required", "none", "half"):
            assert type(value)(default) == value, flag


def test_the_commands_of_the_readme_are_accepted_as_they_stand():
    parsers = {
        script.__name__: script.parse_args for script in (run_glue, download_glue, predict_glue, summarize, benchmark)
    }
    parsed = []
    for line in "\n".join(blocks("bash")).replace("\\\n", " ").splitlines():
        words = shlex.split(line.replace("$TASK_NAME", "MRPC").replace("$TASK", "MRPC"), comments=True)
        at = next((i for i, word in enumerate(words) if Path(word).stem in parsers and word.endswith(".py")), None)
        if at is not None:
            parsers[Path(words[at]).stem](words[at + 1 :])
            parsed.append(Path(words[at]).stem)
    assert parsed.count("run_glue") == 6 and set(parsed) == set(parsers)


def test_every_file_that_the_readme_names_is_there():
    for name in re.findall(r"(?:scripts|tests|docs|bert_of_theseus)/[\w./-]+\.(?:py|sh|md)", README):
        assert (ROOT / name).exists(), name
