"""Reading comprehension: a passage and a question in, the answer out; the general ability that can be forgotten."""

from __future__ import annotations

from typing import Any

from lsemrl.data.base import TaskData
from lsemrl.data.limits import Limits
from lsemrl.data.loading import Loading
from lsemrl.data.prompts import PromptTemplate
from lsemrl.data.sources import Source
from lsemrl.data.splits import Splits
from lsemrl.data.task import MicroRows, Plan, Task
from lsemrl.micro import corpus


def flatten(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The questions of a row in SQuAD's nested form, which CMRC 2018 has too, or that of its trial; or the row itself.

    Raises:
        ValueError: The nesting is neither form.
    """
    try:
        if "paragraphs" in row:
            return [question for paragraph in row["paragraphs"] for question in flatten(paragraph)]
        if "qas" not in row:
            return [row]
        return [
            {
                "id": question.get("id", question.get("query_id")),
                "context": row.get("context", row.get("context_text")),
                "question": question.get("question", question.get("query_text")),
                "answers": question.get("answers"),
            }
            for question in row["qas"]
        ]
    except (AttributeError, TypeError):
        raise ValueError("is not nested as CMRC 2018 is: paragraphs and qas hold lists of objects") from None


TASK = Task(
    name="comprehension",
    inputs=("context", "question"),
    target="answers",
    template="{context}\n问题：{question}",
    micro=corpus.comprehension,
    flatten=flatten,
    scored_by="answers",
)


class ComprehensionData(TaskData):
    """Questions on passages: id, context, question, answers; flat, or nested as SQuAD and CMRC 2018 are."""

    def __init__(
        self,
        source: Source = Source(),
        validation: Source | None = None,
        test: Source | None = None,
        splits: Splits = Splits(),
        micro: MicroRows = MicroRows(),
        template: PromptTemplate = PromptTemplate(template=TASK.template),
        limits: Limits = Limits(),
        batch_size: int = 16,
        eval_batch_size: int = 64,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        """Keep the settings; nothing is read before `prepare`.

        Args:
            source: Rows with the fields id, context, question and answers (one text or several, all accepted): to train
                on, and to hold some out of.
            validation: Rows for validation; by default a share of `source`.
            test: Rows for the test; by default a share of `source`.
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
        super().__init__(
            Plan(TASK, source, validation, test, splits, micro, template, limits),
            Loading(batch_size, eval_batch_size, seed, num_workers),
        )
