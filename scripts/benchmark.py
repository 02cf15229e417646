#!/usr/bin/env python
"""Time compression and inference on a predecessor and a task: examples a second, phases of a step, memory, latency.

    benchmark.py --task_name MRPC --data_dir glue_data/MRPC --model_name_or_path runs/predecessor --baseline

Steps are taken evenly from a whole run, with the replacing rates that they have there. What is held against each other
takes turns in one process, on the same batches and draws, so that a busy machine slows all alike.
"""

import argparse
import copy
import dataclasses
import functools
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from command_line import OneLineParser, above, aligned, at_least, check_task, log_plainly, one_line_errors, write_whole

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from glue_processors import TASKS, GlueDataError, cached_features, read_examples

ROOT = Path(__file__).resolve().parents[1]
TURN = 4  # steps that one way makes before it is another one's turn
N_DEV, N_SINGLE = 400, 15  # the dev set's first rows that are timed in batches and one by one in each round


@dataclasses.dataclass(frozen=True)
class Way:
    """How steps are made: as run_glue.py makes them, but for what is named here."""

    name: str
    release: bool = False  # padded to max_seq_length, gradients for all, clipped over all, a forward pass in any case
    pad_to_max: bool = False
    one_part: bool = False
    all_gradients: bool = False
    undrawn_too: bool = False
    onednn: bool | None = None  # None: where it is faster
    masks: bool = True
    fused: bool = True
    trim: bool = True
    bf16: bool = False
    compiled: bool = False


OURS = Way("run_glue.py")
RELEASE = Way("the release's way", release=True, onednn=False, masks=False, fused=False, trim=False)
WITHOUT = [
    Way("without padding to the part's longest only", pad_to_max=True),
    Way("without parts of like lengths", one_part=True),
    Way("without leaving out frozen weights' gradients", all_gradients=True),
    Way("without leaving out steps that draw no module", undrawn_too=True),
    Way("without oneDNN's matrix products", onednn=False),
    Way("without dropout masks of 16 bits", masks=False),
    Way("without fused AdamW", fused=False),
    Way("without returning freed memory", trim=False),
    Way("with --bf16", bf16=True),
]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(prog="benchmark.py", description=__doc__)
    add = parser.add_argument
    tasks = [name for name, task in TASKS.items() if task.metrics]
    add("--task_name", required=True, help=f"{', '.join(tasks)}; in any case")
    add("--data_dir", required=True, help="the folder with the task's .tsv files")
    add("--model_name_or_path", required=True, help="the predecessor: a folder or a name on the Hub")
    add("--scc_n_layer", type=at_least(1), help="layers of the successor (default: half)")
    add("--max_seq_length", type=at_least(4), default=128, help="default: %(default)s")
    add("--per_gpu_train_batch_size", type=at_least(1), default=32, help="default: %(default)s")
    add("--per_gpu_eval_batch_size", type=at_least(1), default=32, help="default: %(default)s")
    add("--replacing_rate", type=above(0), default=0.3, help="where the linear schedule starts (default: %(default)s)")
    add(
        "--rate_1_after", type=above(0), default=0.6, help="share of the run after which it is 1 (default: %(default)s)"
    )
    add("--steps", type=at_least(1), default=24, help="steps to time of each way (default: %(default)s)")
    add("--rounds", type=at_least(1), default=5, help="timings of each inference (default: %(default)s)")
    add("--baseline", action="store_true", help="time the 2020 release's way too, and say how many times faster we are")
    add("--without", action="store_true", help="time it without each of what makes it fast, one at a time")
    add("--compiled", action="store_true", help="time --torch_compile too")
    add("--whole_runs", type=at_least(0), default=0, metavar="SEEDS", help="hold dev metrics of whole runs too")
    add("--num_train_epochs", type=above(0), default=3, help="of the whole runs (default: %(default)s)")
    add("--learning_rate", type=above(0), default=5e-5, help="of the whole runs (default: %(default)s)")
    add("--no_memory", action="store_true", help="leave out peak memory, for which each way runs again on its own")
    add("--json", metavar="FILE", help="write all figures there as well")
    add("--no_cuda", action="store_true", help="use the CPU even where there is a GPU")
    add("--memory_of", help=argparse.SUPPRESS)  # how the script calls itself: train this way and print its peak
    args = parser.parse_args(argv)
    check_task(parser, args, "train")
    if args.replacing_rate > 1:
        parser.error(f"--replacing_rate is a probability in (0, 1], not {args.replacing_rate}")
    return args


def main(args: argparse.Namespace) -> None:
    log_plainly()
    from bert_of_theseus.classifier import UserError

    with one_line_errors("benchmark.py", UserError, GlueDataError, ValueError):
        setting = Setting(args)
        if args.memory_of:
            way = next(way for way in ways(args) if way.name == args.memory_of)
            print(train_alone(setting, way))
            return
        figures = {"arguments": vars(args), "machine": setting.machine}
        print(f"{TASKS[args.task_name].folder} on {setting.machine}; batches of {args.per_gpu_train_batch_size}\n")
        figures["training"] = training(setting)
        figures["inference"] = inference(setting)
        figures["start-up"] = start_up(args)
        if args.whole_runs:
            figures["whole runs"] = whole_runs(setting)
        if args.json:
            write_whole(Path(args.json), (json.dumps(figures, indent=2) + "\n").encode())


def ways(args: argparse.Namespace) -> list[Way]:
    """The ways to time; the first is run_glue.py's."""
    compiled = [Way("with --torch_compile", compiled=True)] * args.compiled
    return [OURS, *[RELEASE] * args.baseline, *WITHOUT * args.without, *compiled]


class Setting:
    """Predecessor, data and the sampled steps, the same for all ways."""

    def __init__(self, args: argparse.Namespace):
        import torch

        from bert_of_theseus.classifier import load_model, takes_token_types

        self.args = args
        self.task = TASKS[args.task_name]
        self.device = torch.device("cuda" if torch.cuda.is_available() and not args.no_cuda else "cpu")
        threads = f"a CPU, {torch.get_num_threads()} threads"
        self.machine = torch.cuda.get_device_name() if self.device.type == "cuda" else threads
        self.loaded = load_model(args.model_name_or_path, self.task.labels, not args.whole_runs, args.max_seq_length)
        self.loaded.model.to(self.device)
        self.pad_token_id = self.loaded.tokenizer.pad_token_id or 0
        token_types = takes_token_types(self.loaded.model)
        self.train, self.dev = (
            cached_features(
                *(self.task, split, read_examples(self.task, args.data_dir, split), self.loaded.tokenizer),
                *(args.max_seq_length, token_types, [args.data_dir]),
            )
            for split in ("train", "dev")
        )
        self.steps = self.steps_of_a_run(args.steps, seed=0)

    def steps_of_a_run(self, n_steps: int, seed: int) -> list:
        """(rows, replacing rate) of as many steps, the rates spread over a whole run."""
        from bert_of_theseus.training import train_batches

        batches = train_batches(len(self.train), self.args.per_gpu_train_batch_size, 1, seed)
        steps = []
        for i in range(n_steps):
            done = (i + 0.5) / n_steps  # share of the run
            rate = self.args.replacing_rate + (1 - self.args.replacing_rate) * done / self.args.rate_1_after
            steps.append((next(batches)[1][0], min(1.0, rate)))
        return steps


def padded(batch: dict, length: int, pad_token_id: int) -> dict:
    """The batch's (rows, tokens) tensors padded to this length."""
    from torch.nn.functional import pad

    fillers = {"input_ids": pad_token_id, "attention_mask": 0, "token_type_ids": 0}
    return {
        name: pad(tensor, (0, length - tensor.shape[1]), value=fillers[name]) if name in fillers else tensor
        for name, tensor in batch.items()
    }


# -------------------------------------------------------------------------------------- training


class Trainer:
    """Compresses a model, makes steps in one way and notes the seconds of each phase."""

    def __init__(self, setting: Setting, way: Way, model):
        import torch

        from bert_of_theseus import compress
        from bert_of_theseus.training import optimizer_groups

        self.setting, self.way = setting, way
        self.model = model.train()
        self.layers = compress(self.model, setting.args.scc_n_layer)
        groups = optimizer_groups(self.model, 0.0)
        self.optimizer = torch.optim.AdamW(groups, setting.args.learning_rate, fused=way.fused)
        self.schedulers: list = []
        self.max_grad_norm = 1.0
        self.scaler = torch.amp.GradScaler(setting.device.type, enabled=False)
        if way.release or way.all_gradients:
            self.model.requires_grad_(True)
        if way.compiled:
            for layer in [*self.layers.predecessor, *self.layers.successor]:
                layer.compile(dynamic=True)
        self.marks: dict[str, list[float]] = {"forward": [], "optimiser": []}
        self.model.register_forward_pre_hook(lambda *_: self.mark("forward", -1))
        self.model.register_forward_hook(lambda *_: self.mark("forward", 1))
        self.optimizer.register_step_pre_hook(lambda *_: self.mark("optimiser", -1))
        self.optimizer.register_step_post_hook(lambda *_: self.mark("optimiser", 1))

    def now(self) -> float:
        if self.setting.device.type == "cuda":
            import torch

            torch.cuda.synchronize()
        return time.perf_counter()

    def mark(self, phase: str, sign: int) -> None:
        self.marks[phase].append(sign * self.now())

    def step(self, i: int) -> dict[str, float]:
        """Make the i-th of the sampled steps; returns seconds by phase."""
        return self.make_step(i, *self.setting.steps[i])

    def make_step(self, i: int, rows, rate: float) -> dict[str, float]:
        self.layers.set_replacing_rate(rate)
        self.layers.generator.manual_seed(i)
        for marks in self.marks.values():
            marks.clear()
        start = self.now()
        parts = self.parts(rows)
        data = self.now() - start
        self.release_step(parts[0][0]) if self.way.release else self.our_step(parts, i)
        total = self.now() - start
        forward, optimiser = sum(self.marks["forward"]), sum(self.marks["optimiser"])
        backward = total - data - forward - optimiser  # clipping included
        return {"data": data, "forward": forward, "backward": backward, "optimiser": optimiser, "step": total}

    def parts(self, rows) -> list:
        import torch

        from bert_of_theseus.training import micro_batch

        setting = self.setting
        outputs = torch.tensor(setting.loaded.label_order) if setting.task.labels else None
        to_parts = functools.partial(
            micro_batch, setting.train, rows, setting.pad_token_id, setting.device, outputs=outputs
        )
        if self.way.release or self.way.one_part:
            parts = to_parts(max_tokens=sys.maxsize, overhead=sys.maxsize)
        else:
            parts = to_parts()
        if self.way.release or self.way.pad_to_max:
            parts = [(padded(t, setting.args.max_seq_length, setting.pad_token_id), share) for t, share in parts]
        return parts

    def our_step(self, parts: list, i: int) -> None:
        import torch

        from bert_of_theseus.cpu_kernels import RETURN_EVERY, return_freed_memory
        from bert_of_theseus.training import train_step

        dtype = torch.bfloat16 if self.way.bf16 else None
        loss = train_step(
            self.model, self.layers, [parts], self.optimizer, self.schedulers, self.max_grad_norm, self.scaler, dtype
        )
        if loss is None and self.way.undrawn_too:
            self.layers.fix_draw([False] * len(self.layers.successor))
            for tensors, _ in parts:
                self.model(**tensors)
            self.layers.fix_draw(None)
        if self.way.trim and self.setting.device.type == "cpu" and i % RETURN_EVERY == 0:
            return_freed_memory()

    def release_step(self, batch: dict) -> None:
        import torch

        self.model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        self.optimizer.step()
        for scheduler in self.schedulers:
            scheduler.step()
        self.model.zero_grad(set_to_none=False)

    def kernels(self):
        from bert_of_theseus.cpu_kernels import fast_kernels

        return fast_kernels(self.way.onednn, self.way.masks)


def training(setting: Setting) -> dict:
    """Time the ways in turns and print a table of them."""
    from bert_of_theseus.cpu_kernels import return_freed_memory

    trainers = [Trainer(setting, way, copy.deepcopy(setting.loaded.model)) for way in ways(setting.args)]
    seconds: dict[str, list[dict[str, float]]] = {trainer.way.name: [] for trainer in trainers}
    for start in range(0, len(setting.steps), TURN):
        trainers.append(trainers.pop(0))  # none always follows the same other one
        for trainer in trainers:
            with trainer.kernels():
                trainer.step(start)  # not timed: it finds caches and memory as the way before has left them
                return_freed_memory()
                for i in range(start, min(start + TURN, len(setting.steps))):
                    seconds[trainer.way.name].append(trainer.step(i))
    del trainers

    n_rows = sum(len(rows) for rows, _ in setting.steps)
    n_tokens = sum(int(setting.train.lengths[rows].sum()) for rows, _ in setting.steps)
    figures: dict[str, dict] = {}
    for name, taken in seconds.items():
        phases = {phase: statistics.fmean(step[phase] for step in taken) for phase in taken[0]}
        total = sum(step["step"] for step in taken)
        figures[name] = {"examples_per_second": n_rows / total, "tokens_per_second": n_tokens / total}
        figures[name] |= {f"{phase}_seconds": value for phase, value in phases.items()}
        if not setting.args.no_memory:
            figures[name]["peak_memory_bytes"] = peak_memory(setting.args, name)
    ours = seconds[OURS.name]
    for name, taken in seconds.items():
        times = [step["step"] for step in taken]
        turns = [sum(times[i : i + TURN]) for i in range(0, len(times), TURN)]
        our_turns = [sum(s["step"] for s in ours[i : i + TURN]) for i in range(0, len(ours), TURN)]
        ratios = sorted(a / b for a, b in zip(turns, our_turns, strict=True))
        figures[name] |= {"ours_is_faster_by": sum(turns) / sum(our_turns), "by_turn": [ratios[0], ratios[-1]]}

    columns = [
        "examples/s",
        "tokens/s",
        "ms a step",
        "data",
        "forward",
        "backward",
        "optimiser",
        "peak MB",
        "ours/this",
    ]
    table = [["training", *columns]]
    for name, f in figures.items():
        memory = f"{f['peak_memory_bytes'] / 1e6:.0f}" if "peak_memory_bytes" in f else "-"
        milliseconds = [f"{1000 * f[f'{p}_seconds']:.1f}" for p in ("step", "data", "forward", "backward", "optimiser")]
        rates = [f"{f['examples_per_second']:.1f}", f"{f['tokens_per_second']:.0f}"]
        table.append([name, *rates, *milliseconds, memory, f"{f['ours_is_faster_by']:.2f}"])
    print(aligned(table))
    if RELEASE.name in figures:
        release, our = figures[RELEASE.name], figures[OURS.name]
        low, high = release["by_turn"]
        print(f"\nrun_glue.py is {release['ours_is_faster_by']:.2f} times as fast as the release's way ", end="")
        print(f"({low:.2f} to {high:.2f} in turns of {TURN} steps)", end="")
        if "peak_memory_bytes" in our:
            print(f", in {our['peak_memory_bytes'] / release['peak_memory_bytes']:.2f} of its peak memory", end="")
        print()
    return figures


def peak_memory(args: argparse.Namespace, name: str) -> int:
    """Bytes at the peak of training in this way in a process of its own."""
    keep = ("task_name", "data_dir", "model_name_or_path", "scc_n_layer", "max_seq_length", "per_gpu_train_batch_size")
    keep += ("replacing_rate", "rate_1_after", "steps")
    flags = [f"--{key}={getattr(args, key)}" for key in keep if getattr(args, key) is not None]
    flags += [f"--{key}" for key in ("baseline", "without", "compiled", "no_cuda") if getattr(args, key)]
    command = [sys.executable, __file__, *flags, "--memory_of", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"training for peak memory failed: {done.stderr.strip().splitlines()[-1]}")
    return int(done.stdout.split()[-1])


def train_alone(setting: Setting, way: Way) -> int:
    """Train all the steps in this way; the process's peak of resident memory in bytes, or on a GPU the tensors'."""
    trainer = Trainer(setting, way, setting.loaded.model)
    with trainer.kernels():
        for i in range(len(setting.steps)):
            trainer.step(i)
    if setting.device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    try:  # of this process alone: getrusage counts what its parent held when it was started
        return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


# -------------------------------------------------------------------------------------- inference


def inference(setting: Setting) -> dict:
    """Time predecessor and successor on the dev set, and print a table."""
    import torch

    from bert_of_theseus import compress, export_successor, find_layers
    from bert_of_theseus.classifier import predict
    from bert_of_theseus.cpu_kernels import fast_kernels

    args, pad_token_id = setting.args, setting.pad_token_id
    predecessor = setting.loaded.model
    compressed = copy.deepcopy(predecessor)
    share = len(compress(compressed, args.scc_n_layer).successor)
    successor = export_successor(compressed).to(setting.device)
    del compressed
    stack = predecessor.get_submodule(find_layers(predecessor))
    share /= len(stack)
    dev, one = setting.dev.head(N_DEV), setting.dev.head(N_SINGLE)

    def now() -> float:
        if setting.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def share_of_layers() -> float:
        """The share of the predecessor's pass over the dev set that goes by in its layers."""
        marks: list[float] = []
        hooks = [stack[0].register_forward_pre_hook(lambda *_: marks.append(-now()))]
        hooks.append(stack[-1].register_forward_hook(lambda *_: marks.append(now())))
        start = now()
        predict(predecessor, dev, args.per_gpu_eval_batch_size, pad_token_id)
        whole = now() - start
        for hook in hooks:
            hook.remove()
        return sum(marks) / whole

    def predict_as_the_release(model, features, batch_size, pad_token_id):
        model.eval()
        with torch.no_grad():
            for start in range(0, len(features), batch_size):
                rows = range(start, min(start + batch_size, len(features)))
                batch = padded(features.batch(rows, pad_token_id), args.max_seq_length, pad_token_id)
                model(**{n: t.to(setting.device) for n, t in batch.items() if n != "labels"}).logits.cpu()

    cases = {"predecessor": (predecessor, predict, {}), "successor": (successor, predict, {})}
    if args.baseline:
        release_kernels = {"products": False, "masks": False}
        cases["successor, the release's way"] = (successor, predict_as_the_release, release_kernels)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    ideals = []
    for timing in range(args.rounds + 1):
        for name, (model, way, kernels) in cases.items():
            with fast_kernels(**kernels):
                layers = share_of_layers() if name == "predecessor" else None
                start = now()
                way(model, dev, args.per_gpu_eval_batch_size, pad_token_id)
                whole = now() - start
                start = now()
                way(model, one, 1, pad_token_id)
                single = (now() - start) / len(one)
            if timing:  # the first round warms up
                taken[name].append((whole, single))
                if name == "predecessor":
                    ideals.append(whole * (1 - layers * (1 - share)))

    table = [["inference", "examples/s", "tokens/s", "ms for one", "speed-up"]]
    figures: dict[str, dict] = {}
    n_tokens = int(dev.lengths.sum())
    for name, times in taken.items():
        whole, single = map(statistics.median, zip(*times, strict=True))
        faster = statistics.median(a / b for (a, _), (b, _) in zip(taken["predecessor"], times, strict=True))
        figures[name] = {"examples_per_second": len(dev) / whole, "tokens_per_second": n_tokens / whole}
        figures[name] |= {"seconds_for_one": single, "times_the_predecessor": faster}
        table.append(
            [name, f"{len(dev) / whole:.1f}", f"{n_tokens / whole:.0f}", f"{1000 * single:.2f}", f"{faster:.2f}"]
        )
    print(f"\n{aligned(table)}\n")
    of_ideal = statistics.median(i / s for i, (s, _) in zip(ideals, taken["successor"], strict=True))
    figures["of_ideal"] = of_ideal
    print(
        f"The successor reaches {of_ideal:.3f} of the ideal, the predecessor's time less {1 - share:.2g} of its layers'"
    )
    if args.baseline:
        pairs = zip(taken["successor, the release's way"], taken["successor"], strict=True)
        figures["times_the_release"] = statistics.median(a / b for (a, _), (b, _) in pairs)
        print(f"Prediction is {figures['times_the_release']:.2f} times as fast as the release's way")
    return figures


# -------------------------------------------------------------------------------------- whole runs


def whole_runs(setting: Setting) -> dict:
    """Train whole runs of run_glue.py's way and the release's, and print their dev metrics and seconds."""
    import torch
    from transformers import get_linear_schedule_with_warmup

    from bert_of_theseus.classifier import predict
    from glue_processors import compute_metrics

    args, task = setting.args, setting.task
    n_steps = int(-(-len(setting.train) // args.per_gpu_train_batch_size) * args.num_train_epochs)
    figures: dict[str, dict] = {way.name: {"dev": [], "seconds": []} for way in (OURS, RELEASE)}
    for seed in range(args.whole_runs):
        steps = setting.steps_of_a_run(n_steps, seed)
        for way in (OURS, RELEASE):
            torch.manual_seed(seed)
            trainer = Trainer(setting, way, copy.deepcopy(setting.loaded.model))
            trainer.schedulers.append(get_linear_schedule_with_warmup(trainer.optimizer, 0, n_steps))
            start = time.perf_counter()
            with trainer.kernels():
                for i, (rows, rate) in enumerate(steps):
                    trainer.make_step(seed * n_steps + i, rows, rate)
                seconds = trainer.now() - start
                logits = predict(trainer.model, setting.dev, args.per_gpu_eval_batch_size, setting.pad_token_id)
            predictions = logits[:, setting.loaded.label_order].argmax(1) if task.labels else logits[:, 0]
            score = compute_metrics(task, predictions.numpy(), setting.dev.labels)[task.main_metric]
            figures[way.name]["dev"].append(score)
            figures[way.name]["seconds"].append(seconds)
            print(f"seed {seed}, {way.name}: {task.main_metric} {score:.4f} in {seconds:.0f} s", flush=True)
    table = [[f"{args.whole_runs} runs of {n_steps} steps", task.main_metric, "standard error", "seconds"]]
    for name, f in figures.items():
        f["mean"] = statistics.fmean(f["dev"])
        f["standard_error"] = statistics.stdev(f["dev"]) / len(f["dev"]) ** 0.5 if args.whole_runs > 1 else float("nan")
        mean_seconds = f"{statistics.fmean(f['seconds']):.0f}"
        table.append([name, f"{f['mean']:.4f}", f"{f['standard_error']:.4f}", mean_seconds])
    print(f"\n{aligned(table)}")
    return figures


# --------------------------------------------------------------------------------------- start-up


def start_up(args: argparse.Namespace) -> dict:
    """Time run_glue.py as a whole process: --help, and a run of a single step."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--task_name", args.task_name, "--data_dir", args.data_dir, "--output_dir", f"{folder}/output"]
        flags += ["--model_name_or_path", args.model_name_or_path, "--max_seq_length", str(args.max_seq_length)]
        flags += ["--do_train", "--max_steps", "1", "--save_steps", "0"] + ["--no_cuda"] * args.no_cuda
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]}
        figures = {}
        for name, more in (("help_seconds", ["--help"]), ("run_of_one_step_seconds", flags)):
            start = time.perf_counter()
            command = [sys.executable, str(ROOT / "run_glue.py"), *more]
            subprocess.run(command, capture_output=True, check=True, env=environment)
            figures[name] = time.perf_counter() - start
    print(f"run_glue.py --help takes {figures['help_seconds']:.2f} s, ", end="")
    print(f"a run of one step {figures['run_of_one_step_seconds']:.2f} s")
    return figures


if __name__ == "__main__":
    main(parse_args())
