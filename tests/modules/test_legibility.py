"""What cannot carry the text is refused before weights are read, and what carries it in part is told."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Pooling, StaticEmbedding, Transformer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    BloomConfig,
    FalconConfig,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    MambaConfig,
    MptConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

import short_runs
from lsemrl import micro
from lsemrl.commands.answers import answer, load
from lsemrl.commands.best_rows import write_best
from lsemrl.commands.init import init
from lsemrl.commands.readers import told_of_reading
from lsemrl.commands.trained import Trained
from lsemrl.data.prompts import PromptTemplate
from lsemrl.data.task import MicroRows
from lsemrl.data.tokens import target_ids
from lsemrl.data.translation import TranslationData
from lsemrl.errors import UserError
from lsemrl.metrics.settings import MetricSettings
from lsemrl.micro import corpus
from lsemrl.modules.base import PolicyModule
from lsemrl.modules.families import Reach, reach
from lsemrl.modules.grpo import GRPO
from lsemrl.modules.legibility import check_examples, look, read_by_encoder
from lsemrl.modules.policy import Policy
from lsemrl.modules.policy_settings import PolicySettings
from lsemrl.modules.spans import cut_short, fitting
from lsemrl.modules.trainer_data import TrainerData
from lsemrl.rewards import SemanticSimilarity
from lsemrl.rewards.base import RewardMix
from lsemrl.rewards.encoder import EncoderUse
from lsemrl.types import Example
from short_runs import TOKENS
from tiny import save_tiny_model

LATIN = "abcdefghijklmnopqrstuvwxyz"
ROWS = MicroRows(train=8, validation=4, test=4)
ALWAYS_THINKS = "{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}<|assistant|><think>\n"


def data(**settings: Any) -> TranslationData:
    return TranslationData(micro=ROWS, batch_size=4, **settings)


def word_pieces(*pieces: str, marks: bool = True) -> PreTrainedTokenizerFast:
    """Knows `pieces`; without `marks`, no accents and no vowel signs."""
    vocabulary = {piece: at for at, piece in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *pieces])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.NFC() if marks else normalizers.BertNormalizer(strip_accents=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", eos_token="[SEP]", cls_token="[CLS]"
    )


@pytest.fixture(scope="module")
def blind_policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model that knows Latin letters, tsheg and shad."""
    folder = save_tiny_model(tmp_path_factory.mktemp("blind"))
    word_pieces(*LATIN, "་", "།").save_pretrained(folder)
    return str(folder)


def save_encoder(folder: Path, tokenizer: PreTrainedTokenizerFast) -> str:
    tokenizer.save_pretrained(folder / "bert")
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder / "bert")
    modules = [Transformer(str(folder / "bert"), max_seq_length=64), Pooling(8, "mean")]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder / "encoder"))
    return str(folder / "encoder")


@pytest.fixture(scope="module")
def blind_encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_encoder(tmp_path_factory.mktemp("encoder"), word_pieces(*LATIN, "་", "།"))


def start(module: PolicyModule, rows: TranslationData, verb: str = "fit", folder: Path = Path("runs")) -> None:
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    getattr(trainer, verb)(module, datamodule=TrainerData(rows))


@pytest.mark.parametrize(("make", "verb"), [("sft", "fit"), ("grpo", "fit"), ("grpo", "test"), ("sft", "validate")])
def test_a_policy_without_the_script_is_refused_before_weights_are_read(
    blind_policy: str, make: str, verb: str, tmp_path: Path
) -> None:
    module = getattr(short_runs, make)(blind_policy)
    with pytest.raises(
        UserError, match=r"tokenizer of policy.model '.*' has no token for 100.0% of the letters of ref"
    ):
        start(module, data(), verb, tmp_path)
    assert module.policy.model is None


def test_a_policy_that_cannot_read_sources_is_refused(tmp_path: Path) -> None:
    rows = [
        Example(id=str(at), prompt=f"a b {source}", source=source, references=("a b",))
        for at, source in enumerate("你好")
    ]
    found = look("m", word_pieces(*LATIN), rows, {}, learned=True)
    assert len(found.refusals) == 1
    assert "100.0% of the letters of sources (such as '你')" in found.refusals[0]


def test_few_references_among_many_sentences_are_looked_at() -> None:
    bare = [Example(id=str(at), prompt=f"a {at}", source=f"a {at}", references=()) for at in range(3000)]
    answered = [Example(id=f"v{at}", prompt="a b", source="a b", references=("བོད",)) for at in range(40)]
    found = look("m", word_pieces(*LATIN, *"0123456789"), [*bare, *answered], {}, learned=False)
    assert found.rows == 40 and "100.0% of the letters of references" in found.refusals[0]
    assert look("m", word_pieces(*LATIN, *"0123456789"), bare, {}, learned=False).rows == 0


def test_what_is_held_against_sources_has_to_read_them(blind_encoder: str) -> None:
    rows = [Example(id=str(at), prompt="你", source=source, references=("a b",)) for at, source in enumerate("你好")]
    part = SemanticSimilarity(encoder=blind_encoder, against="source", device="cpu", cache_dir="none")
    for of_sources in (False, True):
        uses = {"rewards.similarity.encoder": EncoderUse(part.encoder, of_sources)}
        readings = look("m", word_pieces(*LATIN, "你", "好"), rows, uses, learned=False).readings
        told = [one.refusal for one in readings if one.by == "rewards.similarity.encoder" and one.refusal]
        assert len(told) == of_sources and all("100.0% of the letters of sources" in one for one in told)
    module = short_runs.grpo("micro")
    module.reward_mix = RewardMix({"similarity": part})
    assert module.encoders()[f"rewards.similarity.encoder {blind_encoder!r}"].of_sources


def test_what_a_policy_carries_in_part_is_told_with_its_share() -> None:
    known = [Example(id=str(at), prompt="a", source="a", references=("a",)) for at in range(8)]
    rows = [*known, Example(id="odd", prompt="a", source="a", references=("བ",)), replace_reference(known[0], "A")]
    found = look("m", word_pieces(*LATIN), rows, {}, learned=True)
    assert found.refusals == []
    assert "8 of 10 references come back; ends with [SEP], pads with [PAD]" in found.lines[0]
    assert "references 1.00 tokens per word, 20.0% unknown" in found.lines[0]
    assert found.lines[-2].startswith(
        "warning: the tokenizer of policy.model 'm' has no token for 20.0% of the letters"
    )
    assert found.lines[-1].endswith(
        "2 of 10 references would come back from the policy's tokenizer as other texts (odd, upper)"
    )


def test_wording_that_is_unknown_is_told_and_chat_markers_are_no_wording() -> None:
    tokenizer = word_pieces(*LATIN)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    for wording, told in (("<|user|>", 0), ("<|user|>翻译", 1)):
        rows = [Example(id="1", prompt=f"{wording}a b", source="a b", references=("a",))]
        found = look("m", tokenizer, rows, {}, learned=True)
        assert found.refusals == []
        assert ("; wording" in found.lines[0]) == bool(told)  # not of "0.00 tokens per word"
        for lines in (found.lines, found.warnings):
            assert len([line for line in lines if "of the letters of wording" in line]) == told
    unread = [Example(id="1", prompt="你", source="你", references=("a",))]
    assert not look("m", tokenizer, unread, {}, learned=True).warnings  # for what is refused is told as that


def test_a_policy_whose_references_come_back_with_other_letters_is_refused() -> None:
    tokenizer = AutoTokenizer.from_pretrained(micro.POLICY)
    tokenizer.backend_tokenizer.decoder = decoders.Fuse()
    rows = [Example(id=text, prompt="a", source="a", references=(text,)) for text in ("དེབ་", "ཡི་གེ་", "a")]
    (refusal,) = look("m", tokenizer, rows, {}, learned=True).refusals
    assert "2 of 3 references (such as row དེབ་) would come back from the tokenizer of policy.model 'm' with" in refusal


def replace_reference(example: Example, text: str) -> Example:
    return dataclasses.replace(example, id="upper", references=(text,))


def with_encoder(model: str, encoder: str, **settings: Any) -> GRPO:
    module = short_runs.grpo(model)
    module.reward_mix = RewardMix({"similarity": SemanticSimilarity(encoder=encoder, **settings)})
    return module


def test_an_encoder_of_a_reward_without_the_script_is_refused(
    tiny_model: str, blind_encoder: str, tmp_path: Path
) -> None:
    module = with_encoder(tiny_model, blind_encoder)
    with pytest.raises(UserError, match=r"rewards.similarity.encoder '.*' has no token for 100.0% of the letters"):
        start(module, data(), folder=tmp_path)
    assert module.policy.model is None


def test_an_encoder_of_a_metric_without_the_script_is_refused(
    tiny_model: str, blind_encoder: str, tmp_path: Path
) -> None:
    module = short_runs.sft(tiny_model)
    module.scorer = type(module.scorer)(MetricSettings(names=("similarity",), encoder=blind_encoder))
    with pytest.raises(UserError, match=r"metrics.encoder '.*' has no token for 100.0% of the letters"):
        start(module, data(), "test", tmp_path)


def test_an_encoder_that_drops_marks_or_reads_only_beginnings_is_told(tmp_path: Path) -> None:
    letters = [chr(point) for point in range(0x0F40, 0x0FBD)]
    pieces = [*letters, *(f"##{letter}" for letter in letters), "་", "།", " "]
    texts = ["ཀིང་ཁིང་", "ཀུང་ཁུང་", "ཀེང་ཁེང་"]
    seeing, dropping = (
        SentenceTransformer(save_encoder(tmp_path / str(marks), word_pieces(*pieces, marks=marks)), device="cpu")
        for marks in (True, False)
    )
    seen, dropped = (read_by_encoder("e", encoder, texts) for encoder in (seeing, dropping))
    assert seen is not None and seen.lost(0.01) is None
    assert dropped is not None and "reads 100.0% of the syllables of references as other syllables" in str(
        dropped.lost(0.5)
    )
    seeing.max_seq_length = 1
    beginnings = read_by_encoder("e", seeing, texts)
    assert beginnings is not None and beginnings.lost(0.5) == "e reads 100.0% of references as others of them"


def test_a_static_embedding_is_looked_at_too() -> None:
    tokenizer = word_pieces(*LATIN).backend_tokenizer
    encoder = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=4)], device="cpu")
    found = read_by_encoder("e", encoder, ["དབ་", "a b"])
    assert found is not None and found.carried.unknown == pytest.approx(0.5)


def test_a_static_embedding_rewards_too(tmp_path: Path) -> None:
    tokenizer = word_pieces(*LATIN).backend_tokenizer
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=4)], device="cpu").save(str(tmp_path / "e"))
    settings: dict[str, Any] = {"encoder": str(tmp_path / "e"), "device": "cpu", "cache_dir": "none"}
    assert SemanticSimilarity(**settings).similarity(["a b"], [["a b"]]).tolist() == pytest.approx([1.0])
    with pytest.raises(UserError, match=r"max_tokens is 4 in SemanticSimilarity, but encoder .* reads all of any text"):
        SemanticSimilarity(**settings, max_tokens=4)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (GPT2Config(n_positions=64), 64),
        (LlamaConfig(max_position_embeddings=4096), 4096),
        (LlamaConfig(max_position_embeddings=4096, rope_scaling={"type": "dynamic", "factor": 2.0}), 4096),
        (
            Qwen3Config(
                max_position_embeddings=32768,
                rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
            ),
            131072,
        ),
        (
            LlamaConfig(
                max_position_embeddings=131072,
                rope_scaling={
                    "rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192,
                    "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                },
            ),
            131072,
        ),
        (Gemma3Config(), 131072),  # of its text
        (OPTConfig(), 2048),
        (FalconConfig(), 2048),
        (FalconConfig(alibi=True), None),
        (BloomConfig(), None),
        (MptConfig(), None),
        (MambaConfig(), None),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_how_far_a_model_reads(config: PretrainedConfig, expected: int | None) -> None:
    assert reach(config) == (expected and Reach(sure=expected, most=expected))


def test_scaling_that_names_no_original_length_leaves_a_doubt() -> None:
    """Gemma 3 names the length after it, other models that before."""
    config = Gemma3TextConfig(max_position_embeddings=131072, rope_scaling={"factor": 8.0, "rope_type": "linear"})
    assert reach(config) == Reach(sure=131072, most=1048576)
    assert fitting("it", config, {"row": 131072, "prompt": 131073}) == [
        "the row: 131,072 of 131,072 positions (1,048,576 if max_position_embeddings is what they were before scaling)",
        "warning: the prompt: 131,073 of 131,072 positions "
        "(1,048,576 if max_position_embeddings is what they were before scaling)",
    ]
    with pytest.raises(UserError, match=r"comes to 1,048,577 tokens, but .* has 1,048,576 positions"):
        fitting("it", config, {"row": 1048577})


def shorten(folder: Path, count: int) -> str:
    """A tiny model of `count` positions."""
    save_tiny_model(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": count}))
    return str(folder)


def save_gpt2(folder: Path, count: int) -> str:
    tokenizer = AutoTokenizer.from_pretrained(micro.POLICY)
    tokenizer.save_pretrained(folder)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=1, n_positions=count, eos_token_id=1)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return str(folder)


def lengths(rows: TranslationData) -> dict[str, dict[str, int]]:
    rows.prepare(AutoTokenizer.from_pretrained(micro.POLICY))
    return rows.report


@pytest.mark.parametrize("save", [shorten, save_gpt2])
def test_what_is_longer_than_the_positions_is_refused_at_the_start(
    save: Callable[[Path, int], str], tmp_path: Path
) -> None:
    counts = lengths(data())
    row, prompt = counts["train"]["longest_row_kept"], counts["train"]["longest_prompt_kept"]
    longest = max(counts["validation"]["longest_prompt_kept"], prompt) + TOKENS
    for make, needed in (("sft", max(row, counts["validation"]["longest_prompt_kept"] + TOKENS)), ("grpo", longest)):
        module = getattr(short_runs, make)(save(tmp_path / make, needed - 1))
        with pytest.raises(
            UserError, match=f"comes to {needed} tokens, but policy.model .* has {needed - 1} positions"
        ):
            start(module, data(), folder=tmp_path)
        assert module.policy.model is None
    needed = counts["test"]["longest_prompt_kept"] + TOKENS
    module = short_runs.sft(save(tmp_path / "test", needed - 1))
    for verb in ("test", "predict"):
        with pytest.raises(UserError, match=f"longest test prompt with {TOKENS} new tokens comes to {needed} tokens"):
            start(module, data(), verb, tmp_path)
    with pytest.raises(UserError, match=f"longest train prompt with {TOKENS} new tokens comes to"):
        write_best(short_runs.grpo(save(tmp_path / "best", prompt + TOKENS - 1)), data(), tmp_path, {})


def test_what_just_fits_is_answered(tmp_path: Path) -> None:
    needed = lengths(data())["test"]["longest_prompt_kept"] + TOKENS
    start(short_runs.sft(save_gpt2(tmp_path / "gpt2", needed)), data(), "test", tmp_path)


def test_what_nobody_answers_needs_no_room_for_answers() -> None:
    policy = Policy(PolicySettings())
    policy.config = GPT2Config(n_positions=40)
    text = "朋友" * (30 // len(policy.tokenizer("朋友", add_special_tokens=False)["input_ids"]))
    row = Example(id="0", prompt=text, source=text, references=("厨师",))
    choice = dataclasses.replace(row, choices=("厨师", "僧人"))
    for name, rows in (("general", [choice]), ("text", [row])):
        lines = check_examples(policy, {name: rows}, {}, 20, unanswered=["text"])
        assert [line.partition(":")[0] for line in lines if "longest" in line] == [f"the longest {name} row"]
    with pytest.raises(UserError, match="longest general prompt with 20 new tokens"):
        check_examples(policy, {"general": [row]}, {}, 20)


def test_references_that_no_output_can_be_are_told(tokenizer_of_tiny_model: PreTrainedTokenizerBase) -> None:
    tokenizer, text = tokenizer_of_tiny_model, "དེབ་ཉོས།"
    row = Example(id="0", prompt="", source="", references=(text,))
    whole = len(target_ids(tokenizer, [text])[0])
    assert cut_short("test", tokenizer, [row], whole) == cut_short("test", tokenizer, [], 1) == []
    (line,) = cut_short("test", tokenizer, [row] * 9, whole - 1)
    assert line.startswith("warning: 9 of 9 test references have more tokens") and f"may have ({whole - 1})" in line
    assert not cut_short("test", tokenizer, [dataclasses.replace(row, choices=(text, "ཁ་"))], 1)
    said = check_examples(Policy(PolicySettings()), {"test": [row], "text": [row]}, {}, 2, unanswered=["text"])
    assert [line for line in said if "more tokens" in line] == cut_short("test", tokenizer, [row], 2)


def test_each_prompt_of_generate_is_held_against_the_positions(tmp_path: Path) -> None:
    model = shorten(tmp_path, 40)
    run = Trained(
        folder=tmp_path,
        config={},
        policy=PolicySettings(model=model, reference="none"),
        data=data(),
        sampling=dataclasses.replace(short_runs.grpo(model).sampling, max_new_tokens=6),
    )
    answers = answer(run, load(Policy(run.policy)), ["老师买了书。", "老师" * 40], run.sampling, batch_size=1)
    assert next(answers)
    with pytest.raises(
        UserError, match=r"the prompt of '老师老.*' with 6 new tokens comes to .* has 40 positions; shorten"
    ):
        next(answers)


def test_references_inside_a_thought_are_not_learned(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    (folder / "chat_template.jinja").write_text(ALWAYS_THINKS)
    thinking = data(template=PromptTemplate(enable_thinking=True))
    module = short_runs.sft(str(folder))
    with pytest.raises(UserError, match=r"end inside a thought \(<think>\).*set template.enable_thinking to false"):
        start(module, thinking, folder=tmp_path)
    assert module.policy.model is None
    start(short_runs.sft(str(folder)), data(), folder=tmp_path)  # it is closed
    start(short_runs.grpo(str(folder)), thinking, folder=tmp_path)  # outputs end it themselves


def test_references_that_end_the_thought_may_be_learned() -> None:
    tokenizer = AutoTokenizer.from_pretrained(micro.POLICY)
    for reference, refused in (("想</think>དེབ་", False), ("དེབ་", True)):
        rows = [Example(id="1", prompt="问<think>\n", source="问", references=(reference,))]
        assert bool(look("m", tokenizer, rows, {}, learned=True).refusals) is refused
        assert look("m", tokenizer, rows, {}, learned=False).refusals == []


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{% for m in messages %}<|user|>{{ m['content'] }}<|pad|>{% endfor %}<|assistant|>", True),
        ("{% for m in messages %}<|user|>{{ m['content'] }}<|end|>{% endfor %}<|assistant|>", False),
        ("{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}<|assistant|>", False),
        ("{{ raise_exception('no turns') if messages | length > 1 else messages[0]['content'] }}<|assistant|>", False),
    ],
    ids=["another", "the same", "none", "no turns"],
)
def test_a_template_that_ends_answers_otherwise_is_told(template: str, told: bool) -> None:
    tokenizer = AutoTokenizer.from_pretrained(micro.POLICY)
    assert tokenizer.eos_token == "<|end|>"
    tokenizer.chat_template = template
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "问"}], tokenize=False)
    rows = [Example(id="1", prompt=prompt, source="问", references=("དེབ་",))]
    warned = [line for line in look("m", tokenizer, rows, {}, learned=True).lines if "ends an answer with" in line]
    assert bool(warned) is told
    if told:
        assert "with <|pad|>, the tokenizer a text with <|end|>" in warned[0] and "unless eos_token in" in warned[0]
        plain = [Example(id="1", prompt="问", source="问", references=("དེབ་",))]
        assert look("m", tokenizer, plain, {}, learned=True).turn_end is None


def test_a_tokenizer_with_more_ids_than_embeddings_is_refused(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<bo>", "<zh>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match=r"has 2 tokens \(such as '<bo>'\) beyond the .* resize_token_embeddings"):
        Policy(PolicySettings(model=str(folder)))


def test_the_block_of_a_run_that_carries_all(tiny_model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        start(with_encoder(tiny_model, micro.NAME), data(), folder=tmp_path)
    told = caplog.text
    assert "0.0% unknown; wording" in told
    assert "12 of 12 references come back; ends with <|end|>, pads with <|pad|>" in told
    assert "text by rewards.similarity.encoder 'micro': references" in told
    assert f"the longest train prompt with {TOKENS} new tokens: " in told
    assert "prompts by the chat template show '翻译成藏文：{source}'; the answer follows" in told
    for name, count in (("train", 8), ("validation", 4)):  # which none of these few tokens can be
        assert f"warning: {count} of {count} {name} references have more tokens, their end included, than an" in told
    assert told.count("warning") == 2


def test_a_script_that_is_spelled_by_bytes_is_told(tokenizer_of_tiny_model: PreTrainedTokenizerBase) -> None:
    known, spelled = (
        [Example(id="1", prompt="翻译", source="猫", references=(text,))] for text in ("བྱི་ལ།", "ကြောင်ကြောင်")
    )
    assert look("m", tokenizer_of_tiny_model, known, {}, learned=True).spelled is None
    found = look("m", tokenizer_of_tiny_model, spelled, {}, learned=True)
    count = found.readings[0].carried.tokens_per_letter
    assert count > 2 and "tokens per character" in found.lines[0]
    line = f"note: {count:.1f} tokens for a letter: the tokenizer of policy.model 'm' spells references by bytes"
    assert any(one.startswith(line) for one in found.lines)
    assert any(one.startswith(line) for one in told_of_reading("m", tokenizer_of_tiny_model, micro.NAME, spelled))


def test_a_project_is_not_begun_with_an_encoder_that_reads_nothing(
    blind_encoder: str, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = (json.dumps({"zh": row["zh"], "bo": row["bo"]}) for row in corpus.translation("train", 240, 0))
    Path("pairs.jsonl").write_text("\n".join(rows), encoding="utf-8")
    with pytest.raises(UserError, match=r"--encoder '.*' has no token for 100\.0% of the letters of references"):
        init("pairs.jsonl", to="bo", output=Path("project"), from_="zh", model=tiny_model, encoder=blind_encoder)
    assert not Path("project").exists()
