"""Vectors of texts on disk, so that a reference is encoded once for all runs and not once for each."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from lsemrl.matmul import float32_products

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from transformers import PretrainedConfig

_CHECKSUM_BYTES = 4
_PASSING = {"_name_or_path", "transformers_version"}
"""Fields of a configuration that say where it is from."""


class VectorCache:
    """Vectors by text, a file each.

    Files rather than a database: a file that is written aside and renamed is whole or absent however many processes
    write, on network file systems too, where database locks cannot be trusted, and a damaged one costs one vector.
    Nothing here stops a run: what cannot be read is a miss, and after the first failed write nothing more is written.
    Each is warned of once. Nothing is ever deleted; the folder can be, at any time.

    Args:
        folder: Where the files lie; made at the first write. Everything else that decides a vector is its matter: use
            another folder for another encoder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writing = True
        self._damage_told = False

    def get(self, text: str) -> Tensor | None:
        """The vector of `text`: float32 [H], the bits that were put; None if there is none that is whole."""
        try:
            content = self._path(text).read_bytes()
        except OSError:
            return None
        checksum, body = content[:_CHECKSUM_BYTES], content[_CHECKSUM_BYTES:]
        if not body or checksum != _checksum(body):
            if not self._damage_told:
                self._damage_told = True
                warnings.warn(f"embeddings cached in {self.folder} are damaged: they are made anew", stacklevel=2)
            return None
        return torch.from_numpy(np.frombuffer(body, dtype="<f4").astype(np.float32))

    def put(self, text: str, vector_H: Tensor) -> None:
        """Keep the vector of `text`, float32 [H] on the CPU, if it can be written."""
        if not self._writing:
            return
        path = self._path(text)
        part = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        body = vector_H.numpy().astype("<f4").tobytes()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(_checksum(body) + body)
            part.replace(path)
        except OSError as error:
            self._writing = False
            with contextlib.suppress(OSError):
                part.unlink()
            warnings.warn(
                f"embeddings cannot be cached in {self.folder} ({error.strerror}): this run keeps them in memory only; "
                "cache_dir names another folder",
                stacklevel=2,
            )

    def _path(self, text: str) -> Path:
        name = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        return self.folder / name[:2] / name[2:]


def user_cache_folder() -> Path | None:
    """Where this user's embeddings are shared by runs, after the XDG convention; None for a user without a home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "lsemrl" / "embeddings"
    except RuntimeError:
        return None


def identity(encoder: SentenceTransformer) -> str | None:
    """A hash of what `encoder` is, wherever it lies and whatever computes it: weights, tokenizer and configuration.

    Returns:
        12 hexadecimal digits; None for a tokenizer that has no written form to be hashed.
    """
    facts = _facts(encoder)
    return None if facts is None else hash_of(encoder, facts)[:12]


def fingerprint(encoder: SentenceTransformer, device: torch.device) -> str | None:
    """A hash of all that decides the bits of a vector besides its text.

    That is the encoder (weights, configuration, tokenizer, limit, prompts) and what computes it (device, threads,
    libraries), which all may change the last bits. Reading the weights takes about half a second per GB.

    Returns:
        32 hexadecimal digits; None for a tokenizer that has no written form to be hashed.
    """
    import sentence_transformers
    import transformers

    facts = _facts(encoder)
    if facts is None:
        return None
    facts |= {
        "attention": sorted({str(getattr(config, "_attn_implementation", None)) for config in _configs(encoder)}),
        "versions": [torch.__version__, transformers.__version__, sentence_transformers.__version__],
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else [device.type, torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()],
        "products": float32_products(device),
    }
    return hash_of(encoder, facts)


def _facts(encoder: SentenceTransformer) -> dict[str, Any] | None:
    """What an encoder is, besides its weights; None for a tokenizer that has no written form."""
    tokenizer: Any = encoder.tokenizer
    tokenizer = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(tokenizer, "to_str"):
        return None
    rules = json.loads(tokenizer.to_str())
    rules["truncation"] = rules["padding"] = None  # what the last call left behind
    configs = (json.loads(config.to_json_string()) for config in _configs(encoder))
    return {
        "tokenizer": rules,
        "modules": repr(encoder),
        "configs": sorted(
            json.dumps({name: value for name, value in config.items() if name not in _PASSING}, sort_keys=True)
            for config in configs
        ),
        "max_seq_length": encoder.max_seq_length,
        "prompts": [encoder.prompts, encoder.default_prompt_name],
        "truncate_dim": encoder.truncate_dim,
    }


def _configs(encoder: SentenceTransformer) -> list[PretrainedConfig]:
    """Those of its transformers, each once."""
    from transformers import PretrainedConfig

    found = {id(config): config for module in encoder.modules() if (config := getattr(module, "config", None))}
    return [config for config in found.values() if isinstance(config, PretrainedConfig)]


def hash_of(model: nn.Module, facts: dict[str, Any]) -> str:
    """32 hexadecimal digits of its weights and of what else is known of it."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, weight in model.state_dict().items():
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.reshape(-1).view(torch.uint8).cpu().numpy())
    return digest.hexdigest()[:32]


def _checksum(body: bytes) -> bytes:
    return zlib.crc32(body).to_bytes(_CHECKSUM_BYTES, "little")
