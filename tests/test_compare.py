"""The table that compares successors with their predecessor."""

import compare
import numpy as np
import pytest
from conftest import save_bert, save_roberta, write_glue
from test_run_glue import logits_again
from transformers import BertForSequenceClassification

from bert_of_theseus.classifier import load_classifier
from bert_of_theseus.data.features import Features
from bert_of_theseus.data.scores import compute_loyalty, compute_metrics
from glue_processors import TASKS, read_examples


def rows_of_table(capsys, task: str, data, *models) -> list[dict[str, str]]:
    """For each model the cells of its row by their column."""
    flags = ["--task_name", *task.split(), "--data_dir", data, "--max_seq_length", 32, "--rounds", 1, "--no_cuda"]
    compare.main(compare.parse_args([str(a) for a in [*models, *flags]]))
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.startswith(f"GLUE {TASKS[task].folder} on cpu ")
    assert [row.split()[0] for row in rows] == [*map(str, models)]
    for name, short in ((f"{TASKS[task].main_key} kept", "kept"), ("MB on disk", "MB"), ("ms for one", "ms")):
        head = head.replace(name, short)
    columns = head.split()[4:]
    return [dict(zip(columns, row.replace(" %", "").split()[1:], strict=True)) for row in rows]


@pytest.mark.parametrize("name", ["mrpc", "mnli", "sts-b"])
def test_scores_and_loyalty_are_those_of_the_models_own_outputs(name, capsys, tmp_path):
    task, data = TASKS[name], write_glue(tmp_path / "data", name)
    big = save_bert(tmp_path / "big", num_labels=task.num_labels)
    small = save_roberta(tmp_path / "small", num_labels=task.num_labels, n_layer=1)
    *rows, again = rows_of_table(capsys, name, data, big, small, big)
    outputs = [logits_again(model, data, name) for model in (big, small)]
    labels = read_examples(task, data, "dev").labels
    scores = [compute_metrics(task, some.argmax(1) if task.labels else some[:, 0], labels) for some in outputs]
    main = [score[task.main_metric] for score in scores]
    scores[1] |= compute_loyalty(task, outputs[1], outputs[0])
    prefix = "mnli/" if name == "mnli" else ""  # which has a second dev set
    for row, score in zip(rows, scores, strict=True):
        assert [float(row[prefix + key]) for key in score] == pytest.approx([*score.values()], abs=1e-4)
    assert [row["kept"] for row in rows] == (["100.0", f"{100 * main[1] / main[0]:.1f}"] if main[0] > 0 else ["-", "-"])
    # The predecessor is compared with nothing, and as a successor it is wholly loyal to itself.
    loyalty = [key for key in rows[0] if key.endswith(("_loyalty", "_correlation"))]
    assert {rows[0][key] for key in loyalty} == {"-"} and {again[key] for key in loyalty} == {"1.0000"}


def test_sizes_are_those_of_the_models_and_of_their_files(capsys, bert_folder, tmp_path):
    data, small = write_glue(tmp_path / "MRPC", "mrpc"), save_bert(tmp_path / "small", n_layer=1, hidden_size=128)
    BertForSequenceClassification.from_pretrained(small).half().save_pretrained(small)
    for folder, row in zip((bert_folder, small), rows_of_table(capsys, "mrpc", data, bert_folder, small), strict=True):
        model = load_classifier(str(folder), ("0", "1"), max_seq_length=32).model
        assert row["layers"] == str(len(model.bert.encoder.layer))
        assert row["parameters"] == f"{sum(p.numel() for p in model.parameters()):,}"
        assert row["MB"] == f"{(folder / 'model.safetensors').stat().st_size / 1e6:.1f}"
        assert float(row["sentences/s"]) > 0 and float(row["ms"]) > 0


def test_speed_is_the_median_of_the_rounds_after_the_first(monkeypatch):
    seconds = iter([60, 60, 3, 0.1, 2, 0.9, 9, 0.2])  # of a batch and of the single rows, round by round
    now = 0.0

    class Classifier:
        def predict(self, features, batch_size):
            nonlocal now
            now += next(seconds) * len(features)

    monkeypatch.setattr(compare.time, "perf_counter", lambda: now)
    features = Features(np.zeros(8, dtype=np.int32), np.full(4, 2))
    ((in_batches, alone),) = compare.measure_speed([(Classifier(), features)], batch_size=4, rounds=3)
    assert in_batches == pytest.approx(3) and alone == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("task", "model", "status", "reason"),
    [
        ("mrpc", "nowhere/at/all", 1, "nowhere/at/all: no such folder"),
        ("squad", "", 2, "--task_name: there is no task 'squad'; there are cola"),
        ("ax", "", 2, "ax has no labels"),
        ("mrpc --label_column_name label", "", 2, "--label_column_name is for a --validation_file"),
        ("mrpc --metric_for_best_model corr", "", 1, "--metric_for_best_model corr: there are"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(capsys, bert_folder, tmp_path, task, model, status, reason):
    data = write_glue(tmp_path / "MRPC", "mrpc")
    with pytest.raises(SystemExit) as exit_:
        rows_of_table(capsys, task, data, bert_folder, model or bert_folder)
    said = exit_.value.code if status == 1 else capsys.readouterr().err
    assert reason in said and len(said.splitlines()) == 1
    assert status == 1 or exit_.value.code == 2
