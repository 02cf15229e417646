"""What the commands put out: warnings, files and pictures."""

import io
import sys
from collections.abc import Callable
from pathlib import Path

from bert_of_theseus.run.files import write_whole

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#666666"  # apart for colour-blind eyes too
COLOURS = (ORANGE, BLUE, "#009e73", "#cc79a7")
STYLE = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}


def warn(message: str) -> None:
    print(f"{Path(sys.argv[0]).name}: warning: {message}", file=sys.stderr)


def write(folder: Path, files: dict[str, str | bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_whole(folder / name, content)
    print(f"Written to {folder}: {', '.join(files)}", file=sys.stderr)


def draw(pictures: dict[str, Callable]) -> dict[str, bytes]:
    """PNG files by name, of functions that draw on a figure; none, with a warning, where matplotlib is missing."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        warn("no pictures: they need matplotlib (pip install matplotlib)")
        return {}
    files = {}
    for name, draw_on in pictures.items():
        with matplotlib.rc_context(STYLE):
            figure, png = Figure(layout="constrained"), io.BytesIO()
            draw_on(figure)
            figure.savefig(png, format="png", dpi=130, metadata={"Software": None})
        files[name] = png.getvalue()
    return files
