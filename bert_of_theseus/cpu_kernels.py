"""What torch computes slowly on a CPU, computed by what torch has beside it.

Measured in docs/performance.md. Nothing here knows of models: the operators themselves get other kernels, so all
layers of any architecture, and their backward passes, have them.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

# The rows of a matrix product are made a multiple of this number: oneDNN generates code and keeps buffers for each
# new shape, and batches of sentences come in hundreds of them.
ROWS = 16
SMALL = 32  # below this many rows a product is not worth the padding


def onednn_is_faster() -> bool:
    """Whether oneDNN multiplies float32 matrices faster than MKL, torch's choice, which keeps AVX-512 for Intel."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    try:
        cpus = Path("/proc/cpuinfo").read_text()
    except OSError:  # no Linux
        return False
    return "AuthenticAMD" in cpus and torch.backends.cpu.get_cpu_capability() == "AVX512"


def _onednn_product(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor | None:
    """`a @ b + bias` for float32 a (m, k), b (k, n) and bias (n,); None where it is not worth it."""
    m, k = a.shape
    if a.dtype is not torch.float32 or b.dtype is not torch.float32 or min(m, k) < SMALL or b.shape[1] < SMALL:
        return None
    more_rows, more_columns = -m % ROWS, -k % ROWS
    if more_rows or more_columns:
        a = torch.nn.functional.pad(a, (0, more_columns, 0, more_rows))
    if more_columns:
        b = torch.nn.functional.pad(b, (0, 0, 0, more_columns))
    product = torch.ops.mkldnn._linear_pointwise.default(a, b.t(), bias, "none", [], "")
    return product[:m] if more_rows else product


def _mm(a, b):
    product = _onednn_product(a, b, None)
    if product is None:
        product = torch.ops.aten.mm.out(a, b, out=a.new_empty(a.shape[0], b.shape[1]))
    return product


def _addmm(added, a, b, *, beta=1, alpha=1):
    is_bias = added.shape == b.shape[1:] and added.is_contiguous() and beta == alpha == 1
    product = _onednn_product(a, b, added) if is_bias else None
    if product is None:
        out = a.new_empty(a.shape[0], b.shape[1])
        product = torch.ops.aten.addmm.out(added, a, b, beta=beta, alpha=alpha, out=out)
    return product


def _bernoulli(tensor, p=0.5, *, generator=None):
    """Fill with ones of probability `p`, to 1 / 65536: 16 random bits an element, four of them from one draw of 64."""
    threshold = round(p * 2**16)
    if threshold == 2**16:  # which 16 bits never reach
        return tensor.fill_(1)
    n = tensor.numel()
    bits = torch.empty((n + 3) // 4, dtype=torch.int64).random_(-(2**63), None, generator=generator).view(torch.int16)
    return torch.lt(bits[:n].view(tensor.shape), threshold - 2**15, out=tensor)


@contextmanager
def fast_kernels(products: bool | None = None, masks: bool = True) -> Iterator[None]:
    """In this block, CPU kernels of this file take the place of torch's, in the whole process.

    Args:
        products: oneDNN's products of float32 matrices; default: where `onednn_is_faster`.
        masks: masks of dropout whose probability is rounded to 1 / 65536.

    Products differ from MKL's by rounding only. Masks are others than torch's for the same seed.
    """
    library = torch.library.Library("aten", "IMPL")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of kernels that are replaced
            if onednn_is_faster() if products is None else products:
                library.impl("mm", _mm, "CPU")
                library.impl("addmm", _addmm, "CPU")
            if masks:
                library.impl("bernoulli_.float", _bernoulli, "CPU")
        yield
    finally:
        library._destroy()


def describe_kernels() -> str:
    """What `fast_kernels` replaces on this machine, in words."""
    products = " and oneDNN for matrix products" if onednn_is_faster() else ""
    return f"faster than torch's: 16 random bits an element in dropout{products} (--no_fast_kernels keeps torch's)"
