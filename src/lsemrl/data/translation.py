"""Translation, in whichever direction: the text of one field in, that of another out."""

from __future__ import annotations

from dataclasses import dataclass, field

from lsemrl.data.base import TaskData
from lsemrl.data.limits import Limits
from lsemrl.data.loading import Loading
from lsemrl.data.prompts import PromptTemplate
from lsemrl.data.sources import Source
from lsemrl.data.splits import Splits
from lsemrl.data.task import MicroRows, Plan, Task
from lsemrl.languages import is_language, name_in
from lsemrl.micro import corpus
from lsemrl.types import UserError

TEMPLATES = {"zh": "翻译成中文：{source}", "bo": "翻译成藏文：{source}"}
"""The wording by target field, of the languages of the embedded world."""
_WORDING = {"zh": "翻译成{name}：{{source}}", "en": "Translate into {name}: {{source}}"}
"""That of any other language, by the one that it is asked in."""
_NO_TAGS = ("src", "tgt", "mt")
"""Field names that also are codes: of Sardinian, Tagbanwa and Maltese, which hardly anybody means by them."""


def wording(source_field: str, target_field: str) -> str:
    """What the policy is asked where the task has no wording of its own: in Chinese from Chinese, else in English.

    Args:
        source_field: Tag of the language that is translated from.
        target_field: Tag of the other.
    """
    spoken = "zh" if source_field == "zh" else "en"
    return _WORDING[spoken].format(name=name_in(target_field, spoken))


def _is_tag(field: str) -> bool:
    return field not in _NO_TAGS and is_language(field)


def task(source_field: str, target_field: str, template: PromptTemplate) -> Task:
    """Translation from `source_field` to `target_field`.

    Raises:
        UserError: The fields are one, or there is no wording for the target.
    """
    if source_field == target_field:
        raise UserError(f"source_field and target_field are both {source_field!r}; name two fields")
    if template.template is None and target_field not in TEMPLATES and not _is_tag(target_field):
        raise UserError(
            f"target_field is {target_field!r}, which has no wording of its own and is no code of a language; give "
            f"template.template, such as {TEMPLATES['bo']!r}"
        )
    return Task(
        name=f"{source_field}-{target_field}",
        inputs=(source_field,),
        target=target_field,
        template=TEMPLATES.get(target_field) or wording(source_field, target_field),
        micro=corpus.translation,
        pairs=True,
    )


class TranslationData(TaskData):
    """Pairs of sentences: id, and a field for each language."""

    def __init__(
        self,
        source: Source = Source(),
        source_field: str = "zh",
        target_field: str = "bo",
        validation: Source | None = None,
        test: Source | None = None,
        untranslated: Source | None = None,
        splits: Splits = Splits(),
        micro: MicroRows = MicroRows(),
        template: PromptTemplate = PromptTemplate(),
        limits: Limits = Limits(),
        batch_size: int = 16,
        eval_batch_size: int = 64,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        """Keep the settings; nothing is read before `prepare`.

        Args:
            source: Rows with the fields id, `source_field` and `target_field`: to train on, and to hold some out of.
            source_field: Field of the text to translate; zh or bo in the embedded world.
            target_field: Field of its translation.
            validation: Rows for validation; by default a share of `source`.
            test: Rows for the test; by default a share of `source`.
            untranslated: Rows of `source_field` alone, or a text file of them, to train on in place of the pairs, which
                then are for validation, test and shots: for RL by rewards that read no reference. `splits` divides
                pairs only.
            splits: How `source` is divided, and which of its training rows are used.
            micro: How many rows to draw of the embedded world.
            template: What the policy is asked.
            limits: Longest prompt and target.
            batch_size: Rows in a training batch of one process; training uses whole batches only.
            eval_batch_size: Rows in a validation or test batch.
            seed: Orders the training rows, together with the epoch.
            num_workers: Processes that collate batches.

        Raises:
            UserError: A setting that cannot be.
        """
        named = task(source_field, target_field, template)
        super().__init__(
            Plan(named, source, validation, test, splits, micro, template, limits, untranslated),
            Loading(batch_size, eval_batch_size, seed, num_workers),
        )


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """What `TranslationData` is told, less what its loaders need: for rows that no policy is trained on."""

    source: Source = field(default_factory=Source)
    """Rows with the fields id, `source_field` and `target_field`: to train on, and to hold some out of."""
    source_field: str = "zh"
    """Field of the text to translate; zh or bo in the embedded world."""
    target_field: str = "bo"
    """Field of its translation."""
    validation: Source | None = None
    """Rows for validation; by default a share of `source`."""
    test: Source | None = None
    """Rows for the test; by default a share of `source`."""
    splits: Splits = field(default_factory=Splits)
    """How `source` is divided, and which of its training rows are used."""
    micro: MicroRows = field(default_factory=MicroRows)
    """How many rows to draw of the embedded world."""
    template: PromptTemplate = field(default_factory=PromptTemplate)
    """What a policy is asked."""
    limits: Limits = field(default_factory=Limits)
    """Longest prompt and target."""

    def __post_init__(self) -> None:
        self.plan()  # so that a setting that cannot be is told before anything is read

    def plan(self) -> Plan:
        """What the rows are made by."""
        settings = vars(self).copy()
        named = task(settings.pop("source_field"), settings.pop("target_field"), self.template)
        return Plan(task=named, **settings)
