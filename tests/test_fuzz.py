"""Damaged and odd input of every kind is read right or refused in one line, in bounded time and memory."""

import codecs
import contextlib
import copy
import csv
import dataclasses
import hashlib
import io
import itertools
import json
import logging
import math
import os
import random
import re
import shutil
import sys
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import convert_to_hf_ckpt
import numpy as np
import predict_glue
import pytest
import summarize
import torch
from conftest import ROWS, save_bert, save_roberta, write_glue
from fuzzing import (
    CHANGES,
    as_json,
    bounded,
    changed,
    changed_header,
    changed_json,
    changed_member,
    edited,
    edits,
    for_each,
    how_many,
)
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_convert_to_hf_ckpt import RELEASE
from test_encoders import TAKES_TYPES, save_family
from test_resume import stopped_run
from test_run_glue import arguments, read_results, run_here, score_again
from transformers import AutoTokenizer

import glue_processors
import run_glue
from bert_of_theseus import compress, load_successor, run_folder, training_state
from bert_of_theseus.classifier import UserError, load_model, predict
from bert_of_theseus.training import Losses, train_step
from glue_processors import (
    MAX_LINE,
    TASKS,
    Examples,
    Features,
    GlueDataError,
    Task,
    cached_features,
    read_examples,
    tokenize,
)
from scripts.command_line import one_line_errors

# ------------------------------------------------------------------------------------------ TSV files

SENTENCES = ["A film.", "", 'He said "no"', "naïve café", "日本語 🎬", "x " * 30, "\\t", "\u2028 odd \x0b ends\x85"]
TSV_TASKS = ["mrpc", "cola", "sts-b", "qqp", "mnli", "rte"]


def valid_file(task: Task, split: str) -> bytes:
    """Ten rows with every column that the task's file has."""
    labelled = split != "test"
    sentences = task.sentences if labelled else task.test_sentences
    n_columns = max(*sentences, task.label, 2) + (2 if labelled and task.label == -1 else 1)
    rows = [[f"column {c}" for c in range(n_columns)]] if task.header or not labelled else []
    for i in range(10):
        row = [f"{i}.{c}" for c in range(n_columns)]
        for column in sentences:
            row[column] = SENTENCES[(i + column) % len(SENTENCES)]
        if labelled:
            row[task.label] = task.labels[i % len(task.labels)] if task.labels else f"{i / 2}"
        rows.append(row)
    if task.skip_short_rows:
        rows.insert(4, ["broken off"])
    return "".join("\t".join(row) + "\n" for row in rows).encode()


def plain_reading(task: Task, split: str, data: bytes) -> list[list]:
    """The sentences, and the label where there is one, of each row, read in the simplest way.

    Raises:
        ValueError: the number of the first line that is wrong, or 0 where all of them together are.
    """
    labelled = split != "test"
    columns = task.sentences if labelled else task.test_sentences
    needed = max(*columns, task.label if labelled else 0) + 1
    lines = data.removeprefix(codecs.BOM_UTF8).split(b"\n")
    rows = []
    for number, line in enumerate(lines[:-1] if lines[-1] == b"" else lines, 1):
        try:
            row = line.decode().removesuffix("\r").split("\t")
        except UnicodeDecodeError:
            raise ValueError(number) from None
        if b"\0" in line:
            raise ValueError(number)
        if number == 1 and labelled and task.label == -1:
            needed = max(needed + 1, len(row))
        if number == 1 and (task.header or not labelled):
            continue
        if len(row) < needed:
            if labelled and task.skip_short_rows:
                continue
            raise ValueError(number)
        rows.append([row[column] for column in columns])
        if labelled and task.labels:
            if row[task.label] not in task.labels:
                raise ValueError(number)
            rows[-1].append(task.labels.index(row[task.label]))
        elif labelled:
            try:
                score = float(row[task.label])
            except ValueError:
                score = -1
            if not 0 <= score <= 5:
                raise ValueError(number)
            rows[-1].append(np.float32(score))
    if not rows:
        raise ValueError(0)
    return rows


def swapped_lines(data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    return b"".join(lines[1::-1] + lines[2:])


def as_latin_1(data: bytes) -> bytes:
    return data.decode(errors="replace").encode("latin-1", errors="replace")


WHOLE = {
    "as it is": lambda data: data,
    "with carriage returns": lambda data: data.replace(b"\n", b"\r\n"),
    "with a byte-order mark": lambda data: codecs.BOM_UTF8 + data,
    "in Latin-1": as_latin_1,
    "in UTF-16": lambda data: data.decode(errors="replace").encode("utf-16"),
    "empty": lambda data: b"",
    "the first line alone": lambda data: data.split(b"\n")[0] + b"\n",
    "its lines twice": lambda data: data + data,
    "two lines swapped": swapped_lines,
    "without its last line feed": lambda data: data[:-1],
}
TSV_FILES = st.tuples(
    st.sampled_from(TSV_TASKS),
    st.sampled_from(["train", "dev", "test"]),
    st.sampled_from(["as it is"] * 10 + list(WHOLE)),
    st.just([]) | CHANGES,
)


@how_many(100, 10000)
def test_a_mutated_tsv_file_is_read_as_the_simplest_reading_has_it_or_refused_with_its_line(n, tmp_path):
    def check(example) -> str:
        name, split, whole, changes = example
        task = TASKS[name]
        data = changed(WHOLE[whole](valid_file(task, split)), changes)
        path = tmp_path / getattr(task, split)
        path.write_bytes(data)
        try:
            expected = plain_reading(task, split, data)
        except ValueError as wrong:
            (number,) = wrong.args
            with pytest.raises(GlueDataError) as refused:
                read_examples(task, tmp_path, split)
            reason = str(refused.value)
            place = f"{path}:{number}: " if number else f"{path}:"
            assert reason.startswith(place) and len(reason) < 300 + len(str(path)) and len(reason.splitlines()) == 1
            return "refused"
        found = read_examples(task, tmp_path, split)
        columns = [column for column in (found.first, found.second, found.labels) if column is not None]
        assert list(map(list, zip(*columns, strict=True))) == expected
        assert found.sha256 == hashlib.sha256(data).hexdigest()
        return "read"

    outcomes = for_each(n, TSV_FILES, check)
    assert min(outcomes["read"], outcomes["refused"]) > n / 10


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("cola", "x\t1\t\ta sentence" + "\t" * 10**6),
        ("rte", "0\ta sentence\tanother\t" + "\t" * 10**6 + "not_entailment"),
    ],
)
def test_a_row_of_a_million_columns_is_read(name, row, tmp_path):
    data = valid_file(TASKS[name], "train") + row.encode()
    (tmp_path / "train.tsv").write_bytes(data)
    with bounded(seconds=5, megabytes=30):
        examples = read_examples(TASKS[name], tmp_path, "train")
    assert examples.first[-1] == "a sentence" and examples.labels[-1] == 1 and len(examples.first) == 11


def test_a_line_of_100_megabytes_is_refused_and_takes_little(tmp_path):
    with open(tmp_path / "train.tsv", "wb") as file:
        for _ in range(100):
            file.write(b"x" * 10**6)
    with bounded(seconds=2, megabytes=20), pytest.raises(GlueDataError, match=r"train\.tsv:1: more than 2,097,152"):
        read_examples(TASKS["cola"], tmp_path, "train")


def test_the_longest_line_that_is_taken_is_read_whole(tmp_path):
    row = b"x\t1\t\t"
    (tmp_path / "train.tsv").write_bytes(row + b"y" * (MAX_LINE - len(row) - 1) + b"\n")
    assert len(read_examples(TASKS["cola"], tmp_path, "train").first[0]) == MAX_LINE - len(row) - 1


def make_unreadable(path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    path.write_bytes(valid_file(TASKS["cola"], "train"))
    path.chmod(0)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Path.mkdir, "is not a file"),
        (os.mkfifo, "is not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "is not a file"),
        (lambda path: path.symlink_to(path.parent / "nowhere"), ": no such file"),
        (lambda path: path.symlink_to(path), ": no such file"),
        (lambda path: path.symlink_to("/proc/self/mem"), ": cannot be read (Input/output error)"),
        (make_unreadable, ": cannot be read (Permission denied)"),
    ],
)
def test_what_is_no_file_that_can_be_read_is_refused_with_its_name(make, reason, tmp_path):
    make(tmp_path / "train.tsv")
    with bounded(seconds=5, megabytes=20), pytest.raises(GlueDataError) as refused:
        read_examples(TASKS["cola"], tmp_path, "train")
    assert str(refused.value).startswith(f"{tmp_path}/train.tsv") and reason in str(refused.value)


# ----------------------------------------------------------------------------------------- command lines

WORDS = ["0", "1", "-1", "4", "0.3", "1e-5", "20.0", "1e999", "-1e999", "nan", "inf", "-inf", "-0", "1e-400", "0x10"]
WORDS += [
    "1_000",
    "٣",
    "9" * 30,
    "9" * 5000,
    "4294967296",
    "1000000000000001",
    "",
    " ",
    "\n",
    "a\nb",
    "\u2028",
    "\udcff",
]
WORDS += ["none", "linear", "mrpc", "MNLI", "ax", "STSB", "best", "%s", "{}", "--", "-", "--do", "=", "None", "../x"]
SOUND = st.sampled_from(["0", "1", "4", "0.3", "20"])
VALUES = SOUND | st.sampled_from(WORDS) | st.integers().map(str) | st.floats().map(str) | st.text(max_size=6)


def flags_of(parse_args) -> list[str]:
    """The flags that `--help` names."""
    with redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit):
        parse_args(["--help"])
    return sorted(set(re.findall(r"--[a-z]\w+", printed.getvalue())) - {"--help"})


def command_lines(parse_args, *bases: list[str]) -> st.SearchStrategy:
    """Lists of arguments: often of what is sound, and of all flags with all kinds of values, or without one."""
    flag = st.sampled_from(flags_of(parse_args))
    pair = st.tuples(flag, VALUES)
    some = pair.map(list) | pair.map(lambda both: ["=".join(both)]) | (flag | VALUES).map(lambda one: [one])
    more = st.lists(pair.map(list) | some, max_size=3)
    return st.tuples(st.sampled_from([*bases * 3, []]), more).map(
        lambda parts: [*parts[0], *itertools.chain(*parts[1])]
    )


def parsed(parse_args, argv: list[str]):
    """The Namespace; None where the command line is refused in one line, or help was asked for."""
    with redirect_stdout(io.StringIO()) as printed, redirect_stderr(io.StringIO()) as errors:
        try:
            return parse_args(argv)
        except SystemExit as end:
            if end.code == 0:
                assert "-h" in " ".join(argv) and printed.getvalue().startswith("usage")
                return None
            assert end.code == 2
    (line,) = errors.getvalue().splitlines()
    assert re.match(r"\w+\.py: error: .", line)
    return None


WHERE = ["--task_name", "mrpc", "--model_name_or_path", "m", "--data_dir", "d", "--output_dir", "o"]
AT_LEAST_0 = "scheduler_linear_k steps_for_replacing learning_rate warmup_steps weight_decay adam_epsilon seed "
AT_LEAST_0 += "logging_steps save_steps"
AT_LEAST_1 = "per_gpu_train_batch_size per_gpu_eval_batch_size gradient_accumulation_steps"
WHOLE_NUMBERS = "steps_for_replacing warmup_steps seed logging_steps save_steps max_steps max_seq_length local_rank "
WHOLE_NUMBERS += AT_LEAST_1


@how_many(300, 10000)
def test_a_command_line_of_run_glue_is_refused_in_one_line_or_holds_what_its_flags_promise(n, caplog):
    caplog.set_level(logging.ERROR)
    sound = (
        [*WHERE, "--do_train", "--do_eval", "--replacing_rate", "0.3"],
        [*WHERE, "--do_train"],
        [*WHERE, "--do_eval"],
    )

    def check(argv: list[str]) -> str:
        args = parsed(run_glue.parse_args, argv)
        if args is None:
            return "refused"
        values = vars(args)
        numbers = [value for value in values.values() if isinstance(value, float)]
        assert all(math.isfinite(value) for value in numbers)
        assert all(type(values[name]) is int for name in WHOLE_NUMBERS.split())
        for bound, names in ((0, AT_LEAST_0), (1, AT_LEAST_1), (-1, "max_steps"), (4, "max_seq_length")):
            assert all(bound <= values[name] <= 10**15 for name in names.split())
        for name in ("scc_n_layer", "save_total_limit"):
            assert values[name] is None or 1 <= values[name] <= 10**15
        assert args.num_train_epochs > 0 and args.max_grad_norm > 0 and args.seed < 2**32
        assert args.replacing_rate is None or 0 < args.replacing_rate <= 1
        assert args.scheduler_type in ("none", "linear") and TASKS[args.task_name].metrics
        assert args.do_train or args.do_eval
        json.dumps(values)
        run_glue.warn_about(args)
        for n_rows in (1, 48, 400_000):
            try:
                an_epoch, n_steps = run_glue.count_steps(args, n_rows)
                assert an_epoch >= 1 and n_steps >= 1 and type(n_steps) is int
                assert args.max_steps < 1 or n_steps == args.max_steps
            except UserError as error:
                assert len(str(error).splitlines()) == 1 and args.gradient_accumulation_steps > 1
        return "accepted"

    outcomes = for_each(n, command_lines(run_glue.parse_args, *sound), check)
    assert min(outcomes["accepted"], outcomes["refused"]) > n / 20


@pytest.mark.parametrize("script", [predict_glue, summarize])
@how_many(100, 5000)
def test_a_command_line_of_another_script_is_refused_in_one_line_or_taken(n, script):
    sound = [[*WHERE], ["--runs_dir", "r", "--data_dir", "d", "--output_dir", "o"], ["--check", "x.zip"]]
    if script is summarize:
        sound = [["runs"]]

    def check(argv: list[str]) -> str:
        args = parsed(script.parse_args, argv)
        if args is None:
            return "refused"
        if script is predict_glue:
            assert args.check or args.output_dir is not None
            assert args.task_name is None or args.task_name in TASKS
            assert 1 <= args.per_gpu_eval_batch_size <= 10**15
            assert args.max_seq_length is None or 4 <= args.max_seq_length <= 10**15
        return "accepted"

    outcomes = for_each(n, command_lines(script.parse_args, *sound), check)
    assert min(outcomes["accepted"], outcomes["refused"]) > n / 20


# ------------------------------------------------------------------------------------------- checkpoints

LABELS = TASKS["mrpc"].labels
CONFIG_KEYS = "num_labels _num_labels id2label label2id problem_type auto_map quantization_config torch_dtype dtype "
CONFIG_KEYS += "attn_implementation _attn_implementation pruned_heads return_dict output_attentions hidden_act "
CONFIG_KEYS += "output_hidden_states chunk_size_feed_forward text_config architectures tie_word_embeddings model_type "
CONFIG_KEYS += "is_encoder_decoder is_decoder num_hidden_layers hidden_size vocab_size position_embedding_type "
CONFIG_KEYS += "finetuning_task gradient_checkpointing attribute_map layer_norm_eps max_position_embeddings "
CONFIG_KEYS += "type_vocab_size"
CONFIG_VALUES = ["gelu", "bert", "roberta", "distilbert", "gpt2", "albert", "t5", "modernbert", "eager", "NoSuchModel"]
TOKENIZER_KEYS = "model_max_length tokenizer_class auto_map pad_token unk_token cls_token do_lower_case "
TOKENIZER_KEYS += "truncation_side added_tokens_decoder extra_special_tokens model_input_names type truncation padding "
TOKENIZER_KEYS += "normalizer id"
TOKENIZER_VALUES = ["left", "BertTokenizer", "GPT2Tokenizer", "PreTrainedTokenizerFast", "[PAD]", "good", "BPE"]
TOKENIZER_VALUES += [
    {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
    {"type": "Precompiled", "precompiled_charsmap": "BAAAAP////9hYmM="},  # which points beyond its end
    {"type": "FixedLength", "length": 0},
    {"type": "Replace", "pattern": {"Regex": "(("}, "content": "x"},
    {"strategy": {"Fixed": 10**12}, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "x"},
    {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 9},
]
TENSOR_VALUES = ["F16", "F64", "I64", "BOOL", "F8_E4M3", [10**9, 10**9], [32, 32], [0, 10**12], [0, 0], [31, -32]]

EDITED = {
    "config.json": edits(*CONFIG_KEYS.split(), values=CONFIG_VALUES),
    "tokenizer.json": edits(*TOKENIZER_KEYS.split(), values=TOKENIZER_VALUES),
    "tokenizer_config.json": edits(*TOKENIZER_KEYS.split(), values=TOKENIZER_VALUES),
    "special_tokens_map.json": edits(*TOKENIZER_KEYS.split(), values=TOKENIZER_VALUES),
    "model.safetensors": edits("__metadata__", values=TENSOR_VALUES),
    "model.safetensors.index.json": edits(values=["../x", "/dev/zero", "model-00001-of-00009.safetensors"]),
}
MUTATED_FILES = [(name, "its JSON") for name in EDITED] + [(name, "its bytes") for name in [*EDITED, "vocab.txt"]]
MUTATED_FILES += [("pytorch_model.bin", how) for how in ("its bytes", "its pickle", "of the old format")]


def save_tokenizer_as_it_is(folder: Path) -> None:
    """Say that tokenizer.json holds all of the tokenizer: of a BERT's transformers takes the vocabulary alone."""
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "PreTrainedTokenizerFast"}))


def save_pickled(folder: Path, **options) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin", **options)
    (folder / "model.safetensors").unlink()


def is_refused(load) -> bool:
    """Whether the call ends in a UserError, which the scripts make one line of, and not for want of memory."""
    try:
        with one_line_errors("run_glue.py", UserError):
            load()
    except SystemExit as end:
        assert isinstance(end.__cause__, UserError)
        assert len(end.code.splitlines()) == 1 and "allocat" not in end.code
        return True
    return False


@pytest.mark.parametrize(("name", "how"), MUTATED_FILES)
@how_many(15, 2000)
@pytest.mark.filterwarnings("ignore")
def test_a_model_with_a_mutated_file_is_loaded_and_works_or_is_refused(n, name, how, tmp_path, caplog):
    caplog.set_level(logging.ERROR)
    folder = save_bert(tmp_path / "model", n_layer=2)
    roles = {f"{role}_token": f"[{role.upper()}]" for role in ("unk", "sep", "pad", "cls", "mask")}
    (folder / "special_tokens_map.json").write_text(json.dumps(roles))
    if name == "tokenizer.json":
        save_tokenizer_as_it_is(folder)
    if name == "vocab.txt":
        (folder / "tokenizer.json").unlink()
    if name == "model.safetensors.index.json":
        model = load_model(str(folder), LABELS, max_seq_length=16).model
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, max_shard_size="20KB")
    if name == "pytorch_model.bin":
        save_pickled(folder, _use_new_zipfile_serialization=how != "of the old format")
    path, inputs = folder / name, CHANGES
    whole = path.read_bytes()
    change = changed
    if how == "its JSON":
        inputs, change = EDITED[name], changed_header if name == "model.safetensors" else changed_json
    elif how == "its pickle":

        def change(data, changes):
            return changed_member(data, "data.pkl", lambda pickled: changed(pickled, changes))

    features = Features(np.array([2, 5, 6, 3, 2, 7, 3]), np.array([4, 3]), np.zeros(7, np.int8))

    def check(changes) -> str:
        path.write_bytes(change(whole, changes))

        def load():
            loaded = load_model(str(folder), LABELS, max_seq_length=16)
            assert predict(loaded.model, features, 2, 0).shape == (2, 2)
            ids = loaded.tokenizer("good films", "bad cat")["input_ids"]
            assert max(ids) < loaded.model.get_input_embeddings().num_embeddings

        return "refused" if is_refused(load) else "loaded"

    assert check([]) == "loaded"
    outcomes = for_each(n, inputs, check)
    assert outcomes["refused"] or name == "special_tokens_map.json"  # which old versions do not read


HUGE = [10**6, 10**9, 10**12, 10**18, 10**30]
COUNTS = [
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
    "num_labels",
]


@pytest.mark.parametrize("key", COUNTS)
@pytest.mark.parametrize("save", [save_bert, save_roberta])
def test_a_config_that_counts_beyond_its_weights_is_refused_before_memory_or_time_are_spent(key, save, tmp_path):
    folder = save(tmp_path, n_layer=2)
    config = json.loads((folder / "config.json").read_text())
    for value in HUGE:
        (folder / "config.json").write_text(json.dumps(config | {key: value}))
        with bounded(seconds=5, megabytes=100):
            assert is_refused(lambda: load_model(str(folder), LABELS, max_seq_length=16)), value


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("text", ["[" * 10**6, '{"a":' * 10**5, "9" * 10**6, "", "\0", "null", "[]", '"x"', "\ufeff{}"])
def test_json_that_is_deep_long_or_no_table_is_no_trouble(name, text, tmp_path):
    folder = save_bert(tmp_path, n_layer=2)
    (folder / name).write_text(text)
    with bounded(seconds=5, megabytes=200):
        refused = is_refused(lambda: load_model(str(folder), LABELS, max_seq_length=16))
    assert refused or name != "config.json"


@pytest.mark.parametrize("member", ["data.pkl", "version", "0"])
def test_weights_that_would_unpack_to_a_thousand_times_their_size_are_refused(member, tmp_path):
    folder = save_bert(tmp_path, n_layer=2)
    save_pickled(folder)
    path = folder / "pytorch_model.bin"
    target = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as archive:
        for name in source.namelist():
            bomb = bytes(10**8) if Path(name).name == member else b""
            archive.writestr(name, source.read(name) + bomb, zipfile.ZIP_DEFLATED if bomb else zipfile.ZIP_STORED)
    path.write_bytes(target.getvalue())
    with bounded(seconds=5, megabytes=50), pytest.raises(UserError, match=r"pytorch_model.bin would unpack to 100,"):
        load_model(str(folder), LABELS, max_seq_length=16)


@pytest.mark.parametrize(
    ("name", "how"), [("config.json", "its JSON"), ("config.json", "its bytes"), ("pytorch_model.bin", "")]
)
@how_many(20, 2000)
@pytest.mark.filterwarnings("ignore")
def test_a_mutated_checkpoint_of_2020_is_converted_or_refused(n, name, how, tmp_path, capsys):
    source = Path(shutil.copytree(RELEASE, tmp_path / "release"))
    path, target = source / name, tmp_path / "converted"
    whole = path.read_bytes()

    def check(changes) -> str:
        path.write_bytes(changed_json(whole, changes) if how == "its JSON" else changed(whole, changes))
        shutil.rmtree(target, ignore_errors=True)
        if is_refused(lambda: convert_to_hf_ckpt.convert(source, target)):
            assert not target.exists()
            return "refused"
        assert (target / "config.json").is_file()
        return "converted"

    outcomes = for_each(n, EDITED["config.json"] if how == "its JSON" else CHANGES, check)
    assert outcomes["refused"] and outcomes["converted"]


# --------------------------------------------------------------------------------- states of unfinished runs


STATE_KEYS = "step seconds last_epoch lr betas steps with_gradient losses log metrics main params fused x"
STATE_VALUES = ["F64", "I64", "U8", [0, 0], [1], {"metrics": {}, "main": 0.5, "seconds": 1.0}, [10**9]]


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory) -> tuple:
    """(arguments, checkpoint) of a compression that was stopped after its third step, one after an evaluation."""
    folder = tmp_path_factory.mktemp("unfinished")
    model, data = save_bert(folder / "model", n_layer=2), write_glue(folder / "MRPC", "mrpc", n_train=32, n_dev=8)
    flags = "--do_train --do_eval --evaluate_during_training --max_steps 6 --logging_steps 2 --save_steps 0 "
    flags += "--replacing_rate 0.9 --scheduler_type linear --scheduler_linear_k 0.01"
    argv = arguments("mrpc", model, data, folder / "run", *flags.split())
    with pytest.MonkeyPatch.context() as monkeypatch:
        stopped_run(3, monkeypatch, *argv)
    return run_glue.parse_args(argv), folder / "run" / "checkpoint-3-stopped"


@pytest.mark.parametrize("how", ["its JSON", "its header", "its bytes"])
@how_many(40, 2000)
def test_a_run_with_a_mutated_state_goes_on_or_is_refused(n, how, unfinished, tmp_path):
    args, checkpoint = unfinished
    folder = Path(shutil.copytree(checkpoint.parent, tmp_path / "run")) / checkpoint.name
    path = folder / run_folder.STATE
    whole = path.read_bytes()
    task, predecessor = TASKS["mrpc"], load_model(args.model_name_or_path, LABELS, max_seq_length=16)
    successor = load_model(str(checkpoint), LABELS, max_seq_length=16).model
    ids = torch.randint(5, 30, (4, 8))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(4) % 2}

    def change(data: bytes, changes) -> bytes:
        if how == "its bytes":
            return changed(data, changes)
        if how == "its header":
            return changed_header(data, changes)
        tensors, figures = training_state.read(checkpoint / run_folder.STATE)
        training_state.write(path, tensors, edited(figures, changes))
        return path.read_bytes()

    def check(changes) -> str:
        path.write_bytes(change(whole, changes))
        try:
            progress, state = run_glue.read_state(args, task, folder)
        except UserError as error:
            assert str(error).startswith(f"{folder}: the run cannot go on") and len(str(error).splitlines()) == 1
            return "refused"
        model = copy.deepcopy(predecessor.model)
        parts = run_glue.make_parts(args, model, compress(model, 1), 6)
        load_successor(model, successor)
        try:
            losses = Losses(training_state.restore(parts, *state))
        except ValueError as error:
            assert str(error).startswith("not this run's state")
            return "refused"
        losses.mean()
        step = train_step(model, parts.layers, [[(batch, 1.0)]], parts.optimizer, parts.schedulers, 1.0, parts.scaler)
        assert step is None or step.shape == ()
        json.dumps(progress.figures() | {"resumed": progress.resumed})
        scores = [score for score in (progress.predecessor, progress.last, progress.best) if score]
        run_glue.compare([("one", score, 1) for score in scores], "acc_and_f1")
        assert progress.step == 3 and isinstance(state[1]["log"], dict)
        return "goes on"

    outcomes = for_each(n, edits(*STATE_KEYS.split(), values=STATE_VALUES) if how != "its bytes" else CHANGES, check)
    # What is changed behind the back of `write` its digest tells.
    assert outcomes["refused"] and (outcomes["goes on"] or how != "its JSON")


@pytest.mark.parametrize("how", ["its JSON", "its bytes"])
@how_many(60, 2000)
def test_a_mutated_record_of_an_unfinished_run_is_refused_or_tells_what_differs(n, how, unfinished, tmp_path, caplog):
    caplog.set_level(logging.ERROR)
    args, checkpoint = unfinished
    whole = (checkpoint.parent / run_folder.STARTED).read_bytes()
    args = run_glue.parse_args(arguments("mrpc", "m", "d", tmp_path, "--do_train", "--resume"))
    now = json.loads(whole)

    def check(changes) -> str:
        data = changed_json(whole, changes) if how == "its JSON" else changed(whole, changes)
        (tmp_path / run_folder.STARTED).write_bytes(data)

        def go_on():
            earlier = run_glue.earlier_run(args)
            run_glue.refuse_differences(args.output_dir, earlier, now)

        return "refused" if is_refused(go_on) else "goes on"

    keys = "arguments data versions processes device_type predecessor_sha256 seed start end".split()
    outcomes = for_each(n, edits(*keys) if how == "its JSON" else CHANGES, check)
    assert outcomes["refused"] and outcomes["goes on"]


# ------------------------------------------------------------------------------------- caches of features


SIZES = [0, 1, 2, 7, 8, 9, 88, 10**5]
ARRAYS = st.none() | st.builds(
    lambda shape, kind, value: np.full(shape, value).astype(kind),
    st.sampled_from([(), *((size,) for size in SIZES), (8, 11), (1, 8)]),
    st.sampled_from(["int8", "int32", "int64", "float32", "float64", "bool", "S3", "U2"]),
    st.sampled_from([-1, 0, 1, 11, 120]),
)


@how_many(100, 2000)
@pytest.mark.parametrize("how", ["its bytes", "its arrays"])
def test_a_mutated_cache_is_made_anew(n, how, tmp_path, caplog):
    caplog.set_level(logging.ERROR)
    tokenizer = load_model(str(save_bert(tmp_path / "model", n_layer=2)), LABELS, max_seq_length=16).tokenizer
    examples = Examples(["good film", "a"] * 4, ["the cat is bad", "dog"] * 4, np.arange(8) % 2, "sha256")
    expected = tokenize(examples, tokenizer, 16, True)
    names = ["input_ids", "lengths", "token_type_ids", "labels"]

    def features():
        return cached_features(TASKS["mrpc"], "dev", examples, tokenizer, 16, True, [tmp_path])

    features()
    (path,) = tmp_path.glob("cached_*.npz")
    whole, key = path.read_bytes(), np.load(path)["key"]

    def change(changes) -> bytes:
        if how == "its bytes":
            return changed(whole, changes)
        name, array = changes
        arrays = {name: getattr(expected, name) for name in names} | {"key": key, name: array}
        np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
        return path.read_bytes()

    def check(changes) -> str:
        damaged = change(changes)
        path.write_bytes(damaged)
        found = features()
        for name in names:
            assert np.array_equal(getattr(found, name), getattr(expected, name)), name
            assert getattr(found, name).dtype == getattr(expected, name).dtype
        return "read" if path.read_bytes() == damaged else "made anew"

    outcomes = for_each(
        n, CHANGES if how == "its bytes" else st.tuples(st.sampled_from([*names, "key"]), ARRAYS), check
    )
    assert outcomes["made anew"] > n / 2


# ------------------------------------------------------------------------------- submissions and records of runs


def said(capsys, call, prog: str) -> tuple[int | str | None, list[str], list[str]]:
    """(status, lines of standard output, of standard error) of a script's main function."""
    capsys.readouterr()
    status = 0
    try:
        call()
    except SystemExit as end:
        status = end.code
    output, errors = capsys.readouterr()
    if isinstance(status, str):  # which Python prints
        assert len(status.splitlines()) == 1 and status.startswith(f"{prog}: error: ")
    return status, output.splitlines(), errors.splitlines()


FEW_ROWS = {name: dataclasses.replace(task, rows=(9, 9, 5)) for name, task in predict_glue.SUBMITTED.items()}


def submission_file(task: Task) -> bytes:
    label = task.labels[-1] if task.labels else "4.8"
    return ("index\tprediction\n" + "".join(f"{i}\t{label}\n" for i in range(5))).encode()


def is_good(data: bytes) -> bool:
    """Whether a submission is as the leaderboard wants it, found out in the simplest way."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = {name: archive.read(name).decode() for name in archive.namelist()}
        sizes = [member.file_size for member in archive.infolist()]
    if files.keys() != FEW_ROWS.keys() or max(sizes) > predict_glue.MAX_FILE:
        return False
    for name, text in files.items():
        header, *rows = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
        labels = FEW_ROWS[name].labels
        cells = [row.split("\t") for row in rows]
        if header != "index\tprediction" or [row[0] for row in cells] != ["0", "1", "2", "3", "4"]:
            return False
        if not all(len(row) == 2 and (row[1] in labels if labels else 0 <= float(row[1]) <= 5) for row in cells):
            return False
    return True


@how_many(100, 3000)
@pytest.mark.parametrize("how", ["its bytes", "a member's bytes"])
def test_a_mutated_submission_is_refused_in_lines_of_its_files_or_good(n, how, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(predict_glue, "SUBMITTED", FEW_ROWS)
    path = tmp_path / "submission.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, task in FEW_ROWS.items():
            archive.writestr(name, submission_file(task))
    whole = path.read_bytes()
    args = predict_glue.parse_args(["--check", str(path)])

    def check(example) -> str:
        name, changes = example
        data = changed(whole, changes)
        if how != "its bytes":
            data = changed_member(whole, name, lambda content: changed(content, changes))
        path.write_bytes(data)
        status, output, errors = said(capsys, lambda: predict_glue.main(args), "predict_glue.py")
        assert not errors
        if status == 0:
            assert is_good(data) and output[0].startswith(f"{path}: all 11 files are there")
            return "good"
        if "no zip that can be read" in status:
            assert not output
            return "no zip"
        assert output and all(re.match(r".+?(:\d+)?: ", line) and len(line) < 300 for line in output)
        with contextlib.suppress(ValueError, zipfile.BadZipFile, RuntimeError):  # in the plain reading of what is not
            assert not is_good(data)
        return "refused"

    outcomes = for_each(n, st.tuples(st.sampled_from(list(FEW_ROWS)), CHANGES), check)
    assert outcomes["good"] and outcomes["no zip" if how == "its bytes" else "refused"] > n / 4


@pytest.mark.parametrize("line", [b"\n", b"ab\n", b"7\t1\n"])
def test_a_submission_of_a_file_that_is_much_too_long_takes_little_memory(line, tmp_path):
    path = tmp_path / "submission.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("CoLA.tsv", line * (predict_glue.MAX_FILE // len(line)))
    with bounded(seconds=60, megabytes=400):
        problems = predict_glue.check_submission(path)
    assert any(problem.startswith("CoLA.tsv: ") and "rows, expected 1,063" in problem for problem in problems)


def run_record() -> dict:
    """What run_glue.py leaves of a compression."""
    flags = "--do_train --do_eval --evaluate_during_training --replacing_rate 0.3 --scheduler_type linear "
    flags += "--max_seq_length 32"
    score = {"step": 50, "metrics": {"acc": 0.7, "acc_and_f1": 0.75}, "main": 0.75, "seconds": 0.5}
    record = {"task": "mrpc", "main_metric": "acc_and_f1", "device": "cpu", "processes": 1, "versions": {"torch": "2"}}
    record |= {
        "arguments": vars(run_glue.parse_args([*WHERE, *flags.split()])),
        "start": "2026",
        "steps": 100,
        "training_seconds": 9.0,
    }
    return record | {"last": score, "best": score, "predecessor": score | {"parameters": 40}, "end": "2026"}


RECORD_KEYS = "task main_metric arguments processes last best predecessor main step seed replacing_rate scheduler_type "
RECORD_KEYS += "scheduler_linear_k learning_rate max_seq_length x"
RECORD_VALUES = ["mrpc", "cola", "linear", "none", {"main": 0.5, "step": 3}, "a|b"]


@how_many(100, 3000)
@pytest.mark.parametrize("how", ["its JSON", "its bytes"])
def test_a_mutated_record_of_a_run_is_summed_up_or_left_out_with_a_warning(n, how, tmp_path, monkeypatch, capsys):
    text = as_json(run_record())
    for name, seed in (("a", b"41"), ("b", b"42"), ("c", b"43")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_bytes(text.replace(b'"seed": 42', b'"seed": ' + seed))
    monkeypatch.setattr(sys, "argv", ["summarize.py", str(tmp_path), "--no_pictures"])

    def check(changes) -> str:
        data = changed_json(text, changes) if how == "its JSON" else changed(text, changes)
        (tmp_path / "b" / "run.json").write_bytes(data)
        status, output, errors = said(capsys, summarize.main, "summarize.py")
        assert status == 0
        *warnings, written = errors
        assert written.startswith("Written to ")
        # One that is the same as another's says so.
        assert all(line.startswith(f"summarize.py: warning: {tmp_path}") for line in warnings) and len(warnings) <= 2
        table = list(itertools.takewhile(str.strip, output))
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
        with open(tmp_path / "summary.csv", newline="") as file:
            assert len(list(csv.reader(file))) == len(table) - 1
        return "left out" if f"{tmp_path}/b/run.json is no run.json" in errors[0] else "summed up"

    outcomes = for_each(n, edits(*RECORD_KEYS.split(), values=RECORD_VALUES) if how == "its JSON" else CHANGES, check)
    assert outcomes["left out"] and outcomes["summed up"]


@how_many(5, 300)
@pytest.mark.filterwarnings("ignore")
def test_a_mutated_log_is_drawn_or_its_picture_left_out_with_a_warning(n, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    (tmp_path / "run.json").write_bytes(as_json(run_record()))
    lines = [{"step": step, "loss": 1 / step, "replacing_rate": 0.3, "learning_rate": 1e-5} for step in (50, 100)]
    lines += [{"step": step, "eval_acc_and_f1": 0.7} for step in (50, 100)]
    monkeypatch.setattr(sys, "argv", ["summarize.py", str(tmp_path)])

    def check(example) -> str:
        changes, (number, edit) = example
        text = b"\n".join(as_json(edited(line, edit) if i == number else line) for i, line in enumerate(lines))
        (tmp_path / "log.jsonl").write_bytes(changed(text, changes))
        status, _, errors = said(capsys, summarize.main, "summarize.py")
        assert status == 0
        *warnings, written = errors
        assert written.startswith("Written to ") and len(warnings) <= 1
        assert all(line.startswith("summarize.py: warning: no summary_run.png: ") for line in warnings)
        return "left out" if warnings else "drawn"

    one_line = st.tuples(st.integers(0, 3), edits("step", "loss", "eval_acc_and_f1"))
    either = st.tuples(CHANGES, st.just((0, []))) | st.tuples(st.just([]), one_line)
    outcomes = for_each(n, either, check, megabytes=400)
    assert outcomes["left out"] or n < 50


@how_many(40, 2000)
@pytest.mark.parametrize("how", ["its JSON", "its bytes"])
def test_a_mutated_record_beside_a_model_to_predict_with_is_taken_or_refused_in_one_line(n, how, tmp_path, capsys):
    folder, text = save_bert(tmp_path / "runs" / "MRPC", n_layer=2), as_json(run_record())
    args = predict_glue.parse_args(["--runs_dir", str(tmp_path / "runs"), "--data_dir", "d", "--output_dir", "o"])

    def check(changes) -> str:
        data = changed_json(text, changes) if how == "its JSON" else changed(text, changes)
        (folder / "run.json").write_bytes(data)
        found = predict_glue.find_runs(tmp_path / "runs", "best")
        assert set(found.values()) <= {folder}
        refused = is_refused(lambda: predict_glue.load(folder, LABELS, args))
        return "refused" if refused else "taken"

    outcomes = for_each(n, edits(*RECORD_KEYS.split(), values=RECORD_VALUES) if how == "its JSON" else CHANGES, check)
    assert outcomes["taken"]


# ------------------------------------------------------------------------------------------ odd sentences

ODD = ["", " ", "\u00a0\u200b\u3000", "a", "?", "🎬", "x" * 100_000, "good " * 20_000, "é" * 100_000, "🎬" * 25_000]
ODD += ["☃ ☃ ☃", "日本語", "\u0301\u0301", "\x01\x02\x7f", "\ufffd", "[CLS] [SEP]", "<s> </s>", '"', "\\n"]


def save_gpt2(folder: Path) -> Path:
    """A decoder whose tokenizer adds no tokens of its own, and so makes nothing of an empty sentence."""
    return save_family(folder, "gpt2")


@pytest.mark.parametrize("task", ["cola", "mrpc"])
@pytest.mark.parametrize("save", [save_bert, save_roberta, save_gpt2])
def test_sentences_of_any_length_and_script_go_through_training_evaluation_and_prediction(save, task, tmp_path, capsys):
    model, data = save(tmp_path / "model"), tmp_path / "data"
    data.mkdir()
    header, row = ROWS[task]
    pairs = [(first, ODD[(i + shift) % len(ODD)]) for shift in (0, 6) for i, first in enumerate(ODD)]
    # Transformers alone needs all memory for a pair of long ones, and takes one row without a second as no pair.
    short = [pair for pair in pairs if min(map(len, pair)) < 1000 and pair[1]]
    for name, its in (("train.tsv", pairs), ("dev.tsv", short)):
        rows = [row(i, first, second) for i, (first, second) in enumerate(its)]
        (data / name).write_text("\n".join([header, *rows] if header else rows) + "\n")
    n_columns = max(TASKS[task].test_sentences) + 1
    tests = [["index"] * n_columns] + [[str(i)] * n_columns for i in range(len(pairs))]
    for cells, pair in zip(tests[1:], pairs, strict=True):
        for column, sentence in zip(TASKS[task].test_sentences, pair, strict=False):
            cells[column] = sentence
    (data / "test.tsv").write_text("".join("\t".join(cells) + "\n" for cells in tests))

    flags = "--do_train --do_eval --evaluate_during_training --max_steps 8 --logging_steps 4 --save_steps 0"
    with bounded(seconds=60, megabytes=600):
        run_here(*arguments(task, model, data, tmp_path / "run", *flags.split(), "--replacing_rate", 0.7))
    losses = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert all(math.isfinite(value) for line in losses for value in line.values())
    if save is not save_gpt2:  # to whose tokenizer an empty sentence is nothing, and transformers stops there
        assert read_results(tmp_path / "run") == pytest.approx(score_again(tmp_path / "run", data, task))
    where = ["--model_name_or_path", tmp_path / "run", "--task_name", task, "--data_dir", data, "--no_cuda"]
    with bounded(seconds=60, megabytes=600):
        predict_glue.main(predict_glue.parse_args([str(a) for a in [*where, "--output_dir", tmp_path / "predictions"]]))
    predictions = (tmp_path / "predictions" / TASKS[task].submission_file).read_text().splitlines()
    assert len(predictions) == 1 + len(pairs)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "deberta-v3"])
def test_a_pair_of_long_sentences_is_cut_as_the_tokenizer_cuts_it(name, side, tmp_path, monkeypatch):
    tokenizer = AutoTokenizer.from_pretrained(save_family(tmp_path, name), truncation_side=side)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    rng = random.Random(0)
    for _ in range(60):
        sizes = rng.choices([0, 1, 2, 5, 20, 100], k=2)
        sentences = [" ".join(rng.choices(["good", "films", "é", "🎬", "x"], k=size)) for size in sizes]
        examples, length = Examples([sentences[0]], [sentences[1]], None, ""), rng.choice([5, 6, 7, 8, 16, 33])
        found = []
        for is_long in (False, True):
            monkeypatch.setattr(glue_processors, "_is_long_pair", lambda *_, is_long=is_long: is_long)
            features = tokenize(examples, tokenizer, length, token_type_ids=name in TAKES_TYPES)
            found.append((features.input_ids.tolist(), np.array(features.token_type_ids).tolist()))
        assert found[0] == found[1]


@pytest.mark.parametrize("save", [save_bert, save_roberta])
def test_pairs_of_long_sentences_take_little_memory_and_leave_the_tokenizer_as_it_was(save, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(save(tmp_path, n_layer=2))
    before = tokenizer.backend_tokenizer.to_str()
    examples = Examples(["a", "good " * 50_000, "b"], ["c", "🎬 bad " * 40_000, "d"], None, "")
    with bounded(seconds=20, megabytes=400):
        features = tokenize(examples, tokenizer, 16, False)
    shorter = examples._replace(first=["a", "good " * 50, "b"], second=["c", "🎬 bad " * 40, "d"])
    assert np.array_equal(features.input_ids, tokenize(shorter, tokenizer, 16, False).input_ids)
    assert tokenizer.backend_tokenizer.to_str() == before
