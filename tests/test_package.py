"""The library as other projects install it, and which room of the project may import which."""

import ast
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

USE = """
import torch, transformers
from bert_of_theseus import compress, export_successor
from replacement_scheduler import LinearReplacementScheduler
sizes = dict(vocab_size=20, hidden_size=8, num_attention_heads=2, intermediate_size=8, num_hidden_layers=4)
model = transformers.BertForTokenClassification(transformers.BertConfig(**sizes))
layers = compress(model)
LinearReplacementScheduler(layers, 0.3, 0.1).step()
print(export_successor(model).config.num_hidden_layers, compress.__globals__["__file__"])
"""


def test_a_wheel_has_the_library_and_the_schedules_and_works_elsewhere(tmp_path):
    hidden = shutil.ignore_patterns(".*", "__pycache__", "results", "quickstart", "reproduction", "build", "*.egg-info")
    project = shutil.copytree(ROOT, tmp_path / "project", ignore=hidden)  # building writes into the folder
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", tmp_path, project], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    found = {path.name for path in (tmp_path / "installed").iterdir() if not path.name.endswith(".dist-info")}
    assert found == {"bert_of_theseus", "replacement_scheduler.py"}
    done = subprocess.run(
        [sys.executable, "-c", USE],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    n_layer, where = done.stdout.split()
    assert n_layer == "2" and where.startswith(str(tmp_path / "installed"))


def imported(path: Path) -> set[str]:
    """The modules that a source file imports, wherever in it, with dots."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module for node in nodes if isinstance(node, ast.ImportFrom)}


METHOD = [f"bert_of_theseus.{path.stem}" for path in ROOT.glob("bert_of_theseus/*.py") if path.stem != "__init__"]
DATA = [f"bert_of_theseus.data.{path.stem}" for path in ROOT.glob("bert_of_theseus/data/*.py")]
COMMANDS = [path.stem for path in ROOT.glob("scripts/*.py")]
SCRIPTS = [*COMMANDS, "grid"]
ROOMS = {  # files, and what they must not import
    "bert_of_theseus/*.py": ["bert_of_theseus.run", "replacement_scheduler", "glue_processors", "run_glue", *SCRIPTS],
    "bert_of_theseus/data/*.py": [*METHOD, "replacement_scheduler", "glue_processors", "run_glue", *SCRIPTS],
    "bert_of_theseus/run/*.py": [*METHOD, *DATA, "replacement_scheduler", "glue_processors", "run_glue", *SCRIPTS],
    "replacement_scheduler.py": ["bert_of_theseus", "glue_processors", "run_glue", *SCRIPTS],
    "glue_processors.py": [*METHOD, "replacement_scheduler", "run_glue", *SCRIPTS],
    "run_glue.py": ["scripts", *SCRIPTS],
    "scripts/grid/*.py": ["run_glue", *COMMANDS],
    "scripts/*.py": COMMANDS,
}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_nothing_from_the_rooms_above_it(room):
    paths = list(ROOT.glob(room))
    assert paths
    for path in paths:
        for name in imported(path):
            assert not [other for other in ROOMS[room] if name == other or name.startswith(f"{other}.")], (path, name)
