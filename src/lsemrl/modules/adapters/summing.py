"""Base and adapter in one sum, where layers are computed in bfloat16."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn

from lsemrl.matmul import product_dtype
from lsemrl.modules.adapters.merging import is_plain


class SummedLinear(Linear):
    """peft's linear, which in bfloat16 rounds the sum of base and factors once.

    peft rounds what the base makes, and then the sum of that and what the factors make. The first already is a number
    of bfloat16, so that a second summand of less than half a step is always left out: a small adapter would be scored
    and trained as if most of it were not there. Within the base's own sum it counts, as it does in merged weights.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As peft's."""
        base, layer = self.base_layer, self  # type: Any, Any
        other = args or kwargs or layer.merged or type(base) is not nn.Linear or not is_plain(layer)
        if other or not product_dtype(x) == product_dtype(base.weight) == torch.bfloat16:
            return super().forward(x, *args, **kwargs)
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


def sum_once(model: nn.Module) -> None:
    """Have the linears that peft has adapted compute as `SummedLinear`."""
    for module in model.modules():
        if type(module) is Linear:
            module.__class__ = SummedLinear
