"""The record of a run: what it is made of, so that it can be made again, and resumed only as what it was."""

import hashlib
import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Collection
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import torch

from bert_of_theseus.run.device import device_name

LIBRARIES = ("torch", "transformers", "tokenizers", "numpy")


def now() -> str:
    """The time in UTC, to the second, in ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def describe(arguments: dict, device: torch.device, root: Path) -> dict:
    """The part of a record that every run has; `root` is the folder of the code."""
    return {
        "command": shlex.join(sys.orig_argv),
        "arguments": arguments,
        "seed": arguments["seed"],
        "device": device_name(device),
        "device_type": device.type,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES},
        "git_commit": git_commit(root),
        "start": now(),
    }


def git_commit(folder: Path) -> str | None:
    """The commit that is checked out in `folder`, with "-dirty" if files differ from it; None outside git."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != folder.resolve():  # copied into another project
            return None
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def model_sha256(model: torch.nn.Module, tokenizer, config: dict) -> str:
    """A digest of all that a loaded model computes from: its weights, its tokenizer, and the text of its config."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    config = {name: value for name, value in config.items() if name not in ("_name_or_path", "_commit_hash")}
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    digest.update(json.dumps([config, backend], sort_keys=True, default=str).encode())
    return digest.hexdigest()


def differences(earlier: dict, record: dict, may_differ: Collection[str] = ()) -> list[str]:
    """How a run differs, in words, from the earlier part of it that it is to resume, as their records tell.

    Arguments that only one of the records has are not compared, nor are those that `may_differ` names. Nor are the data
    where another number of their rows is taken.
    """
    before, after = earlier["arguments"], record["arguments"]
    found = [
        f"--{name} was {before[name]!r}, is {value!r}"
        for name, value in after.items()
        if name not in may_differ and name in before and before[name] != value
    ]
    if all(before.get(name) == after.get(name) for name in ("max_train_samples", "max_eval_samples")):
        known = earlier["data"]
        found += [f"{name} has changed" for name, sha256 in record["data"].items() if known.get(name, sha256) != sha256]
    if earlier["predecessor_sha256"] != record.get("predecessor_sha256", earlier["predecessor_sha256"]):
        found.append("the model to start from has changed")
    names = {"processes": "the number of processes", "device_type": "the kind of device", "variant": "the variant"}
    for key, what in names.items():
        if earlier[key] != record[key]:
            found.append(f"{what} was {earlier[key]}, is {record[key]}")
    return found


def environment_changes(earlier: dict, record: dict) -> list[str]:
    """What may change the last digits of results: the versions, the device, the commit."""
    before, after = (
        {"device": one["device"], "git commit": one["git_commit"]} | one["versions"] for one in (earlier, record)
    )
    return [f"{name} was {before.get(name)}, is {value}" for name, value in after.items() if before.get(name) != value]
