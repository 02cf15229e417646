"""Damaged input for tests: bytes and JSON changed at random, and bounds on what reading it may cost.

What is tried follows from the code alone: a failure comes again with the next call.
"""

import copy
import io
import json
import resource
import signal
import struct
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st


def how_many(few: int, many: int = 2000):
    """A test's `n`: few inputs in the ordinary suite, many in the slow one."""
    return pytest.mark.parametrize("n", [few, pytest.param(many, marks=pytest.mark.slow)])


def for_each(n: int, inputs: st.SearchStrategy, check: Callable, **bounds: float) -> Counter:
    """Call `check` with `n` inputs, each within `bounded`; returns how often it returned what."""
    outcomes = Counter()

    @settings(
        max_examples=n,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # to make an input smaller that takes too long would take very long
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def run(example):
        with bounded(**bounds):
            outcome = check(example)
        outcomes[outcome] += 1

    run()
    return outcomes


class TookTooLong(BaseException):
    """Not an Exception: what loaders raise is caught by those who call them."""


STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _memory(name: str) -> int:
    """Bytes of this process, by the name that Linux gives them."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])


@contextmanager
def bounded(seconds: float = 20, megabytes: float = 200) -> Iterator[None]:
    """Fail where the block takes longer, or more memory than there was in use before it."""

    def too_long(*_):
        raise TookTooLong(f"longer than {seconds} seconds")

    measured = CLEAR.exists()
    if measured:
        CLEAR.write_text("5")  # sets the peak to what is in use now
        before = _memory("VmHWM")
        limits = resource.getrlimit(resource.RLIMIT_AS)
        # So that the machine lives on where a test fails.
        resource.setrlimit(resource.RLIMIT_AS, (_memory("VmSize") + 2**33, limits[1]))
    handler = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if measured:
            resource.setrlimit(resource.RLIMIT_AS, limits)
    if measured:
        assert _memory("VmHWM") - before < megabytes * 10**6


# ------------------------------------------------------------------------------------------- bytes


class Change(NamedTuple):
    kind: str
    where: int | float  # from the start, or, below 0, from the end; or a share of the length
    size: int
    data: bytes


PIECES = [
    b"\0",
    b"\t",
    b"\n",
    b"\r",
    b"\r\n",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\xe9",
    "\u2028\x85".encode(),
    b'"',
    b"{",
    b"]",
]
PIECES += [b"-", b"9" * 30, b"\0" * 8, b"\xff" * 8, b"\xff" * 7 + b"\x7f", b"null", b"NaN", b"1e999", b"\\ud800"]

CHANGES = st.lists(
    st.builds(
        Change,
        st.sampled_from(["flip", "overwrite", "insert", "drop", "repeat", "swap", "cut"]),
        st.integers(-400, 400) | st.floats(0, 1),
        st.sampled_from([1, 2, 3, 8, 50, 1000, 10**6]),
        st.sampled_from(PIECES) | st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=3,
)


def changed(data: bytes, changes: Sequence[Change]) -> bytes:
    for kind, where, size, piece in changes:
        at = int(where * len(data)) if isinstance(where, float) else where + len(data) * (where < 0)
        at = min(max(at, 0), len(data))
        start, end = data[:at], data[at:]
        data = (
            start
            + {
                "flip": bytes(byte ^ 1 << size % 8 for byte in end[:1]) + end[1:],
                "overwrite": piece + end[len(piece) :],
                "insert": piece + end,
                "drop": end[size:],
                "repeat": end[:size] + end,
                "swap": end[size : 2 * size] + end[:size] + end[2 * size :],
                "cut": b"",
            }[kind]
        )
    return data


# -------------------------------------------------------------------------------------------- JSON


class Edit(NamedTuple):
    kind: str
    place: int  # which value of the document, counted round
    name: str
    value: object


NUMBERS = [0, 1, -1, 2, 3, 7, 32, 1000, 10**6, 10**9, 10**12, 2**63, 10**30, -(10**12), 0.0, -0.5, 0.5, 1e-320, 1e308]
NUMBERS += [float("nan"), float("inf"), float("-inf"), 10**400]
OTHERS = [None, True, False, "", "x", "1", "float16", "\ud800", "\n\u2028", "../x", [], [1], ["x"], {}, {"a": 1}, [[]]]


def edits(*names: str, values: Sequence = ()) -> st.SearchStrategy:
    """Changes of a document, in which `names` may be added and `values` be put as well."""
    edit = st.builds(
        Edit,
        st.sampled_from(["replace", "replace", "add", "add", "drop", "nest"]),
        st.integers(0, 10**4),
        st.sampled_from(names or ("x",)),
        st.sampled_from(NUMBERS) | st.sampled_from(OTHERS) | st.sampled_from(values or (None,)),
    )
    return st.lists(edit, min_size=1, max_size=3)


def _places(value, holder, key) -> Iterator[tuple]:
    yield holder, key
    if isinstance(value, dict | list):
        for inner in value if isinstance(value, dict) else range(len(value)):
            yield from _places(value[inner], value, inner)


def edited(document, changes: Sequence[Edit]):
    """A copy of a document of JSON with these changes."""
    root = [copy.deepcopy(document)]
    for kind, place, name, value in changes:
        places = list(_places(root[0], root, 0))
        if kind == "add":
            places = [(holder[key], name) for holder, key in places if isinstance(holder[key], dict)] or places
        holder, key = places[place % len(places)]
        if kind in ("replace", "add"):
            holder[key] = copy.deepcopy(value)
        elif kind == "nest":
            holder[key] = [holder[key]]
        elif holder is not root:
            del holder[key]
    return root[0]


def as_json(document) -> bytes:
    return json.dumps(document).encode()


def changed_json(data: bytes, changes: Sequence[Edit]) -> bytes:
    return as_json(edited(json.loads(data), changes))


# -------------------------------------------------------------------------------------------- archives


def changed_header(data: bytes, changes: Sequence[Edit]) -> bytes:
    """A safetensors file whose header, a text of JSON, has these changes and is as long as the file says."""
    (size,) = struct.unpack("<Q", data[:8])
    header = changed_json(data[8 : 8 + size], changes)
    return struct.pack("<Q", len(header)) + header + data[8 + size :]


def changed_member(data: bytes, name: str, change: Callable[[bytes], bytes]) -> bytes:
    """A zip file in which the members of that name, wherever they lie, are changed, with checksums that are right."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(target, "w") as archive:
        for member in source.infolist():
            content = source.read(member)
            archive.writestr(member.filename, change(content) if Path(member.filename).name == name else content)
    return target.getvalue()
