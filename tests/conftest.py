"""Small real models and GLUE folders, made on the spot."""

import os

# Before anything imports transformers: no test asks the Hub for a model.
os.environ["HF_HUB_OFFLINE"] = "1"

import random
import signal
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaTokenizerFast,
)

torch.set_num_threads(1)  # more threads only wait for each other on models this small

# nohup and jobs in the background ignore these signals, and all that they start does; tests send them.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)

GOOD = ["good", "fine", "great", "lovely", "happy"]
BAD = ["bad", "poor", "awful", "ugly", "sad"]
OTHER = ["the", "a", "film", "cat", "dog", "house", "is", "was", "very", "not", "and", "so"]
SIZES = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 66}


def save_bert(folder: Path, num_labels: int = 2, n_layer: int = 4, **config) -> Path:
    """A random BERT classifier and its WordPiece tokenizer, as a model folder."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *OTHER, "Good", "##s", ".", '"']
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    settings = SIZES | {"vocab_size": len(words), "num_hidden_layers": n_layer, "num_labels": num_labels} | config
    # Weights large enough for every layer to matter.
    BertForSequenceClassification(BertConfig(initializer_range=0.2, **settings)).save_pretrained(folder)
    return folder


def save_roberta(folder: Path, num_labels: int = 2, n_layer: int = 4, **config) -> Path:
    """A random RoBERTa classifier and its byte-level BPE tokenizer, as a model folder."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([" ".join(GOOD + BAD + OTHER)] * 3, trainer)
    bpe.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer = RobertaTokenizerFast(tokenizer_object=bpe)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    settings = SIZES | {"vocab_size": len(tokenizer), "num_hidden_layers": n_layer, "num_labels": num_labels} | config
    settings |= {"type_vocab_size": 1, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    RobertaForSequenceClassification(RobertaConfig(initializer_range=0.2, **settings)).save_pretrained(folder)
    return folder


ENCODERS = {"bert": save_bert, "roberta": save_roberta}


@pytest.fixture(scope="session", params=list(ENCODERS))
def encoder_folder(request, tmp_path_factory) -> Path:
    return ENCODERS[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert"))


def tiny_batch(n_rows: int = 6, length: int = 10, vocab_size: int = 20) -> dict[str, torch.Tensor]:
    """Random ids, all rows of full length, with labels."""
    generator = torch.Generator().manual_seed(1)
    return {
        "input_ids": torch.randint(5, vocab_size, (n_rows, length), generator=generator),
        "attention_mask": torch.ones(n_rows, length, dtype=torch.long),
        "labels": torch.arange(n_rows) % 2,
    }


def sentence(rng: random.Random, words: list[str]) -> str:
    chosen = [rng.choice(words), *rng.choices(OTHER, k=rng.randrange(2, 9))]
    rng.shuffle(chosen)
    return " ".join(chosen)


MNLI_LABELS = ("contradiction", "entailment", "neutral")
STS_B_HEADER = "index genre filename year old_index source1 source2 sentence1 sentence2 score".split()
ROWS = {  # header and row of the tasks' train and dev files
    "mrpc": ("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", lambda i, a, b: f"{i % 2}\t1\t2\t{a}\t{b}"),
    "cola": (None, lambda i, a, b: f"src\t{i % 2}\t\t{a}"),
    "sts-b": ("\t".join(STS_B_HEADER), lambda i, a, b: f"{i}\tg\tf\ty\to\ts\ts\t{a}\t{b}\t{i % 2 * 4 + 0.5}"),
    "mnli": (
        "\t".join([*"abcdefgh", "sentence1", "sentence2", "label1", "gold_label"]),
        lambda i, a, b: "\t" * 8 + f"{a}\t{b}\tx\t{MNLI_LABELS[i % 3]}",
    ),
}


def write_glue(folder: Path, task: str, n_train: int = 48, n_dev: int = 24) -> Path:
    """The train and dev files of a task, with sentiment words to learn from."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(task)
    header, row = ROWS[task]
    dev = ["dev_matched", "dev_mismatched"] if task == "mnli" else ["dev"]
    for name, n_rows in [("train", n_train), *((name, n_dev) for name in dev)]:
        rows = [row(i, sentence(rng, [GOOD, BAD][i % 2]), sentence(rng, GOOD + BAD)) for i in range(n_rows)]
        (folder / f"{name}.tsv").write_text("\n".join([header, *rows] if header else rows) + "\n")
    return folder
