import copy
import json

import benchmark
import pytest
import torch
from conftest import save_bert, write_glue


def run(capsys, tmp_path, *more: str) -> tuple[str, dict]:
    model, data = save_bert(tmp_path / "model"), write_glue(tmp_path / "MRPC", "mrpc")
    flags = ["--task_name", "mrpc", "--data_dir", str(data), "--model_name_or_path", str(model), "--no_cuda"]
    flags += ["--max_seq_length", "32", "--per_gpu_train_batch_size", "8", "--steps", "5", "--rounds", "1"]
    benchmark.main(benchmark.parse_args([*flags, "--json", str(tmp_path / "figures.json"), *more]))
    return capsys.readouterr().out, json.loads((tmp_path / "figures.json").read_text())


def test_it_times_both_ways_and_says_how_many_times_faster_ours_is(capsys, tmp_path):
    out, figures = run(capsys, tmp_path, "--baseline")
    ours, release = figures["training"]["run_glue.py"], figures["training"]["the release's way"]
    assert f"{ours['examples_per_second']:.1f}" in out and f"{release['peak_memory_bytes'] / 1e6:.0f}" in out
    phases = sum(ours[f"{phase}_seconds"] for phase in ("data", "forward", "backward", "optimiser"))
    assert phases == pytest.approx(ours["step_seconds"])
    assert release["ours_is_faster_by"] == pytest.approx(release["step_seconds"] / ours["step_seconds"])
    assert figures["inference"]["successor"]["examples_per_second"] > 0 and figures["start-up"]["help_seconds"] > 0
    assert 10e6 < ours["peak_memory_bytes"] < 10e9


def test_it_times_what_each_measure_buys_and_whole_runs(capsys, tmp_path):
    more = ["--without", "--no_memory", "--whole_runs", "2", "--num_train_epochs", "1"]
    out, figures = run(capsys, tmp_path, *more)
    assert figures["training"].keys() == {way.name for way in (benchmark.OURS, *benchmark.WITHOUT)}
    assert all(f"\n{way.name} " in out for way in benchmark.WITHOUT)
    runs = figures["whole runs"]
    assert runs.keys() == {"run_glue.py", "the release's way"} and len(runs["run_glue.py"]["dev"]) == 2


def test_the_release_s_way_is_the_same_step_but_for_what_it_wastes(tmp_path):
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model, data = save_bert(tmp_path / "model", **dropout), write_glue(tmp_path / "MRPC", "mrpc")
    flags = ["--task_name", "mrpc", "--data_dir", str(data), "--model_name_or_path", str(model), "--no_cuda"]
    flags += ["--max_seq_length", "32", "--steps", "3", "--learning_rate", "1e-3"]
    setting = benchmark.Setting(benchmark.parse_args(flags))
    weights, padded = {}, {}
    for way in (benchmark.OURS, benchmark.RELEASE, *benchmark.WITHOUT[:4]):
        trainer = benchmark.Trainer(setting, way, copy.deepcopy(setting.loaded.model))
        # Clipping over all parameters is what the release does otherwise; here nothing is clipped.
        trainer.max_grad_norm = 1e9
        for i in range(3):
            trainer.step(i)
        weights[way] = [p.detach() for p in trainer.layers.successor.parameters()]
        padded[way] = {tensors["input_ids"].shape[1] for tensors, _ in trainer.parts(setting.steps[0][0])}
    assert padded[benchmark.RELEASE] == {32} and max(padded[benchmark.OURS]) < 32
    names = [name for name, _ in trainer.layers.successor.named_parameters()]
    for way, made in weights.items():
        for name, p, q in zip(names, made, weights[benchmark.OURS], strict=True):
            if not name.endswith("key.bias"):  # its true gradient is zero
                torch.testing.assert_close(p, q, atol=2e-4, rtol=0, msg=lambda m, way=way: f"{way.name}: {m}")


def test_a_bad_task_is_refused(capsys):
    with pytest.raises(SystemExit):
        benchmark.parse_args(["--task_name", "ax", "--data_dir", "d", "--model_name_or_path", "m"])
    assert "there is no such task" in capsys.readouterr().err
