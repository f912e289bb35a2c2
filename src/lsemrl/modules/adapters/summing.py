"""Base and adapter in one sum, where layers are computed in bfloat16 or in float32."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lsemrl.matmul import product_dtype
from lsemrl.modules.adapters.merging import is_plain


class SummedLinear(Linear):
    """peft's linear, which adds base and factors in one sum.

    In bfloat16 it is rounded once. peft rounds what the base makes, and then the sum of that and what the factors make.
    The first already is a number of bfloat16, so that a second summand of less than half a step is always left out: a
    small adapter would be scored and trained as if most of it were not there. Within the base's own sum it counts, as
    it does in merged weights.

    In float32 the factors' product is added where the base's lies, and so are the gradients: peft passes over all that
    a layer makes three times more, for a tenth of an update on a CPU.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As peft's."""
        base, layer = self.base_layer, self  # type: Any, Any
        other = args or kwargs or layer.merged or type(base) is not nn.Linear or not is_plain(layer)
        dtype = product_dtype(base.weight)
        if other or dtype != product_dtype(x) or any(weight.requires_grad for weight in base.parameters()):
            return super().forward(x, *args, **kwargs)
        if dtype == torch.bfloat16:
            return self._rounded_once(x)
        if dtype == x.dtype == base.weight.dtype == torch.float32:
            return self._added_in_place(x)
        return super().forward(x)

    def _rounded_once(self, x: Tensor) -> Tensor:
        base, layer = self.base_layer, self  # type: Any, Any
        bias = base.bias
        if layer.disable_adapters:  # the same kernel, so that an adapter that changes nothing is the base to the bit
            summand = x.new_zeros(base.out_features) if bias is None else bias
        else:
            name = layer.active_adapters[0]
            first, second = layer.lora_A[name], layer.lora_B[name]
            dropped = layer.lora_dropout[name](layer._cast_input_dtype(x, first.weight.dtype))
            summand = second(first(dropped)) * layer.scaling[name]
            summand = summand if bias is None else summand + bias
        shape = (*x.shape[:-1], base.out_features)
        summand_MO = summand.to(torch.bfloat16).expand(shape).reshape(-1, base.out_features)
        return torch.addmm(summand_MO, x.reshape(-1, base.in_features), base.weight.t()).view(shape)

    def _added_in_place(self, x: Tensor) -> Tensor:
        base, layer = self.base_layer, self  # type: Any, Any
        if layer.disable_adapters:
            return nn.functional.linear(x, base.weight, base.bias)
        name = layer.active_adapters[0]
        dropped = layer.lora_dropout[name](x)
        x_MI = x.reshape(-1, base.in_features)
        dropped_MI = x_MI if dropped is x else dropped.reshape(-1, base.in_features)
        factors = layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
        made_MO: Tensor = _AddedInPlace.apply(x_MI, dropped_MI, base.weight, base.bias, *factors)
        return made_MO.view(*x.shape[:-1], base.out_features)


class _AddedInPlace(torch.autograd.Function):
    """`x` @ `weight`.t() + `bias`, both frozen, + `scaling` * `dropped` @ `first`.t() @ `second`.t()."""

    @staticmethod
    def forward(
        ctx: Any,
        x_MI: Tensor,
        dropped_MI: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        first_RI: Tensor,
        second_OR: Tensor,
        scaling: float,
    ) -> Tensor:
        inner_MR = torch.mm(dropped_MI, first_RI.t()).mul_(scaling)
        ctx.save_for_backward(dropped_MI, weight_OI, first_RI, second_OR, inner_MR)
        ctx.scaling, ctx.one_input = scaling, dropped_MI is x_MI
        return nn.functional.linear(x_MI, weight_OI, bias_O).addmm_(inner_MR, second_OR.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_MO: Tensor) -> tuple[Tensor | None, ...]:
        dropped_MI, weight_OI, first_RI, second_OR, inner_MR = ctx.saved_tensors
        x_needed, _, _, _, first_needed, second_needed, _ = ctx.needs_input_grad
        grad_inner_MR = torch.mm(grad_MO, second_OR).mul_(ctx.scaling)
        grad_x_MI = grad_dropped_MI = None
        if x_needed:
            grad_x_MI = torch.mm(grad_MO, weight_OI)
            if ctx.one_input:
                grad_x_MI.addmm_(grad_inner_MR, first_RI)
            else:
                grad_dropped_MI = torch.mm(grad_inner_MR, first_RI)
        # The long side first, which a CPU multiplies faster.
        grad_first_RI = torch.mm(dropped_MI.t(), grad_inner_MR).t() if first_needed else None
        grad_second_OR = torch.mm(grad_MO.t(), inner_MR) if second_needed else None
        return grad_x_MI, grad_dropped_MI, None, None, grad_first_RI, grad_second_OR, None


def sum_once(model: nn.Module) -> None:
    """Have the linears that peft has adapted compute as `SummedLinear`."""
    for module in model.modules():
        if type(module) is Linear:
            module.__class__ = SummedLinear
