"""Make the runs of a grid, one at a time on each device, until a signal comes."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from bert_of_theseus.classifier import ModelError
from bert_of_theseus.run.command_line import UserError
from bert_of_theseus.run.files import write_whole
from bert_of_theseus.run.folder import is_finished, read_record
from grid.cells import Cell, read_grid
from grid.commands import ROOT, Commands
from grid.scoring import score_on

OVERHEAD = 15  # seconds that a run takes beside its training, roughly
PART = 0.6  # of the time of a step of fine-tuning, that a step takes in the mean of the methods, roughly


class Runner:
    """Makes runs, one at a time on each device, until a signal comes."""

    def __init__(self, commands: Commands):
        self.commands = commands
        self.devices = find_devices(commands.args.jobs)
        self.n_threads = max(1, (os.cpu_count() or 1) // len(self.devices))  # of each run, where there are several
        if len(self.devices) > 1:  # threads that wait for each other's cores are many times slower
            torch.set_num_threads(self.n_threads)
        self.failed: dict[Cell, str] = {}  # with the last line of its log
        self.signals: list[int] = []

    def listen(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP: that must stay so
                signal.signal(number, lambda number, frame: self.signals.append(number))

    def make(self, stage: str, cells: list[Cell]) -> None:
        """Make the runs that are neither done nor failed, and first the predecessors whose weights are not there."""
        plan, has_weights = self.commands.plan, self.commands.has_weights
        todo = [c for c in dict.fromkeys(cells) if not (plan.is_done(c) or c in self.failed)]
        start_from = {c: plan.predecessor(c.task, c.seed) for c in todo if c.method != "predecessor"}
        missing = [p for p in dict.fromkeys(start_from.values()) if not (has_weights(p) or p in self.failed)]
        if missing:
            print(f"== {stage}: {len(missing)} predecessors to make", flush=True)
            self.make_each(missing)
        for cell, predecessor in start_from.items():
            if predecessor in self.failed:
                self.failed[cell] = self.failed[predecessor]
        print(f"== {stage}: {len(todo)} of {len(set(cells))} runs to make", flush=True)
        self.make_each([c for c in todo if c not in self.failed])

    def make_each(self, cells: list[Cell]) -> None:
        """Make these runs, one at a time on each device."""
        todo = deque(cells)
        free, working, n_passed_on = list(self.devices), {}, len(self.signals)
        try:
            while working or (todo and not self.signals):
                while todo and free and not self.signals:
                    cell, device = todo.popleft(), free.pop()
                    working[self.start(cell, device)] = cell, device, time.monotonic()
                time.sleep(0.1)
                for _ in self.signals[n_passed_on:]:  # at the first a run saves and ends, at a second it ends at once
                    n_passed_on += 1
                    for process in working:
                        process.terminate()
                for process in [process for process in working if process.poll() is not None]:
                    cell, device, start = working.pop(process)
                    free.append(device)
                    outcome = self.end(cell, process.returncode)
                    print(f"{cell.folder}: {outcome} after {time.monotonic() - start:.0f} s", flush=True)
        finally:  # an error here must not leave runs behind that nobody waits for
            for process in working:
                process.terminate()
            for process in working:
                process.wait()

    def start(self, cell: Cell, device: str | None) -> subprocess.Popen:
        folder = self.commands.runs_folder(cell)
        if self.holds_another(cell, folder):
            shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(f"{folder}.log", "wb") as log:
            # In a session of its own, so that Ctrl-C does not reach it twice.
            options = {"cwd": ROOT, "env": self.environment(device), "start_new_session": True}
            return subprocess.Popen(
                self.commands.command(cell), stdin=subprocess.DEVNULL, stdout=log, stderr=log, **options
            )

    def holds_another(self, cell: Cell, folder: Path) -> bool:
        """Whether the folder holds a run that is not this one: from another predecessor, or to be made again."""
        found = read_record(folder)
        if found is None:
            return False
        plan = self.commands.plan
        return (is_finished(found) and plan.record(cell).exists()) or not plan.starts_from_predecessor(found, cell)

    def environment(self, device: str | None) -> dict[str, str]:
        variables = dict(os.environ)
        if device is not None:
            variables["CUDA_VISIBLE_DEVICES"] = device
        if len(self.devices) > 1:
            variables.setdefault("OMP_NUM_THREADS", str(self.n_threads))
        return variables

    def end(self, cell: Cell, status: int) -> str:
        """Keep the record of a finished run, and note a failed one; returns what became of it."""
        folder, record = self.commands.runs_folder(cell), self.commands.plan.record(cell)
        log = Path(f"{folder}.log")
        if status == 0:
            record.parent.mkdir(parents=True, exist_ok=True)
            result = read_record(folder)
            result["held_out_sha256"] = self.commands.plan.held_out_sha256[cell.task]
            try:
                result["held_out"] = self.score_held_out(cell)
            except (ModelError, torch.OutOfMemoryError) as error:
                self.failed[cell] = f"not scored: {error}"
                return self.failed[cell]
            write_whole(record, json.dumps(result, indent=2) + "\n")
            log.unlink()
            self.remove_weights(cell)
            return f"{result['main_metric']} {result['last']['main']:.4f}"
        if self.signals:
            return "stopped"
        last_line = (log.read_text(errors="replace").strip() or "no output").splitlines()[-1]
        self.failed[cell] = f"{log}: {last_line}"
        return f"failed with status {status}: {last_line}"

    def score_held_out(self, cell: Cell) -> dict[str, dict[str, float]]:
        commands, predecessor = self.commands, None
        if cell.method == "one-module":
            predecessor = commands.runs_folder(commands.plan.predecessor(cell.task, cell.seed))
        data = commands.data[cell.task]
        return score_on(data.held_out, data.task, commands.runs_folder(cell), predecessor)

    def remove_weights(self, cell: Cell) -> None:
        if cell.method != "predecessor" and not self.commands.args.keep_weights:
            shutil.rmtree(self.commands.runs_folder(cell), ignore_errors=True)

    def estimate(self, cells: Sequence[Cell]) -> float:
        """Hours that the runs will take, from the finished runs of the same task or from ten steps."""
        finished = read_grid(self.commands.plan.results).runs
        hours = 0.0
        for task in sorted({cell.task for cell in cells}):
            known = [run.seconds / run.steps for cell, run in finished.items() if cell.task == task]
            a_step = np.mean(known) if known else PART * self.time_fine_tuning(task)
            hours += sum(OVERHEAD + a_step * self.commands.n_steps(cell) for cell in cells if cell.task == task) / 3600
        return hours / len(self.devices)

    def time_fine_tuning(self, task: str) -> float:
        """Seconds of a step, of which ten are made."""
        print(f"Timing ten steps of {task} ...", flush=True)
        folder = self.commands.args.output_dir / "timing"
        cell = self.commands.plan.first(task, "predecessor", self.commands.plan.learning_rates[0])
        words = self.commands.command(cell)
        words = [word for word in words if word not in ("--do_eval", "--resume")]
        words += ["--max_steps", "10", "--output_dir", str(folder), "--overwrite_output_dir"]
        env = self.environment(self.devices[0])
        done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{shlex.join(words)}: {(done.stderr.strip() or 'failed').splitlines()[-1]}")
        seconds = read_record(folder)["training_seconds"] / 10
        shutil.rmtree(folder)
        return seconds


def find_devices(jobs: int | None) -> list[str | None]:
    """What CUDA_VISIBLE_DEVICES is for each run at a time; None: as it is."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    names = names if torch.cuda.is_available() else [None]
    return [names[i % len(names)] for i in range(jobs or len(names))]
