"""The table that holds a successor against its predecessor."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import save_bert, save_roberta, write_glue

ROOT = Path(__file__).parents[1]


def run_as_command(*args: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "scripts/compare.py", *map(str, args)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_a_row_a_model_with_its_score_size_and_speed(tmp_path):
    data = write_glue(tmp_path / "MRPC", "mrpc")
    big, small = save_bert(tmp_path / "big", n_layer=4), save_roberta(tmp_path / "small", n_layer=1)
    fixed = ["--task_name", "MRPC", "--data_dir", data, "--max_seq_length", 32, "--rounds", 1]
    run = run_as_command(big, small, *fixed)
    assert run.returncode == 0, run.stderr
    head, first, second = run.stdout.splitlines()
    columns = [
        "acc",
        "f1",
        "acc_and_f1",
        "kept",
        "label_loyalty",
        "probability_loyalty",
        "layers",
        "parameters",
        "MB on disk",
        "sentences/s",
        "ms for one",
    ]
    assert head.split("  ")[0].startswith("MRPC on c") and [h for h in columns if h not in head] == []
    assert first.startswith(str(big)) and second.startswith(str(small))
    for row, folder, n_layer in ((first, big, "4"), (second, small, "1")):
        acc, f1, both, kept, _, label, probability, layers, _, megabytes, rate, latency = row.split()[1:]
        assert 0 <= float(acc) <= 1 and float(both) == pytest.approx((float(acc) + float(f1)) / 2, abs=1e-4)
        assert layers == n_layer and float(rate) > 0 and float(latency) > 0
        size = (folder / "model.safetensors").stat().st_size / 1e6
        assert float(megabytes) == pytest.approx(size, abs=0.05)
        assert kept == "100.0" or folder != big
        assert (label, probability) == ("-", "-") if folder == big else 0 <= float(label) <= 1
    # What cannot be read is said in one line.
    run = run_as_command(big, tmp_path / "nowhere", *fixed)
    assert run.returncode == 1 and "no such folder" in run.stderr and len(run.stderr.splitlines()) == 1
    run = run_as_command(big, small, "--task_name", "ax", "--data_dir", data)
    assert run.returncode == 2 and "no such task to evaluate on" in run.stderr
