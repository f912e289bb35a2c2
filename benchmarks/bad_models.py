"""Models that cannot carry the text, each the embedded policy with a file or two changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lsemrl import micro

_TURNS = "{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}"
TEMPLATES = {
    "drops_system": "{% for m in messages if m['role'] == 'user' %}<|user|>{{ m['content'] }}{% endfor %}<|assistant|>",
    "drops_text": "<|user|>{{ messages[-1]['content'][:3] }}<|assistant|>",
    "broken_template": "{% for",
    "failing_template": "{{ 1 // 0 }}",
    "endless_template": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "huge_template": "{{ 'a' * 3000000000 }}",
    "thinks": _TURNS + "<|assistant|><think>\n",
}
"""Chat templates."""


def make_models(folder: Path) -> dict[str, Path]:
    """Write every model to a folder of its own in `folder`."""
    paths = {name: folder / name for name in (*TEMPLATES, "few_positions", "no_eos", "more_tokens", "blind")}
    for path in paths.values():
        shutil.copytree(micro.POLICY, path, ignore=shutil.ignore_patterns("*.safetensors"))
        (path / "model.safetensors").symlink_to(micro.POLICY / "model.safetensors")
    for name, template in TEMPLATES.items():
        (paths[name] / "chat_template.jinja").write_text(template)
    _change(paths["few_positions"] / "config.json", max_position_embeddings=30)
    for file in ("config.json", "generation_config.json", "tokenizer_config.json"):
        _change(paths["no_eos"] / file, eos_token_id=None, eos_token=None)
    tokenizer = AutoTokenizer.from_pretrained(micro.POLICY)
    tokenizer.add_tokens(["<bo>"])
    tokenizer.save_pretrained(paths["more_tokens"])
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "<end>": 1, "་": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>").save_pretrained(paths["blind"])
    return paths


def _change(path: Path, **fields: object) -> None:
    """Set fields of a JSON file; None takes them out."""
    content = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))
