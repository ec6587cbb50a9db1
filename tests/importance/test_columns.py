"""Column sums of attention that is never held: equal to dense attention, forwards and backwards, in bounded memory."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from rskd.importance.columns import CPU_TILE, attend, column_sums
from rskd.importance.weights import Explicit, Fused, Linear


def dense(q: Tensor, k: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    logits = torch.einsum("bhid,bhjd->bhij", q, k) * scale
    logits = logits if bias is None else logits + bias
    exponentials = (logits - logits.amax(-1, keepdim=True)).exp()
    return exponentials / exponentials.sum(-1, keepdim=True)


def heads(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("tile", [1, 10, 77, 1 << 20])
@pytest.mark.parametrize("bias_shape", [None, (1, 1, 1, 11), (1, 3, 7, 11), (2, 1, 7, 11), (2, 3, 7, 11)])
def test_equals_dense_attention(dtype, tolerance, tile, bias_shape):
    q, k = heads(2, 3, 7, 5, dtype=dtype), heads(2, 3, 11, 5, dtype=dtype, seed=1)
    bias = None if bias_shape is None else heads(*bias_shape, dtype=dtype, seed=2)
    got = column_sums(q, k, scale=0.7, bias=bias, tile=tile)
    assert torch.allclose(got, dense(q, k, 0.7, bias).mean(2), rtol=0, atol=tolerance)


def test_queries_can_be_weighted():
    q, k, weights = heads(2, 3, 7, 5), heads(2, 3, 11, 5, seed=1), heads(2, 7, seed=2)
    expected = torch.einsum("bi,bhij->bhj", weights, dense(q, k, 0.3))
    assert torch.allclose(column_sums(q, k, scale=0.3, weights=weights, tile=20), expected, rtol=0, atol=1e-12)


def test_a_mask_of_minus_infinity_gives_nothing_to_what_is_masked():
    q, k = heads(1, 2, 4, 3), heads(1, 2, 6, 3, seed=1)
    mask = torch.tensor([0.0, 0.0, 0.0, 0.0, float("-inf"), float("-inf")]).view(1, 1, 1, 6)
    sums = column_sums(q, k, scale=1.0, bias=mask)
    assert (sums[..., 4:] == 0).all()
    assert torch.allclose(sums.sum(-1), torch.ones(1, 2, dtype=torch.float64))


@pytest.mark.parametrize("bias_shape", [(1, 2, 3, 4), (2, 1, 1, 4)])
def test_gradient_of_everything_that_enters(bias_shape):
    inputs = [heads(2, 2, 3, 2), heads(2, 2, 4, 2, seed=1), heads(*bias_shape, seed=2), heads(2, 3, seed=3)]
    for tensor in inputs:
        tensor.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda q, k, b, w: column_sums(q, k, scale=0.5, bias=b, weights=w, tile=9), tuple(inputs)
    )


def test_equals_multihead_attention_of_torch():
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(12, 3, batch_first=True).double()
    x = heads(2, 9, 12)
    _, weights = layer(x, x, x, need_weights=True, average_attn_weights=True)
    q, k, _ = nn.functional.linear(x, layer.in_proj_weight, layer.in_proj_bias).chunk(3, -1)
    q, k = (t.view(2, 9, 3, 4).transpose(1, 2) for t in (q, k))
    assert torch.allclose(column_sums(q, k, scale=0.5).mean(1), weights.mean(1), rtol=0, atol=1e-12)


def test_half_precision_is_computed_in_float32():
    q, k = heads(1, 2, 50, 8).bfloat16(), heads(1, 2, 50, 8, seed=1).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = column_sums(q, k, scale=0.35)
    assert got.dtype == torch.float32
    assert torch.allclose(got, dense(q.float(), k.float(), 0.35).mean(2), rtol=0, atol=1e-6)


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


def test_no_attention_matrix_exists_at_4096_tokens_forwards_or_backwards():
    q, k = (heads(1, 2, 4096, 8, dtype=torch.float32, seed=s).requires_grad_() for s in (0, 1))
    with LargestTensor() as largest:
        sums = column_sums(q, k, scale=0.35)
        (sums * torch.arange(4096.0)).sum().backward()
    assert largest.elements <= CPU_TILE == 4096**2 / 32


def test_linear_attention_has_the_weights_of_its_kernel():
    q, k, v = heads(2, 3, 7, 4).relu(), heads(2, 3, 11, 4, seed=1).relu(), heads(2, 3, 11, 4, seed=2)
    products = torch.einsum("bhid,bhjd->bhij", q, k)
    weights = products / (products.sum(-1, keepdim=True) + 1e-5)
    shares = heads(2, 7, seed=3).softmax(1)
    linear = Linear(q, k, v, 1e-5)
    assert torch.allclose(linear.columns(), weights.mean(2), rtol=0, atol=1e-12)
    assert torch.allclose(linear.columns(shares), torch.einsum("bi,bhij->bhj", shares, weights), rtol=0, atol=1e-12)
    assert torch.allclose(linear.row(2), weights[:, :, 2], rtol=0, atol=1e-12)


def test_fused_and_explicit_attention_answer_alike():
    q, k, v = heads(2, 3, 7, 4), heads(2, 3, 11, 4, seed=1), heads(2, 3, 11, 4, seed=2)
    bias, shares = heads(1, 3, 7, 11, seed=4), heads(2, 7, seed=3).softmax(1)
    fused, explicit = Fused(q, k, v, 0.5, bias), Explicit(dense(q, k, 0.5, bias), v)
    assert fused.shape == explicit.shape == (2, 3, 7, 11)
    for query in (0, 3, 6):
        assert torch.allclose(fused.row(query), explicit.row(query), rtol=0, atol=1e-12)
    assert torch.allclose(fused.columns(shares), explicit.columns(shares), rtol=0, atol=1e-12)


def test_weights_that_fade_away_are_never_subnormal_numbers_which_are_slow():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 60, 8) for _ in range(3))
    expected = torch.softmax((q.double() @ k.double().mT) * 12, -1)
    assert ((expected > 0) & (expected < torch.finfo(torch.float32).tiny)).any()
    out, mean = attend(q, k, v, scale=12)
    assert torch.allclose(out.double(), expected @ v.double(), rtol=0, atol=1e-4)
    assert torch.allclose(mean.double(), expected.mean(2), rtol=1e-4, atol=1e-30)
    one, faint = attend(q[:, :, :1], k, torch.eye(60).expand(1, 2, 60, 60), scale=12)
    assert torch.allclose(one[:, :, 0].double(), expected[:, :, 0], rtol=1e-4, atol=1e-30)
    assert torch.equal(one[:, :, 0], faint)
    assert one.min() > torch.finfo(torch.float32).tiny


@pytest.mark.parametrize("bias_shape", [None, (1, 1, 1, 11), (1, 3, 7, 11)])
@pytest.mark.parametrize("tile", [1, 77, None])
def test_output_and_mean_of_the_rows_from_the_same_weights(tile, bias_shape):
    q, k, v = heads(2, 3, 7, 5), heads(2, 3, 11, 5, seed=1), heads(2, 3, 11, 4, seed=2)
    bias = None if bias_shape is None else heads(*bias_shape, seed=3)
    out, mean = attend(q, k, v, scale=0.7, bias=bias, tile=tile)
    expected = dense(q, k, 0.7, bias)
    assert torch.allclose(out, expected @ v, rtol=0, atol=1e-12)
    assert torch.allclose(mean, expected.mean(2), rtol=0, atol=1e-12)
