"""What a run was made of, so that it can be made again, and gone on with only as what it was."""

import hashlib
import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import torch

LIBRARIES = ("torch", "transformers", "tokenizers", "numpy")


def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES}


def command() -> str:
    """The command that started this process, quoted for a shell."""
    return shlex.join(sys.orig_argv)


def now() -> str:
    """The time in UTC, to the second, as ISO 8601 has it."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def git_commit(folder: Path) -> str | None:
    """The commit that is checked out in `folder`, with "-dirty" where files differ from it; None outside git."""

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
    """A digest of all that a loaded model computes from: weights, tokenizer, and config as its file has it."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    config = {name: value for name, value in config.items() if name not in ("_name_or_path", "_commit_hash")}
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    for name in ("truncation", "padding"):  # of its last call
        state.pop(name, None)
    digest.update(json.dumps([config, state], sort_keys=True, default=str).encode())
    return digest.hexdigest()


def differences(was: dict, now: dict, free_arguments: Sequence[str]) -> list[str]:
    """In what a run differs, in words, from the one that it is to go on with, as their records tell.

    What the earlier record does not tell is no difference, nor is one of `free_arguments`.
    """
    found = [
        f"--{name} was {was['arguments'][name]!r}, is {value!r}"
        for name, value in now["arguments"].items()
        if name not in free_arguments and was["arguments"].get(name, value) != value
    ]
    data = now.get("data", {}).items()
    found += [f"{name} has changed" for name, sha256 in data if was["data"].get(name, sha256) != sha256]
    if was.get("predecessor_sha256", "") != now.get("predecessor_sha256", was.get("predecessor_sha256", "")):
        found.append("the model to start from has changed")
    whats = {"processes": "the number of processes", "device_type": "the kind of device", "variant": "the variant"}
    for key, what in whats.items():
        if was.get(key) != now.get(key):
            found.append(f"{what} was {was.get(key)}, is {now.get(key)}")
    return found
