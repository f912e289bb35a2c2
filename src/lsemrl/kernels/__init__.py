"""Log-probabilities and policy loss of a language-model head whose [tokens, vocabulary] logits never exist whole.

Two functions, each with a Triton path for CUDA tensors and a torch path for every device (`backend`: auto, triton or
torch). `token_logprobs` scores given tokens: one matmul without gradient. `fused_policy_loss` computes a loss of those
scores AND its gradient in one pass over chunks of tokens: two matmuls when the head is frozen. It can, because the
loss of a chunk needs no other chunk, so its gradient is known while the chunk's logits are still there.

`reference` defines what both compute. Importing this package does not import Triton.
"""

from lsemrl.kernels.dispatch import Backend
from lsemrl.kernels.fused_policy_loss import LossFn, fused_policy_loss
from lsemrl.kernels.head import default_chunk_tokens
from lsemrl.kernels.token_logprobs import token_logprobs

__all__ = ["Backend", "LossFn", "default_chunk_tokens", "fused_policy_loss", "token_logprobs"]
