#!/usr/bin/env python
"""Time compression and inference on a predecessor and a task: examples a second, phases of a step, memory, latency.

    benchmark.py --task_name MRPC --data_dir glue_data/MRPC --model_name_or_path runs/predecessor --baseline

The batches are the first of a run; their replacing rates are spread evenly over a whole one. Ways that are compared
take turns in one process, on the same batches and draws, so that a busy machine slows all alike.
"""

import argparse
import copy
import dataclasses
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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
from torch.nn.functional import pad

from bert_of_theseus import compress, export_successor, find_layers
from bert_of_theseus.batches import micro_batch, train_batches
from bert_of_theseus.classifier import Classifier, ModelError, load_classifier
from bert_of_theseus.cpu_kernels import fast_kernels
from bert_of_theseus.data.features import FeaturesCache
from bert_of_theseus.data.task import DataError
from bert_of_theseus.run.command_line import (
    OneLineParser,
    UserError,
    above,
    aligned,
    at_least,
    log_plainly,
    one_line_errors,
)
from bert_of_theseus.run.device import device_name, enough_memory, first_device
from bert_of_theseus.run.files import write_whole
from bert_of_theseus.run.folder import input_length
from bert_of_theseus.training import TrainState, optimizer_groups, train_step
from glue_processors import LABELLED, TASKS, labelled_task, read_examples
from replacement_scheduler import slope_to_1
from run_glue import refused

ROOT = Path(__file__).resolve().parents[1]
TURN = 4  # steps that one way makes before it is another one's turn
N_DEV, N_SINGLE = 400, 15  # the dev set's first rows that are timed in batches, and one by one, in each round


@dataclasses.dataclass(frozen=True)
class Way:
    """How steps are made: as run_glue.py makes them, but for what is named here."""

    name: str
    release: bool = False  # clipped over all parameters, gradients zeroed, the optimiser not fused
    pad_to_max: bool = False
    one_part: bool = False
    all_gradients: bool = False
    onednn: bool | None = None  # None: where it is faster
    masks: bool = True
    bf16: bool = False


OURS = Way("run_glue.py")
RELEASE = Way(
    "the release's way",
    release=True,
    pad_to_max=True,
    one_part=True,
    all_gradients=True,
    onednn=False,
    masks=False,
)
WITHOUT = [
    Way("without padding to the part's longest only", pad_to_max=True),
    Way("without parts of like lengths", one_part=True),
    Way("without leaving out frozen weights' gradients", all_gradients=True),
    Way("without oneDNN's matrix products", onednn=False),
    Way("without dropout masks of 16 bits", masks=False),
    Way("with --no_fast_kernels", onednn=False, masks=False),
    Way("with --bf16", bf16=True),
]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(prog="benchmark.py", description=__doc__)
    add = parser.add_argument
    add("--task_name", type=labelled_task, required=True, metavar="TASK", help=f"{', '.join(LABELLED)}; in any case")
    add("--data_dir", required=True, help="the folder with the task's .tsv files")
    add("--model_name_or_path", required=True, help="the predecessor: a folder or a name on the Hub")
    add("--scc_n_layer", type=at_least(1), help="layers of the successor (default: half)")
    add("--max_seq_length", type=at_least(4), default=input_length(None), help="default: %(default)s")
    add("--batch_size", type=at_least(1), default=32, help="rows of a batch (default: %(default)s)")
    add("--replacing_rate", type=above(0), default=0.3, help="start of the linear schedule (default: %(default)s)")
    add("--rate_1_after", type=above(0), default=0.6, help="share of the run until it is 1 (default: %(default)s)")
    add("--steps", type=at_least(1), default=24, help="steps to time of each way (default: %(default)s)")
    add("--rounds", type=at_least(1), default=5, help="timings of each inference (default: %(default)s)")
    add("--baseline", action="store_true", help="time the 2020 release's way too, and say how many times faster we are")
    add("--without", action="store_true", help="time it without each of what makes it fast, and with bf16")
    add("--against", type=Path, metavar="DIR", help="time whole runs of another checkout's run_glue.py too, in turns")
    add("--no_memory", action="store_true", help="leave out peak memory, for which each way runs again on its own")
    add("--json", metavar="FILE", help="write all figures there as well")
    add("--no_cuda", action="store_true", help="use the CPU even where there is a GPU")
    add("--memory_of", help=argparse.SUPPRESS)  # how the script calls itself: train this way and print the peak
    args = parser.parse_args(argv)
    if args.replacing_rate > 1:
        parser.error(f"--replacing_rate is a probability in (0, 1], not {args.replacing_rate}")
    return args


def main(args: argparse.Namespace) -> None:
    log_plainly()
    with one_line_errors("benchmark.py", ModelError, DataError), enough_memory():
        if args.against and not (args.against / "run_glue.py").is_file():
            raise UserError(f"--against {args.against} holds no run_glue.py")
        if args.json:
            Path(args.json).parent.mkdir(parents=True, exist_ok=True)
        setting = Setting(args)
        if args.memory_of:
            way = next(way for way in ways(args) if way.name == args.memory_of)
            print(train_alone(setting, way))
            return
        figures = {
            "arguments": vars(args) | {"against": args.against and str(args.against)},
            "machine": setting.machine,
        }
        print(f"{TASKS[args.task_name].folder} on {setting.machine}; batches of {args.batch_size}\n")
        parts = {
            "training": lambda: time_training(setting),
            "inference": lambda: time_inference(setting),
            "start-up": lambda: time_start_up(args),
        }
        parts |= {"against": lambda: time_against(args)} if args.against else {}
        for name, measure in parts.items():
            figures[name] = measure()
            if args.json:  # after each part, so that an error in the next one costs nothing
                write_whole(Path(args.json), json.dumps(figures, indent=2) + "\n")


def ways(args: argparse.Namespace) -> list[Way]:
    """The ways to time; the first is run_glue.py's."""
    return [OURS, *[RELEASE] * args.baseline, *WITHOUT * args.without]


class Setting:
    """Predecessor, data and the sampled steps, the same for all ways."""

    def __init__(self, args: argparse.Namespace):
        self.args, task = args, TASKS[args.task_name]
        self.device = first_device(not args.no_cuda)
        self.machine = device_name(self.device)
        self.classifier = load_classifier(args.model_name_or_path, task.labels, True, args.max_seq_length)
        self.classifier.model.to(self.device)
        self.train, self.dev = (
            FeaturesCache([args.data_dir]).features(
                task.name,
                split,
                read_examples(task, args.data_dir, split),
                self.classifier.tokenizer,
                args.max_seq_length,
                self.classifier.takes_token_types(),
            )
            for split in ("train", "dev")
        )
        batches = train_batches(len(self.train), args.batch_size, 1, seed=0)
        done = [(i + 0.5) / args.steps for i in range(args.steps)]  # share of the run before each of the steps
        rates = [args.replacing_rate + (1 - args.replacing_rate) * share / args.rate_1_after for share in done]
        self.steps = [(next(batches)[1][0], min(1.0, rate)) for rate in rates]  # (rows, replacing rate)

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def padded(self, batch: dict) -> dict:
        """The batch's (rows, tokens) tensors padded to the maximum length."""
        fillers = {"input_ids": self.train.pad_token_id, "attention_mask": 0, "token_type_ids": 0}
        length = self.args.max_seq_length
        return {
            name: pad(tensor, (0, length - tensor.shape[1]), value=fillers[name]) if name in fillers else tensor
            for name, tensor in batch.items()
        }


# -------------------------------------------------------------------------------------- training


class Trainer:
    """Compresses a model, makes steps in one way and notes the seconds of each phase."""

    def __init__(self, setting: Setting, way: Way, model: torch.nn.Module):
        self.setting, self.way = setting, way
        with refused(setting.args.model_name_or_path):
            layers = compress(model.train(), setting.args.scc_n_layer)
        optimizer = torch.optim.AdamW(optimizer_groups(model, 0.0), 5e-5, fused=not way.release)
        lr_schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        scaler = torch.amp.GradScaler(setting.device.type, enabled=False)
        self.state = TrainState(model, layers, optimizer, lr_schedule, None, scaler, len(setting.steps))
        self.max_grad_norm = 1.0
        if way.all_gradients:
            model.requires_grad_(True)
        self.marks: dict[str, list[float]] = {"forward": [], "optimiser": []}
        model.register_forward_pre_hook(lambda *_: self.mark("forward", -1))
        model.register_forward_hook(lambda *_: self.mark("forward", 1))
        optimizer.register_step_pre_hook(lambda *_: self.mark("optimiser", -1))
        optimizer.register_step_post_hook(lambda *_: self.mark("optimiser", 1))

    def mark(self, phase: str, sign: int) -> None:
        self.marks[phase].append(sign * self.setting.now())

    def step(self, i: int) -> dict[str, float]:
        """Make the i-th of the sampled steps; returns seconds by phase."""
        rows, rate = self.setting.steps[i]
        self.state.layers.set_replacing_rate(rate)
        self.state.layers.generator.manual_seed(i)
        for marks in self.marks.values():
            marks.clear()
        start = self.setting.now()
        parts = self.parts(rows)
        data = self.setting.now() - start
        if self.way.release:
            self.release_step(parts[0][0])
        else:
            train_step(self.state, [parts], self.max_grad_norm, torch.bfloat16 if self.way.bf16 else None)
        total = self.setting.now() - start
        forward, optimiser = sum(self.marks["forward"]), sum(self.marks["optimiser"])
        backward = total - data - forward - optimiser  # clipping included
        return {"data": data, "forward": forward, "backward": backward, "optimiser": optimiser, "step": total}

    def parts(self, rows) -> list[tuple[dict, float]]:
        one_part = {"max_tokens": sys.maxsize, "overhead": sys.maxsize}
        limits = one_part if self.way.one_part else {}
        parts = micro_batch(self.setting.train, rows, self.setting.device, **limits)
        if self.way.pad_to_max:
            parts = [(self.setting.padded(tensors), share) for tensors, share in parts]
        return parts

    def release_step(self, batch: dict) -> None:
        model, optimizer = self.state.model, self.state.optimizer
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), self.max_grad_norm)
        optimizer.step()
        model.zero_grad(set_to_none=False)


def time_training(setting: Setting) -> dict:
    """Time the ways in turns and print a table of them."""
    trainers = [Trainer(setting, way, copy.deepcopy(setting.classifier.model)) for way in ways(setting.args)]
    taken: dict[str, list[dict[str, float]]] = {trainer.way.name: [] for trainer in trainers}
    for start in range(0, len(setting.steps), TURN):
        trainers.append(trainers.pop(0))  # so that none always follows the same other one
        for trainer in trainers:
            with fast_kernels(trainer.way.onednn, trainer.way.masks):
                trainer.step(start)  # not timed: caches and memory are as the way before has left them
                steps = range(start, min(start + TURN, len(setting.steps)))
                taken[trainer.way.name] += [trainer.step(i) for i in steps]

    n_rows = sum(len(rows) for rows, _ in setting.steps)
    ours = sum(step["step"] for step in taken[OURS.name])
    phases = ("step", "data", "forward", "backward", "optimiser")
    table = [["training", "examples/s", *("ms a step" if p == "step" else p for p in phases), "peak MB", "ours/this"]]
    figures: dict[str, dict] = {}
    for name, steps in taken.items():
        total = sum(step["step"] for step in steps)
        figures[name] = {"examples_per_second": n_rows / total, "ours_is_faster_by": total / ours}
        figures[name] |= {f"{phase}_seconds": statistics.fmean(step[phase] for step in steps) for phase in phases}
        if not setting.args.no_memory:
            figures[name]["peak_memory_bytes"] = peak_memory(setting.args, name)
        memory = f"{figures[name]['peak_memory_bytes'] / 1e6:.0f}" if "peak_memory_bytes" in figures[name] else "-"
        milliseconds = [f"{1000 * figures[name][f'{phase}_seconds']:.1f}" for phase in phases]
        table.append([name, f"{n_rows / total:.1f}", *milliseconds, memory, f"{total / ours:.2f}"])
    print(aligned(table))
    if RELEASE.name in figures:
        print(f"\nrun_glue.py is {figures[RELEASE.name]['ours_is_faster_by']:.2f} times as fast as the release's way")
    return figures


def peak_memory(args: argparse.Namespace, name: str) -> int:
    """Bytes at the peak of training in this way in a process of its own."""
    keep = ("task_name", "data_dir", "model_name_or_path", "scc_n_layer", "max_seq_length", "batch_size")
    keep += ("replacing_rate", "rate_1_after", "steps")
    flags = [f"--{key}={getattr(args, key)}" for key in keep if getattr(args, key) is not None]
    flags += [f"--{key}" for key in ("baseline", "without", "no_cuda") if getattr(args, key)]
    done = subprocess.run([sys.executable, __file__, *flags, "--memory_of", name], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"training for peak memory failed: {done.stderr.strip().splitlines()[-1]}")
    return int(done.stdout.split()[-1])


def train_alone(setting: Setting, way: Way) -> int:
    """Make all the steps in this way; the process's peak of resident memory in bytes, or on a GPU the tensors'."""
    trainer = Trainer(setting, way, setting.classifier.model)
    with fast_kernels(way.onednn, way.masks):
        for i in range(len(setting.steps)):
            trainer.step(i)
    if setting.device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    try:  # of this process alone: getrusage counts what the parent held when it started this process
        return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


# -------------------------------------------------------------------------------------- inference


def time_inference(setting: Setting) -> dict:
    """Time predecessor and successor on the dev set, and print a table."""
    args, predecessor = setting.args, setting.classifier
    compressed = copy.deepcopy(predecessor.model)
    n_layer = len(compressed.get_submodule(find_layers(compressed)))
    n_left = len(compress(compressed, args.scc_n_layer).successor)
    successor = dataclasses.replace(predecessor, model=export_successor(compressed).to(setting.device))
    dev, one = setting.dev.head(N_DEV), setting.dev.head(N_SINGLE)

    def release(classifier: Classifier, features, batch_size: int) -> None:
        with torch.no_grad():
            for start in range(0, len(features), batch_size):
                batch = setting.padded(features.batch(range(start, min(start + batch_size, len(features)))))
                batch.pop("labels")
                classifier.model(**{name: tensor.to(setting.device) for name, tensor in batch.items()}).logits.cpu()

    cases = {"predecessor": (predecessor, Classifier.predict), "successor": (successor, Classifier.predict)}
    if args.baseline:
        cases["successor, the release's way"] = (successor, release)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for timing in range(args.rounds + 1):
        for name, (classifier, predict) in cases.items():
            with fast_kernels(False if predict is release else None):
                start = setting.now()
                predict(classifier, dev, args.batch_size)
                whole = setting.now() - start
                start = setting.now()
                predict(classifier, one, 1)
                single = (setting.now() - start) / len(one)
            if timing:  # the first round warms up
                taken[name].append((whole, single))

    table = [["inference", "examples/s", "ms for one", "speed-up"]]
    figures: dict[str, dict] = {}
    for name, times in taken.items():
        whole, single = map(statistics.median, zip(*times, strict=True))
        faster = statistics.median(a / b for (a, _), (b, _) in zip(taken["predecessor"], times, strict=True))
        figures[name] = {"examples_per_second": len(dev) / whole, "seconds_for_one": single}
        figures[name]["times_the_predecessor"] = faster
        table.append([name, f"{len(dev) / whole:.1f}", f"{1000 * single:.2f}", f"{faster:.2f}"])
    print(
        f"\n{aligned(table)}\n\nThe successor has {n_left} of {n_layer} layers: at best {n_layer / n_left:.2f} as fast"
    )
    return figures


# -------------------------------------------------------------------------------- whole processes


def time_run(root: Path, args: argparse.Namespace, n_steps: int, *more: str) -> float:
    """Seconds of a whole run of a checkout's run_glue.py, from its start to its end."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--task_name", args.task_name, "--data_dir", args.data_dir, "--output_dir", f"{folder}/output"]
        flags += ["--model_name_or_path", args.model_name_or_path, "--max_seq_length", str(args.max_seq_length)]
        flags += ["--per_gpu_train_batch_size", str(args.batch_size), "--do_train", "--max_steps", str(n_steps)]
        flags += ["--save_steps", "0", "--logging_steps", "0", *more] + ["--no_cuda"] * args.no_cuda
        one_gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, str(root / "run_glue.py"), *flags],
            capture_output=True,
            text=True,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": one_gpu},
        )
        seconds = time.perf_counter() - start
    if done.returncode:
        raise UserError(f"{root}/run_glue.py failed: {done.stderr.strip().splitlines()[-1]}")
    return seconds


def time_start_up(args: argparse.Namespace) -> dict[str, float]:
    """Time a whole run of one step of fine-tuning."""
    seconds = time_run(ROOT, args, 1)
    print(f"A run of one step takes {seconds:.2f} s from its start to its end")
    return {"run_of_one_step_seconds": seconds}


def time_against(args: argparse.Namespace) -> dict:
    """Compress with another checkout's run_glue.py and with this one, in turns, and print the seconds of a step."""
    k = slope_to_1(args.replacing_rate, args.rate_1_after * args.steps)
    schedule = ["--replacing_rate", str(args.replacing_rate), "--scheduler_type", "linear"]
    schedule += ["--scheduler_linear_k", str(k)]
    schedule += ["--scc_n_layer", str(args.scc_n_layer)] if args.scc_n_layer else []
    roots = {"this checkout": ROOT, str(args.against): args.against.resolve()}
    taken: dict[str, list[float]] = {name: [] for name in roots}
    for _ in range(args.rounds):
        for name, root in roots.items():
            # The difference of two runs leaves out what starting and loading take.
            long, short = (time_run(root, args, n, *schedule) for n in (args.steps + 1, 1))
            taken[name].append((long - short) / args.steps)
    ours, theirs = taken.values()
    ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    for name, seconds in taken.items():
        low, middle, high = min(seconds), statistics.median(seconds), max(seconds)
        print(f"{name}: {1000 * middle:.1f} ms a step, median of {args.rounds} ({1000 * low:.1f} to {1000 * high:.1f})")
    print(f"This checkout is {ratio:.3f} times as fast as {args.against}, median of {args.rounds} pairs")
    return {"seconds_a_step": taken, "times_as_fast": ratio}


if __name__ == "__main__":
    main(parse_args())
