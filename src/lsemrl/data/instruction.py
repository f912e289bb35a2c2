"""Instructions: whatever a user asked in, the answer out."""

from __future__ import annotations

from lsemrl.data.base import TaskData
from lsemrl.data.limits import Limits
from lsemrl.data.loading import Loading
from lsemrl.data.prompts import PromptTemplate
from lsemrl.data.sources import Source
from lsemrl.data.splits import Splits
from lsemrl.data.task import MicroRows, Plan, Task
from lsemrl.micro import corpus

TASK = Task(name="instruction", inputs=("prompt",), target="response", template="{source}", micro=corpus.instruction)


class InstructionData(TaskData):
    """Prompts with their answers: id, prompt, response; or turns, by `columns: {prompt: messages.user, …}`.

    A prompt may be in several columns: `columns: {prompt: [instruction, input], …}`.
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

        Rows are equal when their prompts are: a short answer that many share keeps none of them out of training.

        Args:
            source: Rows with the fields id, prompt and response: to train on, and to hold some out of.
            validation: Rows for validation; by default a share of `source`.
            test: Rows for the test; by default a share of `source`.
            splits: How `source` is divided, and which of its training rows are used.
            micro: How many rows to draw of the embedded world.
            template: What stands around a prompt; by default nothing but the policy's chat template.
            limits: Longest prompt and answer.
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
