import copy
import json

import benchmark
import pytest
import torch
from conftest import save_bert, write_glue


def flags(tmp_path, **config) -> list[str]:
    model, data = save_bert(tmp_path / "model", **config), write_glue(tmp_path / "MRPC", "mrpc")
    needed = ["--task_name", "mrpc", "--data_dir", str(data), "--model_name_or_path", str(model), "--no_cuda"]
    return [*needed, "--max_seq_length", "32", "--batch_size", "8", "--steps", "5", "--rounds", "1"]


def run(capsys, tmp_path, *more: str) -> tuple[str, dict]:
    benchmark.main(benchmark.parse_args([*flags(tmp_path), "--json", str(tmp_path / "figures.json"), *more]))
    return capsys.readouterr().out, json.loads((tmp_path / "figures.json").read_text())


def test_it_times_all_ways_and_says_how_many_times_faster_ours_is(capsys, tmp_path):
    out, figures = run(capsys, tmp_path, "--baseline", "--without", "--no_memory")
    ours, release = figures["training"]["run_glue.py"], figures["training"]["the release's way"]
    assert f"{ours['examples_per_second']:.1f}" in out and all(f"\n{way.name} " in out for way in benchmark.WITHOUT)
    phases = sum(ours[f"{phase}_seconds"] for phase in ("data", "forward", "backward", "optimiser"))
    assert phases == pytest.approx(ours["step_seconds"])
    assert all(ours[f"{phase}_seconds"] > 0 for phase in ("data", "forward", "backward", "optimiser"))
    assert release["ours_is_faster_by"] == pytest.approx(release["step_seconds"] / ours["step_seconds"])
    assert figures["inference"]["successor"]["examples_per_second"] > 0
    assert figures["start-up"]["run_of_one_step_seconds"] > 0


def test_memory_is_measured_in_a_process_of_its_own(tmp_path):
    args = benchmark.parse_args(flags(tmp_path))
    held = torch.ones(2**29)  # of this process
    assert 10e6 < benchmark.peak_memory(args, "run_glue.py") < held.nbytes


@pytest.mark.slow
def test_it_times_another_checkout(capsys, tmp_path):
    out, figures = run(capsys, tmp_path, "--no_memory", "--against", str(benchmark.ROOT))
    assert f"times as fast as {benchmark.ROOT}" in out
    assert [len(seconds) for seconds in figures["against"]["seconds_a_step"].values()] == [1, 1]


def test_the_release_s_way_is_the_same_step_but_for_what_it_wastes(tmp_path):
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    setting = benchmark.Setting(benchmark.parse_args(flags(tmp_path, **dropout)))
    weights, padded = {}, {}
    for way in (benchmark.OURS, benchmark.RELEASE, *benchmark.WITHOUT[:3]):
        trainer = benchmark.Trainer(setting, way, copy.deepcopy(setting.classifier.model))
        # Clipping over all parameters is what the release does otherwise; here nothing is clipped.
        trainer.max_grad_norm = 1e9
        trainer.state.lr_schedule.base_lrs = [1e-2, 1e-2]  # so that a step that is left out shows
        for group in trainer.state.optimizer.param_groups:
            group["lr"] = 1e-2
        for i in range(3):
            trainer.step(i)
        weights[way] = [p.detach() for p in trainer.state.layers.successor.parameters()]
        padded[way] = {tensors["input_ids"].shape[1] for tensors, _ in trainer.parts(setting.steps[0][0])}
    assert padded[benchmark.RELEASE] == {32} and max(padded[benchmark.OURS]) < 32
    names = [name for name, _ in trainer.state.layers.successor.named_parameters()]
    for way, made in weights.items():
        for name, p, q in zip(names, made, weights[benchmark.OURS], strict=True):
            if not name.endswith("key.bias"):  # its true gradient is zero
                torch.testing.assert_close(p, q, atol=2e-4, rtol=0, msg=lambda m, way=way: f"{way.name}: {m}")


def test_a_bad_task_is_refused(capsys):
    with pytest.raises(SystemExit):
        benchmark.parse_args(["--task_name", "ax", "--data_dir", "d", "--model_name_or_path", "m"])
    assert "--task_name: ax has no labels" in capsys.readouterr().err
