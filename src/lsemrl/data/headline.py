"""Headline generation: an article in, its title out."""

from __future__ import annotations

from lsemrl.data.base import TaskData
from lsemrl.data.limits import Limits
from lsemrl.data.loading import Loading
from lsemrl.data.prompts import PromptTemplate
from lsemrl.data.sources import Source
from lsemrl.data.splits import Splits
from lsemrl.data.task import MicroRows, Plan, Task
from lsemrl.micro import corpus

TASK = Task(name="headline", inputs=("content",), target="title", template="藏文标题：{source}", micro=corpus.headline)


class HeadlineData(TaskData):
    """Articles with their titles: id, content, title."""

    def __init__(
        self,
        source: Source = Source(),
        validation: Source | None = None,
        test: Source | None = None,
        splits: Splits = Splits(),
        micro: MicroRows = MicroRows(),
        template: PromptTemplate = PromptTemplate(template=TASK.template),
        limits: Limits = Limits(on_long="truncate"),
        batch_size: int = 16,
        eval_batch_size: int = 64,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        """Keep the settings; nothing is read before `prepare`.

        Args:
            source: Rows with the fields id, content and title: to train on, and to hold some out of.
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
