"""The data of a grid: GLUE's, without the rows that no run sees and on which all are scored in the end."""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from bert_of_theseus.data.scores import chance_score
from bert_of_theseus.data.task import Examples
from bert_of_theseus.run.files import write_whole
from glue_processors import TASKS, GlueTask, find_task, read_dev_sets, read_examples
from grid.cells import CONSTANT_ANSWER

PHRASES = {"SST-2"}  # of which a training row is a sentence or one of its phrases
HELD_OUT, LEAST_HELD_OUT = 0.1, 300  # rows of the training file that are held out: the share, and at least so many


def hold_out(task: GlueTask, glue_dir: Path, data_dir: Path, held_out_dir: Path) -> None:
    """Write the task's files without the held-out rows, and these as a dev set in a folder of their own.

    Of SST-2 whole sentences are held out, each with the phrases that no longer one has: else nearly every held-out
    sentence would have a phrase among the training rows. Of single sentences those that a training row contains are in
    neither.
    """
    examples = read_examples(task, glue_dir, "train")
    read_dev_sets(task, glue_dir)  # what is wrong with them is told here
    with open(glue_dir / task.train, "rb") as file:
        lines = [line for line in file if line.strip()]
    head, rows = (lines[:1], lines[1:]) if task.header else ([], lines)
    whole = longest_containing(examples.first) if task.folder in PHRASES else range(len(rows))
    by_hash = sorted(range(len(rows)), key=lambda row: (hashlib.sha256(rows[whole[row]]).digest(), row))
    held_out = set(by_hash[: min(len(rows) // 2, max(LEAST_HELD_OUT, int(HELD_OUT * len(rows))))])
    scored = held_out
    if examples.second is None:
        trained_on = "\n".join(text for row, text in enumerate(examples.first) if row not in held_out)
        scored = {row for row in held_out if examples.first[row] not in trained_on}
    data_dir.mkdir(parents=True, exist_ok=True)
    held_out_dir.mkdir(parents=True, exist_ok=True)
    write_whole(data_dir / task.train, b"".join([*head, *(row for i, row in enumerate(rows) if i not in held_out)]))
    for name in task.dev_tasks or [task.name]:
        write_whole(data_dir / TASKS[name].dev, (glue_dir / TASKS[name].dev).read_bytes())
    write_whole(held_out_dir / task.dev, b"".join([*head, *(row for i, row in enumerate(rows) if i in scored)]))


def longest_containing(texts: Sequence[str]) -> list[int]:
    """Of each text the number of the longest text that contains its words in a row, which may be itself."""
    found: dict[tuple[str, ...], int] = {}
    words = [tuple(text.split()) for text in texts]
    for i in sorted(range(len(texts)), key=lambda i: -len(words[i])):
        if words[i] not in found:  # else all its phrases are those of a longer one
            found[words[i]] = i
            ends = range(1, len(words[i]) + 1)
            for phrase in (words[i][start:end] for end in ends for start in range(end)):
                found.setdefault(phrase, i)
    return [found[of] for of in words]


class TaskData:
    """A task's files in the folder of a grid: those of the runs, and the held-out rows as a dev set.

    Args:
        task: as GLUE names its folder.
        output_dir: the folder of the grid.
    """

    def __init__(self, task: str, output_dir: Path):
        self.task = find_task(task)
        self.folder, self.held_out_folder = output_dir / "data" / task, output_dir / "held_out" / task
        self.constant_answer = output_dir / "results" / task / CONSTANT_ANSWER

    def prepare(self, glue_dir: Path) -> None:
        """Write the files, and what a model scores that gives every held-out row the same answer."""
        hold_out(self.task, glue_dir / self.task.folder, self.folder, self.held_out_folder)
        scores = {"held-out": chance_score(self.task, self.held_out.labels)}
        self.constant_answer.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.constant_answer, json.dumps(scores, indent=2) + "\n")

    def n_rows(self) -> int:
        """Rows to train on."""
        return len(read_examples(self.task, self.folder, "train").first)

    @cached_property
    def held_out(self) -> Examples:
        return read_examples(self.task, self.held_out_folder, "dev")
