import pytest
import torch
from conftest import tiny_batch
from torch.nn.functional import dropout, linear
from transformers import AutoModelForSequenceClassification

from bert_of_theseus.cpu_kernels import ROWS, fast_kernels, onednn_is_faster

has_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


def products(n_rows: int, n_in: int, n_out: int, bias: bool, dtype=torch.float32) -> list[torch.Tensor]:
    """A linear layer's output and gradients."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, n_rows, n_in), (n_out, n_in)] + [(n_out,)] * bias
    tensors = [torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in shapes]
    output = linear(*tensors)
    output.backward(torch.randn(output.shape, generator=generator, dtype=dtype))
    return [output.detach(), *(tensor.grad for tensor in tensors)]


@has_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [(ROWS, 64, 96), (37, 48, 50), (1, 64, 64), (40, 64, 2), (3, 5, 7)])
def test_onednn_s_products_and_their_gradients_are_those_of_torch(sizes, bias):
    expected = products(*sizes, bias)
    with fast_kernels(products=True):
        got = products(*sizes, bias)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-5)
        assert a.shape == b.shape


@has_onednn
def test_onednn_is_used_in_the_block_and_only_there():
    def operators() -> set[str]:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            products(40, 64, 64, bias=True)
        return {event.key for event in profile.key_averages()}

    with fast_kernels(products=True):
        assert "mkldnn::_linear_pointwise" in operators()
    assert "mkldnn::_linear_pointwise" not in operators()
    with fast_kernels(products=False):
        assert "mkldnn::_linear_pointwise" not in operators()
    with fast_kernels():
        assert ("mkldnn::_linear_pointwise" in operators()) == onednn_is_faster()


def test_other_precisions_are_left_to_torch():
    for dtype in (torch.float64, torch.bfloat16):
        expected = products(40, 64, 64, True, dtype)
        with fast_kernels(products=True):
            assert all(torch.equal(a, b) for a, b in zip(products(40, 64, 64, True, dtype), expected, strict=True))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_masks_drop_each_element_with_the_probability_and_scale_the_rest(p):
    x = torch.ones(1000, 1001)
    with fast_kernels():
        torch.manual_seed(0)
        dropped = dropout(x, p)
        again = dropout(x, p)
    sigma = (p * (1 - p) / x.numel()) ** 0.5
    zero = dropped == 0
    assert abs(zero.float().mean() - p) < 4 * sigma
    torch.testing.assert_close(dropped[~zero], torch.full_like(dropped[~zero], 1 / (1 - p)))
    assert abs((zero & (again == 0)).float().mean() - p * p) < 4 * (p * p * (1 - p * p) / x.numel()) ** 0.5
    neighbours = (zero[:, 1:] & zero[:, :-1]).float().mean()
    assert abs(neighbours - p * p) < 4 * (p * p * (1 - p * p) / x.numel()) ** 0.5


def test_masks_follow_from_the_seed_and_the_backward_pass_has_the_forward_s():
    def masks(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(seed)
        x = torch.ones(100, 99, requires_grad=True)
        output = dropout(x, 0.3)
        output.sum().backward()
        return output.detach(), x.grad

    with fast_kernels():
        first, again, other = masks(1), masks(1), masks(2)
    assert torch.equal(first[0], first[1])
    assert torch.equal(first[0], again[0]) and not torch.equal(first[0], other[0])


def test_a_model_computes_the_same(encoder_folder):
    model = AutoModelForSequenceClassification.from_pretrained(encoder_folder)
    batch = tiny_batch()

    def loss_and_gradients():
        model.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    expected = loss_and_gradients()
    with fast_kernels(products=torch.backends.mkldnn.is_available()):
        got = loss_and_gradients()
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("p", "share"), [(1.0, 1.0), (1 - 2**-20, 1.0), (0.0, 0.0), (2**-20, 0.0)])
def test_masks_of_all_or_nothing(p, share):
    with fast_kernels():
        assert torch.empty(1000).bernoulli_(p).mean() == share


def test_a_sum_that_is_no_bias_is_left_to_torch():
    a, b, added = torch.randn(40, 64), torch.randn(64, 48), torch.randn(1)
    expected = torch.addmm(added, a, b)
    with fast_kernels(products=True):
        torch.testing.assert_close(torch.addmm(added, a, b), expected)
        torch.testing.assert_close(torch.addmm(torch.ones(48), a, b, alpha=2), 1 + 2 * (a @ b), atol=1e-4, rtol=1e-5)
