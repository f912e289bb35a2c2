from __future__ import annotations

import errno
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer

from forks import Fork, script
from lsemrl.rewards.cache import VectorCache, fingerprint, identity, user_cache_folder

CPU = torch.device("cpu")
TEXT = "བོད་ཡིག"


@pytest.fixture
def vector_H() -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(7, generator=torch.Generator().manual_seed(0)), dim=0)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("text", [TEXT, "", "a" * 10_000, "../../etc", "\ud800", "line\nbreak\0"])
def test_what_is_put_is_got_to_the_bit(tmp_path: Path, vector_H: torch.Tensor, text: str) -> None:
    VectorCache(tmp_path / "new" / "folder").put(text, vector_H)
    got_H = VectorCache(tmp_path / "new" / "folder").get(text)
    assert got_H is not None and got_H.dtype == torch.float32 and torch.equal(got_H, vector_H)
    assert VectorCache(tmp_path / "new" / "folder").get(text + " ") is None
    assert len(files(tmp_path)) == 1, "nothing is left of what was written aside"


def test_an_empty_cache_has_nothing_and_makes_nothing(tmp_path: Path) -> None:
    assert VectorCache(tmp_path / "none").get(TEXT) is None
    assert not (tmp_path / "none").exists()


def truncated(content: bytes) -> bytes:
    return content[:-1]


def emptied(content: bytes) -> bytes:
    return b""


def headless(content: bytes) -> bytes:
    return content[:4]


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def lengthened(content: bytes) -> bytes:
    return content + bytes(4)


@pytest.mark.parametrize("damage", [truncated, emptied, headless, flipped, lengthened])
def test_damage_is_a_miss_told_once_and_repaired(
    tmp_path: Path, vector_H: torch.Tensor, damage: Callable[[bytes], bytes]
) -> None:
    cache = VectorCache(tmp_path)
    cache.put(TEXT, vector_H)
    cache.put("other", vector_H)
    for path in files(tmp_path):
        path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match="damaged"):
        assert cache.get(TEXT) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache.get("other") is None
        cache.put(TEXT, vector_H)
    got_H = VectorCache(tmp_path).get(TEXT)
    assert got_H is not None and torch.equal(got_H, vector_H)


def test_a_folder_that_cannot_be_made_is_told_once(tmp_path: Path, vector_H: torch.Tensor) -> None:
    (tmp_path / "file").write_text("")
    cache = VectorCache(tmp_path / "file" / "folder")
    assert cache.get(TEXT) is None
    with pytest.warns(UserWarning, match=r"cannot be cached in .*in memory only; cache_dir"):
        cache.put(TEXT, vector_H)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.put("other", vector_H)
    assert cache.get(TEXT) is None


def test_a_full_disk_is_told_once_and_leaves_nothing_behind(
    tmp_path: Path, vector_H: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = VectorCache(tmp_path)
    cache.put("before", vector_H)
    write = Path.write_bytes

    def fill(path: Path, content: bytes) -> int:
        write(path, content[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill)
    with pytest.warns(UserWarning, match="No space left on device"):
        cache.put(TEXT, vector_H)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.put("other", vector_H)
    assert len(files(tmp_path)) == 1
    assert cache.get("before") is not None, "what is there is still read"


def test_processes_may_write_at_once(tmp_path: Path) -> None:
    code = """
import sys, warnings, torch
from pathlib import Path
from lsemrl.rewards.cache import VectorCache
warnings.simplefilter("error")
cache = VectorCache(Path(sys.argv[1]))
for round in range(20):
    for text in range(10):
        got = cache.get(str(text))
        assert got is None or torch.equal(got, torch.full((500,), float(text))), got
        cache.put(str(text), torch.full((500,), float(text)))
"""
    writers = [Fork([code, str(tmp_path)], script) for _ in range(2)]
    assert [writer.end().returncode for writer in writers] == [0, 0]
    assert len(files(tmp_path)) == 10


@pytest.fixture
def encoder(encoder_path: str) -> SentenceTransformer:
    return SentenceTransformer(encoder_path, device="cpu")


def test_the_fingerprint_can_be_had_whatever_names_precision_was_set_by(encoder: SentenceTransformer) -> None:
    """PyTorch refuses to say by the old ones what was set by the new ones."""
    before = torch.backends.mkldnn.matmul.fp32_precision
    try:
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        with pytest.raises(RuntimeError, match="mix of the legacy and new APIs"):
            torch.get_float32_matmul_precision()
        assert fingerprint(encoder, CPU) is not None
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


def test_the_fingerprint_outlasts_loading_and_use(encoder: SentenceTransformer, encoder_path: str) -> None:
    before = fingerprint(encoder, CPU)
    encoder.encode(["the cat", "the big cat saw"])
    assert before == fingerprint(encoder, CPU) == fingerprint(SentenceTransformer(encoder_path, device="cpu"), CPU)
    assert before is not None and len(before) == 32


def one_weight(encoder: SentenceTransformer) -> None:
    weights = [weight for weight in encoder.parameters() if weight.dim() == 2]
    weights[0].data[-1, -1] += 1e-3


def narrower(encoder: SentenceTransformer) -> None:
    encoder.bfloat16()


def shorter(encoder: SentenceTransformer) -> None:
    encoder.max_seq_length = 8


def pooling(encoder: SentenceTransformer) -> None:
    encoder[1].pooling_mode = "max"


def prompted(encoder: SentenceTransformer) -> None:
    encoder.prompts["query"] = "query: "


def prompted_by_default(encoder: SentenceTransformer) -> None:
    encoder.default_prompt_name = "query"


def cut(encoder: SentenceTransformer) -> None:
    encoder.truncate_dim = 8


def another_token(encoder: SentenceTransformer) -> None:
    encoder.tokenizer.add_tokens(["catdog"])


def another_constant(encoder: SentenceTransformer) -> None:
    encoder[0].auto_model.config.layer_norm_eps = 1e-3


def threads(encoder: SentenceTransformer) -> None:
    torch.set_num_threads(torch.get_num_threads() + 1)


@pytest.mark.parametrize(
    "change",
    [
        one_weight,
        narrower,
        shorter,
        pooling,
        prompted,
        prompted_by_default,
        cut,
        another_token,
        another_constant,
        threads,
    ],
)
def test_the_fingerprint_tells(encoder: SentenceTransformer, change: Callable[[SentenceTransformer], None]) -> None:
    before, count = fingerprint(encoder, CPU), torch.get_num_threads()
    try:
        change(encoder)
        assert fingerprint(encoder, CPU) not in (before, None)
    finally:
        torch.set_num_threads(count)


def test_a_tokenizer_without_written_form_has_no_fingerprint(
    encoder: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SentenceTransformer, "tokenizer", property(lambda self: object()))
    assert fingerprint(encoder, CPU) is None


def test_the_users_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache_folder() == tmp_path / "lsemrl" / "embeddings"
    monkeypatch.setenv("HOME", str(tmp_path))
    for unset in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert user_cache_folder() == tmp_path / ".cache" / "lsemrl" / "embeddings"


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert user_cache_folder() is None


def test_an_identity_is_of_what_an_encoder_is_and_not_of_where_it_lies(encoder_path: str, tmp_path: Path) -> None:
    def load(path: Path | str) -> SentenceTransformer:
        return SentenceTransformer(str(path), device="cpu", local_files_only=True)

    shutil.copytree(encoder_path, tmp_path / "copy")
    one, same, other = load(encoder_path), load(tmp_path / "copy"), load(encoder_path)
    threads = torch.get_num_threads()
    before = identity(one)
    torch.set_num_threads(threads + 1)
    assert before is not None and identity(one) == identity(same) == before
    torch.set_num_threads(threads)
    with torch.no_grad():
        next(other.parameters()).add_(1)
    assert identity(other) != before
    same.max_seq_length = 3
    assert identity(same) != before
