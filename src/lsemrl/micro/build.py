"""Rebuilds the embedded tokenizer and policy from a seed.

The policy is a Qwen3 of 1.9 million parameters. It knows Chinese of this world (text, headlines, reading comprehension
with distractors), follows a few instructions in both languages, and has met Tibetan as published models have: plain
text and a word list, but not one translated sentence. It can be taught, and it has something to lose.
Weights are stored in float16 to stay small and are always loaded in float32.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from lsemrl.files import replace_folder, write_text
from lsemrl.micro import corpus, grammar, words

log = logging.getLogger(__name__)

VOCABULARY = 2048
USER, ASSISTANT, END, PAD = "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# Share of the base policy's training documents.
_DIET: tuple[tuple[Callable[[grammar.Split, int, int], list[corpus.Record]], float], ...] = (
    (corpus.comprehension, 0.46),
    (corpus.chinese_headline, 0.10),
    (corpus.echo, 0.14),
    (corpus.chinese_text, 0.10),
    (corpus.tibetan_text, 0.12),
    (corpus.dictionary, 0.08),
)
_CONTEXT = 32_768
_BATCH = 32
_STEPS = 4000


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE whose merges stay inside a Chinese word or a Tibetan syllable.

    It is trained on words rather than sentences, so that no merge crosses a word; any other text falls back to
    letters and bytes.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[^་།\s]+་?|།|་|\s+"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, END, USER, ASSISTANT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_words(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=AddedToken(END, special=True),
        pad_token=AddedToken(PAD, special=True),
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=_CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def _words() -> Iterator[str]:
    """Everything that deserves tokens of its own, the more often the sooner it is merged."""
    tibetan = (range(0x0F20, 0x0F2A), range(0x0F40, 0x0F6D), range(0x0F71, 0x0F7F), range(0x0F90, 0x0FBD))
    letters = [grammar.SHAD, grammar.TSHEG, *(chr(code) for codes in tibetan for code in codes)]
    tables = (*words.TABLES, words.PATIENT_WORDS, words.ACTION_WORDS)
    chinese = [word for table in tables for word in table]
    chinese += [measure for measure, _, _ in words.PATIENTS.values()]
    chinese += ["谁", "什么", "哪里", "什么时候", "问题", "翻译成", "藏文", "中文", "标题", "复述", *"没了在的。，？："]
    phrases = [phrase for table in tables for group in table.values() for phrase in group]
    phrases += [grammar.ergative(phrase) for phrase in phrases]
    phrases += [*words.LOCATIVES, "ཀྱིས", "གིས", "གྱིས", "ཞིག", "ཅིག", "ཤིག", "པ", "བ", words.AUXILIARY, words.NEGATION[1]]
    syllables = sorted({syllable for phrase in phrases for syllable in phrase.split(grammar.TSHEG)})
    yield from itertools.chain.from_iterable(itertools.repeat(letter, 50) for letter in letters)
    for word in chinese:
        yield from itertools.repeat(word, 30)
    for syllable in syllables:
        yield from itertools.repeat(syllable, 10)
        yield from itertools.repeat(syllable + grammar.TSHEG, 10)
    yield from itertools.chain.from_iterable(itertools.repeat(digit, 5) for digit in "0123456789\n ")


def build_policy(tokenizer: PreTrainedTokenizerFast, *, steps: int, seed: int) -> Qwen3ForCausalLM:
    """Train the base policy for `steps` batches of 32 documents."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=32,
        max_position_embeddings=_CONTEXT,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.convert_tokens_to_ids(END),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config)
    # Two end tokens and decoding settings of its own, as Qwen3 ships them: what samples from it must cope.
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.6,
        top_k=20,
        top_p=0.95,
        eos_token_id=[config.eos_token_id, config.pad_token_id],
        pad_token_id=config.pad_token_id,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-3, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps))),
    )
    model.train()
    begun = time.monotonic()
    for step, (ids, answer) in enumerate(_batches(tokenizer, steps, seed)):
        logits = model(input_ids=ids[:, :-1]).logits
        targets, counts = ids[:, 1:], answer[:, 1:]
        nll = cross_entropy(logits.transpose(1, 2).float(), targets, reduction="none")
        text = targets != config.pad_token_id
        # Answers are one token in sixty: weighted apart, and equally however long, they are learned a good deal sooner.
        asked = counts.any(dim=1)
        answers = ((nll * counts).sum(dim=1) / counts.sum(dim=1).clamp(min=1))[asked].mean()
        loss = 0.5 * nll[text].mean() + answers
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 200 == 0 or step == steps - 1:
            log.info(
                "policy step %d/%d: text NLL %.3f, answer NLL %.3f, exact match %.2f, %.0f s",
                step, steps, nll[text].mean().item(), answers.item(),
                answer_accuracy(model, tokenizer, count=100), time.monotonic() - begun,
            )  # fmt: skip
    model.eval()
    return model


def _batches(tokenizer: PreTrainedTokenizerFast, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Token ids and where the answers are, in rounds of fresh documents so that nothing is learned by heart."""
    rng, left = random.Random(seed), steps
    for chapter in itertools.count():
        documents = []
        size = 100 * _BATCH
        for write, share in _DIET:
            for record in write("pretrain", round(size * share), seed * 1000 + chapter):
                documents.append(_document(record))
        rng.shuffle(documents)
        for at in range(0, len(documents) - _BATCH + 1, _BATCH):
            yield _pad(tokenizer, documents[at : at + _BATCH])
            left -= 1
            if not left:
                return


def _document(record: corpus.Record) -> tuple[str, str]:
    """A record as (prompt, answer) or ("", text)."""
    if "question" in record:
        return f"{USER}{record['context']}\n问题：{record['question']}{ASSISTANT}", record["answers"][0] + END
    if "title" in record:
        return f"{USER}中文标题：{record['content']}{ASSISTANT}", f"{record['title']}{END}"
    if "sentence" in record:
        return f"{USER}复述：{record['sentence']}{ASSISTANT}", f"{record['sentence']}{END}"
    return "", f"{record['text']}{END}"


def _pad(tokenizer: PreTrainedTokenizerFast, documents: list[tuple[str, str]]) -> tuple[Tensor, Tensor]:
    prompts = tokenizer([prompt for prompt, _ in documents])["input_ids"]
    answers = tokenizer([answer for _, answer in documents])["input_ids"]
    longest = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    ids = torch.full((len(documents), longest), tokenizer.pad_token_id)
    counts = torch.zeros_like(ids, dtype=torch.bool)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        counts[row, len(prompt) : len(prompt) + len(answer)] = bool(prompt)
    return ids, counts


@torch.no_grad()
def answer_accuracy(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, count: int = 500) -> float:
    """Share of held-out questions answered word for word, greedily."""
    right = 0
    for record in corpus.comprehension("test", count, seed=0):
        prompt, answer = _document(record)
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        gold = tokenizer(answer)["input_ids"]
        said = model(input_ids=torch.cat([ids, torch.tensor([gold[:-1]])], dim=1)).logits[0, ids.shape[1] - 1 :]
        right += said.argmax(-1).tolist() == gold
    return right / count


def build(folder: Path, *, seed: int) -> None:
    """Write the policy and the encoder, each with a report of what it can do, to policy/ and encoder/ in `folder`."""
    from lsemrl.micro import build_encoder

    tokenizer = build_tokenizer()
    build_encoder.build(folder / "encoder", tokenizer, seed=seed)
    model = build_policy(tokenizer, steps=_STEPS, seed=seed)
    accuracy = answer_accuracy(model, tokenizer)
    log.info("reading comprehension, exact match on held-out events: %.3f", accuracy)
    report = {
        "seed": seed,
        "steps": _STEPS,
        "parameters": model.num_parameters(),
        "held_out_questions": 500,
        "comprehension_exact_match": accuracy,
    }

    def fill(part: Path) -> None:
        model.half().save_pretrained(part)
        tokenizer.save_pretrained(part)
        write_text(part / "report.json", json.dumps(report, indent=2) + "\n")

    replace_folder(folder / "policy", fill)
