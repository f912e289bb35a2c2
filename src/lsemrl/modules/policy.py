"""The policy: a causal language model, what of it is trained, and the two models it is held against.

The reference is what the KL penalty pulls towards; the base is the model as published, against which the tax is
measured. With LoRA both live in the same weights: the base is the adapter switched off, the reference a frozen copy
of the adapter that training started from. Nothing is ever merged in place.

Left out on purpose: adapters other than LoRA.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule

from lsemrl import kernels
from lsemrl.kernels.divergence import Head, Likeliest, divergence_loss
from lsemrl.modules.adapters.calls import none_read_past
from lsemrl.modules.adapters.config import new_config, read_config
from lsemrl.modules.adapters.embeddings import head_logits, output_head
from lsemrl.modules.adapters.files import check_passport, read_tensors, read_written, write_adapter
from lsemrl.modules.adapters.loading import (
    REFERENCE,
    add_reference,
    check_shardable,
    new_adapter,
    read_adapter,
    reference_on,
)
from lsemrl.modules.adapters.merging import merged_adapters
from lsemrl.modules.adapters.scaling import scale_adapter
from lsemrl.modules.base_model import read_model
from lsemrl.modules.families import unshared
from lsemrl.modules.forward import Way, predictors, prove, score_logits
from lsemrl.modules.losses import LossFunction
from lsemrl.modules.packing import Packed
from lsemrl.modules.policy_settings import PolicySettings
from lsemrl.modules.pretrained import adapter_tokenizer, fingerprint, read_config_and_tokenizer
from lsemrl.modules.recomputation import recompute_layers
from lsemrl.modules.sharding import Traffic, checked, gathered_weights, spread, whole_state
from lsemrl.modules.whole_models import ends, write_model
from lsemrl.types import Sequences, UserError


class Policy(nn.Module):
    """A language model with its tokenizer; weights are read by `load`, so that mistakes elsewhere surface first.

    Attributes:
        settings: What it was made from.
        config: What the model says of itself.
        tokenizer: Pads on the left; has an EOS and a padding token, which may be the same.
        base_tokenizer: That of the base, where the adapter, or full fine-tuning, brought another.
        model: The causal LM, wrapped by peft when it carries an adapter.
        fingerprint: Tells this base model from others.
    """

    model: Any
    fingerprint: str

    def __init__(self, settings: PolicySettings) -> None:
        """Read the tokenizer and check the settings against the files.

        Raises:
            UserError: No model, tokenizer or adapter is where the settings say.
        """
        super().__init__()
        self.settings = settings
        self.config, self.tokenizer = read_config_and_tokenizer(settings.path, trust=settings.trust_remote_code)
        self.base_tokenizer = self.tokenizer
        self.adapter = settings.adapter_folder
        self.adapter_config: LoraConfig | None = new_config(settings.lora) if settings.train == "lora" else None
        if self.adapter:
            self.adapter_config = read_config(self.adapter)
            self.tokenizer = adapter_tokenizer(self.adapter, self.tokenizer, trust=settings.trust_remote_code)
        self.resized = False  # whether the adapter brought other rows of embeddings than the base has
        self.model = None
        self.reference_model: Any = None  # only full fine-tuning needs a second copy
        self.traffic: Traffic | None = None  # what sharding costs, where weights are sharded
        self._way: Way | None = None  # through the model, once it is proven on the first rows
        self.decoders: dict[str, Any] = {}  # ways of reading token by token, once they are proven, by engine

    def load(self, *, plain: bool = False) -> None:
        """Read the weights and set up adapter, reference and checkpointing. Calling it again changes nothing.

        Args:
            plain: Whether a base of 4 bits becomes the float32 model that it computes as.

        Raises:
            UserError: The adapter was trained on another base model.
        """
        if self.model is not None:
            return
        settings = self.settings
        tensors = read_tensors(self.adapter) if self.adapter else {}
        model = read_model(settings.path, settings, plain=plain)
        self.fingerprint = fingerprint(model)
        if self.adapter and self.adapter_config:
            check_passport(self.adapter, self.fingerprint)
            tokens = len(self.tokenizer)
            self.model, self.resized = read_adapter(model, self.adapter_config, tensors, tokens, self.adapter)
            if settings.adapter_scale != 1:
                scale_adapter(self.model, settings.adapter_scale, str(self.adapter), resized=self.resized)
        elif self.adapter_config:
            self.model = new_adapter(model, self.adapter_config, settings.lora)
        else:
            self.model = model
            if settings.reference != "none":
                self.reference_model = copy.deepcopy(model).requires_grad_(False).eval()
        if self.adapted and settings.copies_adapter:
            add_reference(self.model)
        if settings.gradient_checkpointing:
            recompute_layers(self.model)
            # A frozen embedding gives checkpointed layers no input that asks for gradients, and LoRA none in return.
            self.model.enable_input_require_grads()
        self.model.train()  # transformers reads models in eval mode, where dropout is off

    def forward(self, **inputs: Any) -> Any:
        """The model's own forward pass, by the way on which sharded weights are gathered."""
        return self.model(**inputs)

    def shard(self, mesh: DeviceMesh) -> None:
        """Spread every decoder layer over the ranks of `mesh` (FSDP2), and the rest as one more piece.

        Weights keep their dtypes: a frozen base in bfloat16 travels as such, adapters in float32.
        """
        check_shardable(self.model)
        models = [model for model in (self.model, self.reference_model) if model is not None]
        layers = [layer for model in models for layer in model.get_decoder().layers]
        self.traffic = spread(self, layers, mesh, called=("logprobs", "loss", "predictions", "divergence"))

    @property
    def sharded(self) -> bool:
        """Whether weights are spread over ranks, which then must take every step together."""
        return isinstance(self, FSDPModule)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Inside, the weights are whole on every rank, if they are to be gathered for sampling; all must enter."""
        whole = self.sharded and self.settings.gather_for_sampling
        with gathered_weights(self) if whole else nullcontext():
            yield

    @property
    def adapted(self) -> bool:
        """Whether training touches an adapter rather than the weights themselves."""
        return isinstance(self.model, PeftModel)

    def eos_ids(self) -> list[int]:
        """Every id that ends a completion."""
        return ends(self.model, self.tokenizer)

    @property
    def shares_prompts(self) -> bool:
        """Whether siblings are computed behind one prompt, as far as is known yet."""
        return self._way == "shared" or (self._way is None and unshared(self.model) is None)

    def logprobs(self, sequences: Sequences, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Score completions under the current weights and mode.

        Args:
            sequences: N completions; siblings share the computation of their prompt.
            temperature: Divides the logits; the temperature that sampled, so that ratios compare like with like.

        Returns:
            logprobs_NT and entropy_NT, float32, in nats; padding holds 0. The entropy carries no gradient.
        """
        states_MH, packed = self._predictors(sequences)
        if self._way == "plain":
            scored = score_logits(states_MH, packed.targets_M, temperature)
        else:
            weight_VH, bias_V = output_head(self.model)
            scored = kernels.token_logprobs(
                states_MH, weight_VH, packed.targets_M, bias_V=bias_V, temperature=temperature
            )
        mask_NT = sequences.completion_mask_NT
        zeros_NT = torch.zeros(mask_NT.shape, device=mask_NT.device)
        logprobs_NT, entropy_NT = (zeros_NT.masked_scatter(mask_NT, scored_M) for scored_M in scored)
        return logprobs_NT, entropy_NT

    def loss(
        self, sequences: Sequences, loss_fn: LossFunction, temperature: float = 1.0, *, whole_rows: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A loss on the log-probs of completion tokens, in one pass over the head.

        Args:
            sequences: N completions of M tokens together, completion by completion.
            loss_fn: From a slice of the M tokens, their log-probs and entropies, their share of the loss and metrics.
            temperature: As in `logprobs`.
            whole_rows: Whether no completion may be cut between two slices.

        Returns:
            The sum of the shares, to call backward on, and the sums of the metrics.
        """
        states_MH, packed = self._predictors(sequences)
        if self._way == "plain":
            logprobs_M, entropy_M = score_logits(states_MH, packed.targets_M, temperature)
            return loss_fn(slice(0, len(logprobs_M)), logprobs_M, entropy_M)
        weight_VH, bias_V = output_head(self.model)
        lengths = packed.lengths if whole_rows else None
        return kernels.fused_policy_loss(
            states_MH, weight_VH, packed.targets_M, loss_fn, lengths=lengths, bias_V=bias_V, temperature=temperature
        )

    def predictions(self, sequences: Sequences) -> Callable[[slice], Tensor]:
        """Compute `sequences` now; the function returned gives the float32 logits [C, V] of a slice of its tokens.

        The head is computed in float32 whatever the model's dtype: logits rounded to bfloat16 are noise, and a
        divergence counts all noise as distance. Only a head that does more than multiply rounds as it does.
        """
        states_MH, _ = self._predictors(sequences)
        if self._way == "plain":
            return lambda tokens: states_MH[tokens].float()
        head = output_head(self.model, torch.float32)
        return lambda tokens: head_logits(states_MH[tokens].float(), *head)

    def divergence(
        self, sequences: Sequences, weights_M: Tensor, kept: Likeliest | None = None
    ) -> tuple[Tensor, Tensor]:
        """How far the policy is from its base along texts.

        Args:
            sequences: N texts of M tokens together.
            weights_M: What each token counts.
            kept: What is known of the base's distributions; None computes the base beside the policy.

        Returns:
            The weighted sum of KL(base ‖ policy), to call backward on, and the divergences [M], in nats.
        """

        def states() -> Head:
            states_MH, _ = self._predictors(sequences)
            return Head(states_MH, *(() if self._way == "plain" else output_head(self.model)))

        held: Head | Likeliest | None = kept
        if held is None:
            with self.base():
                held = states()
        return divergence_loss(states(), held, weights_M)

    def _predictors(self, sequences: Sequences) -> tuple[Tensor, Packed]:
        if self._way is None:
            with self.inference(), none_read_past(self.model):
                self._way = prove(self.model, sequences, self.settings.model)
        return predictors(self.model, sequences, self._way)

    @contextmanager
    def base(self) -> Iterator[None]:
        """Inside, the model is the one that was published, before any training.

        Raises:
            UserError: Full fine-tuning was set up to keep no copy, or one that moves.
        """
        if self.adapted:
            with self.inference(), self.model.disable_adapter():
                yield
            return
        if self.reference_model is None or self.settings.ref_model_sync_steps:
            raise UserError(
                "full fine-tuning kept no copy of the base; set policy.reference to base, and policy."
                "ref_model_sync_steps to null"
            )
        with self._second_model():
            yield

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the model is the KL reference."""
        assert self.settings.reference != "none"
        if self.adapted and REFERENCE in self.model.peft_config:
            with self.inference(), reference_on(self.model):
                yield
        elif self.adapted:  # a new adapter starts at zero, so the policy started as the base
            assert not self.adapter or self.settings.reference == "base"
            with self.base():
                yield
        else:
            with self._second_model():
                yield

    @contextmanager
    def _second_model(self) -> Iterator[None]:
        with self.inference():
            trained, self.model = self.model, self.reference_model
            try:
                yield
            finally:
                self.model = trained

    @contextmanager
    def inference(self) -> Iterator[None]:
        """No dropout, no gradients; the mode that was on comes back afterwards."""
        model, training = self.model, self.model.training
        model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            model.train(training)

    @contextmanager
    def merged(self, onednn: bool = False) -> Iterator[None]:
        """`inference` with the adapters added to the weights where that computes the same, see `merged_adapters`."""
        with self.inference(), merged_adapters(self.model, onednn):
            yield

    def trained(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def save(self, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write the adapter (after full fine-tuning, the model) and the tokenizer in their libraries' own formats.

        Args:
            folder: Made where it is missing.
            weights: The whole tensors of `trained`, where the policy itself holds shards.
        """
        self.save_weights(folder, weights)
        self.tokenizer.save_pretrained(folder)

    def save_weights(self, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """`save` without the tokenizer."""
        whole = {name.removeprefix("model."): value for name, value in (weights or {}).items()}
        if self.adapted:
            base = self.settings.base_named()
            write_adapter(self.model, folder, base, self.fingerprint, whole, resized=self.resized)
        else:
            write_model(self.model, self.tokenizer, folder, whole_state(self.model, whole))

    def read(self, folder: Path) -> dict[str, Tensor]:
        """The weights that `save` wrote, by the names of `trained`.

        Raises:
            UserError: They are not those of this policy.
        """
        trained = self.trained()
        if not self.adapted:  # of experts and the like files have other names than the model
            with torch.random.fork_rng(devices=[]):  # building it draws from the run's random numbers
                parameters = read_model(str(folder), self.settings).named_parameters()
            return checked(folder, {f"model.{name}": weight.detach() for name, weight in parameters}, trained)
        names: dict[Tensor, str] = {weight: name for name, weight in trained.items()}
        found = read_written(self.model, folder, resized=self.resized)
        return {names[weight]: value for weight, value in found.items()}
