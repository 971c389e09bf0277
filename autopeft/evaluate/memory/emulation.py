"""Training on the `meta` device as it would go elsewhere: the arithmetic and the attention kernels of a GPU or CPU.

Tensors on `meta` have shapes and no values. Three things would go otherwise than on the device that is predicted for,
and are put right here: questions to values, autocast (which passes `meta` by), and the choice of an attention kernel.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx.experimental import _config as fx_config
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from autopeft.evaluate.memory.results import Results
from autopeft.evaluate.memory.tracker import Event, StorageTracker

_ATEN = torch.ops.aten
_RESULTS = Results()

LOWER = frozenset(
    [
        *(F.linear, F.conv1d, F.conv2d, torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm, torch.einsum),
        *(torch.Tensor.matmul, torch.Tensor.__matmul__, torch.Tensor.mm, torch.Tensor.bmm, torch.chain_matmul),
        *(torch.Tensor.__rmatmul__, torch.Tensor.addmm, torch.Tensor.baddbmm, torch.mv, torch.addmv, torch.addbmm),
    ]
)
"""What autocast computes in its lower precision, on GPU and CPU."""
FLOAT32_ON_CUDA = frozenset(
    [
        *(F.layer_norm, F.group_norm, F.softmax, torch.softmax, F.log_softmax, torch.log_softmax, F.nll_loss),
        *(F.cross_entropy, F.mse_loss, F.l1_loss, F.kl_div, F.softplus, F.cosine_similarity, F.smooth_l1_loss),
        *(F.binary_cross_entropy_with_logits, torch.exp, torch.log, torch.pow, torch.rsqrt, torch.norm, torch.cumsum),
        *(torch.Tensor.softmax, torch.Tensor.log_softmax, torch.Tensor.exp, torch.Tensor.log, torch.Tensor.pow),
        *(torch.Tensor.rsqrt, torch.Tensor.norm, torch.Tensor.cumsum, torch.Tensor.__pow__, torch.linalg.vector_norm),
        *(torch.Tensor.sum, torch.sum, torch.prod, torch.Tensor.prod, torch.reciprocal, torch.Tensor.reciprocal),
    ]
)
"""What autocast computes in float32 on a GPU."""
FLOAT32_ON_CPU = frozenset(
    [F.mse_loss, F.l1_loss, F.kl_div, F.cross_entropy, F.nll_loss, F.binary_cross_entropy_with_logits, torch.prod]
)
"""The same on the CPU, whose kernels for norms and softmax take bfloat16."""
_SUMS = frozenset([torch.Tensor.sum, torch.sum, torch.prod, torch.Tensor.prod, torch.cumsum, torch.Tensor.cumsum])


class Values(TorchDispatchMode):
    """Answers what a program asks of values on `meta`; everything else goes on as it would."""

    def __init__(self, padded: bool = True) -> None:
        """`padded` is as `answered` has it."""
        super().__init__()
        self._padded = padded

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return answered(func, args, dict(kwargs or {}), self._padded)


def answered(func: Any, args: Any, kwargs: dict[str, Any], padded: bool) -> Any:
    """The result of an operation, where it asks for values on `meta` one that lets a training go on.

    A truth is the contrary of `padded`, because what models ask is whether every token of a mask counts; a number is 0,
    at which searches end; all elements count as nonzero. A copy to the host stays on `meta`.
    """
    if func is _ATEN._local_scalar_dense.default and args[0].device.type == "meta":
        kind = args[0].dtype
        return (not padded) if kind == torch.bool else 0.0 if kind.is_floating_point else 0
    if func is _ATEN._to_copy.default and "device" in kwargs and args[0].device.type == "meta":
        kwargs["device"] = torch.device("meta")
    if func is _ATEN.block_diag.default and args[0][0].device.type == "meta":
        # Elsewhere one kernel; on `meta` a composition of many, whose parts would count.
        rows, columns = (sum(shape[side] for shape in map(_two_sided, args[0])) for side in (0, 1))
        kind = functools.reduce(torch.promote_types, (part.dtype for part in args[0]))
        return args[0][0].new_empty((rows, columns), dtype=kind)
    if func in _SPARSE and any(isinstance(one, torch.Tensor) and one.is_sparse and one.is_meta for one in args):
        return _SPARSE[func](*args)
    if func is _ATEN.bincount.default and args[0].device.type == "meta":
        return args[0].new_empty((kwargs.get("minlength", args[2] if len(args) > 2 else 0),), dtype=torch.int64)
    return _RESULTS(func, args, kwargs)


def _coalesced(sparse: torch.Tensor) -> torch.Tensor:
    """Another with as many values in as many places."""
    indices, values = torch.empty_like(sparse._indices()), torch.empty_like(sparse._values())
    return torch.sparse_coo_tensor(indices, values, sparse.shape, is_coalesced=True, check_invariants=False)


_SPARSE: Mapping[Any, Callable[..., Any]] = {
    _ATEN._coalesce.default: _coalesced,
    _ATEN.add_.Tensor: lambda dense, *_: dense,
    _ATEN.add.Tensor: lambda dense, *_: torch.empty_like(dense),
    _ATEN.sparse_mask.default: lambda dense, sparse, *_: _coalesced(sparse),
    _ATEN._to_dense.default: lambda sparse, *_: sparse._values().new_empty(sparse.shape),
    _ATEN.mm.default: lambda one, other: (other if one.is_sparse else one).new_empty(one.shape[0], other.shape[1]),
    _ATEN._sparse_addmm.default: lambda _, sparse, dense, *__: dense.new_empty(sparse.shape[0], dense.shape[1]),
}
"""Operations on sparse tensors that `meta` lacks, by what they return."""


def _two_sided(part: torch.Tensor) -> tuple[int, int]:
    """The shape of a block on a diagonal: a vector is a row."""
    return (1, part.numel()) if part.dim() < 2 else (part.shape[0], part.shape[1])


class _Fused(torch.autograd.Function):
    """A fused attention kernel by what it allocates: output, log-sum-exp, and in the backward pass its workspace."""

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, bias: Any, lse_tokens: int, workspace: int) -> Any:
        """`query` `[batch, heads, tokens, width]`; returns that shape, stored as `[batch, tokens, heads, width]`."""
        batch, heads, tokens, _ = query.shape
        output = query.new_empty(batch, tokens, heads, value.shape[-1]).transpose(1, 2)
        lse = query.new_empty(batch, heads, lse_tokens, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, bias, output, lse)
        ctx.workspace = workspace
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        query, key, value, _, _, lse = ctx.saved_tensors
        work = (torch.empty_like(lse), query.new_empty(ctx.workspace, dtype=torch.uint8))
        found = (torch.empty_like(query), torch.empty_like(key), torch.empty_like(value))
        del work
        return (*found, None, None, None)


class MetaTracker(StorageTracker):
    """A tracker of what is done on `meta`, which answers questions to values."""

    def __init__(self, events: list[Event], padded: bool) -> None:
        """`padded` is as `answered` has it."""
        super().__init__(events)
        self._padded = padded

    def _result(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return answered(func, args, kwargs, self._padded)


class Emulated(TorchFunctionMode):
    """Autocast and attention as on `target`, for a model on `meta`."""

    def __init__(self, target: str, lower: torch.dtype | None) -> None:
        """`target` is `cuda` or `cpu`; `lower` what autocast computes in, None without autocast."""
        super().__init__()
        self._cuda = target == "cuda"
        self._lower = lower
        self._float32 = FLOAT32_ON_CUDA if self._cuda else FLOAT32_ON_CPU
        self._casts: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if self._lower is not None:
            if func in LOWER or func is F.scaled_dot_product_attention:
                args, kwargs = self._cast(args, self._to_lower), self._cast(kwargs, self._to_lower)
            elif func in self._float32 and not (func in _SUMS and kwargs.get("dtype") is not None):
                args, kwargs = self._cast(args, _to_float32), self._cast(kwargs, _to_float32)
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _cast(self, found: Any, how: Any) -> Any:
        if isinstance(found, dict):
            return {name: self._cast(value, how) for name, value in found.items()}
        if isinstance(found, tuple | list):
            return type(found)(self._cast(value, how) for value in found)
        return how(found) if isinstance(found, torch.Tensor) and found.device.type == "meta" else found

    def _to_lower(self, tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point() or tensor.dtype in (self._lower, torch.float64):
            return tensor
        weight = tensor.is_leaf and tensor.requires_grad and not tensor._is_view()
        if not (weight and tensor.dtype == torch.float32):
            return tensor.to(self._lower)
        # As autocast does: one copy of each trained weight until it ends. The weight is kept too, for its identity.
        if id(tensor) not in self._casts:
            self._casts[id(tensor)] = (tensor, tensor.to(self._lower))
        return self._casts[id(tensor)][1]

    def forget_casts(self) -> None:
        """The end of the forward pass, where autocast lets go of its copies of trained weights."""
        self._casts.clear()

    def _attention(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Any:
        bias = attn_mask
        if bias is not None and bias.dtype == torch.bool:
            bias = torch.zeros_like(bias, dtype=query.dtype).masked_fill(bias.logical_not(), -math.inf)
        kernel = (self._kernel_on_cuda if self._cuda else _kernel_on_cpu)(
            query, key, value, bias, dropout_p, enable_gqa
        )
        if kernel == "math":
            found = _ATEN._scaled_dot_product_attention_math(
                query, key, value, bias, dropout_p, is_causal, None, scale=scale, enable_gqa=enable_gqa
            )
            return found[0]
        tokens, width = query.shape[-2], query.shape[-1]
        accumulated = 4 * query.shape[0] * query.shape[1] * tokens * width
        if kernel == "efficient":
            if bias is not None and bias.shape[-1] % 16:
                # The kernel wants rows of a multiple of 16; the padded copy is what it keeps.
                bias = F.pad(bias, (0, 16 - bias.shape[-1] % 16))
            work = accumulated if query.dtype != torch.float32 else 0
            return _Fused.apply(query, key, value, bias, -(-tokens // 32) * 32, work)
        work = accumulated if kernel == "flash" else 0
        return _Fused.apply(query, key, value, bias, tokens, work)

    def _kernel_on_cuda(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: Any, dropout: float, grouped: bool
    ) -> str:
        """The order of torch's own choice: flash, then memory-efficient, then plain matrix products."""
        if query.dim() != 4 or query.shape[-1] != value.shape[-1]:
            return "math"
        if bias is None and query.dtype in (torch.float16, torch.bfloat16) and query.shape[-1] <= 256:
            return "flash"
        aligned = query.shape[-1] % (4 if query.dtype == torch.float32 else 8) == 0
        same = query.shape[1] == key.shape[1]
        return "efficient" if same and aligned and not (bias is not None and bias.requires_grad) else "math"


def _kernel_on_cpu(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: Any, dropout: float, grouped: bool
) -> str:
    """Asks torch itself, with tensors of the same shapes that nothing is written to."""
    if query.dim() != 4:
        return "math"

    def like(tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")

    with torch._C.DisableTorchFunction():
        mask = None if bias is None else like(bias)
        chosen = torch._fused_sdp_choice(like(query), like(key), like(value), mask, dropout, False, enable_gqa=grouped)
    return "cpu" if chosen == 1 else "math"


def _to_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


@contextmanager
def without_values() -> Iterator[None]:
    """Inside, torch asks no values of `meta` by itself: all elements count as nonzero, distributions check nothing."""
    checked = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        with fx_config.patch(meta_nonzero_assume_all_nonzero=True):  # type: ignore[attr-defined]  # added at import
            yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(checked)


@contextmanager
def on_meta(padded: bool = True) -> Iterator[None]:
    """Inside, what is created without a device lies on `meta`, and questions to values there are answered."""
    with without_values(), torch.device("meta"), Values(padded):
        yield
