"""Multiple choice: a question in, the right one of several texts out; the others are told by their log-probability."""

from __future__ import annotations

from lsemrl.data.base import TaskData
from lsemrl.data.limits import Limits
from lsemrl.data.loading import Loading
from lsemrl.data.prompts import PromptTemplate
from lsemrl.data.sources import Source
from lsemrl.data.splits import Splits
from lsemrl.data.task import MicroRows, Plan, Task
from lsemrl.micro import corpus

TASK = Task(
    name="choice",
    inputs=("question",),
    target="answer",
    template="{source}",
    micro=corpus.choice,
    scored_by="choices",
    choices="choices",
)


class ChoiceData(TaskData):
    """Questions with texts to choose from: id, question, choices, answer.

    The policy is shown the question alone, and every choice is scored as its answer; a passage, or the choices
    themselves, belong in the question where the policy is to see them.
    """

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
            source: Rows with the fields id, question, choices (a list of texts; in a table as JSON, or with | between
                them) and answer (the text of the right one, its label where they have such, its letter from A, or its
                number from 0): to train on, and to hold some out of.
            validation: Rows for validation; by default a share of `source`.
            test: Rows for the test; by default a share of `source`.
            splits: How `source` is divided, and which of its training rows are used.
            micro: How many rows to draw of the embedded world.
            template: What stands around a question; by default nothing but the policy's chat template.
            limits: Longest prompt and right answer.
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
