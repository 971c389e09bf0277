"""The tasks: how rows become batches, and how a model is scored."""

from __future__ import annotations

from autopeft.domain.layout import ModelLayout
from autopeft.domain.spec import SearchSpec
from autopeft.evaluate.base_model import BaseModel
from autopeft.evaluate.data.batches import Padding
from autopeft.evaluate.data.load import DataSet
from autopeft.evaluate.data.table import Exchanges, Split
from autopeft.evaluate.tasks.causal_lm import CausalLM
from autopeft.evaluate.tasks.classification import SequenceClassification
from autopeft.evaluate.tasks.rendering import stop_ids
from autopeft.evaluate.tasks.task import Exam, Limits, Scored, Task

__all__ = ["Exam", "Scored", "Task", "make_task"]


def make_task(spec: SearchSpec, data: DataSet, base: BaseModel, layout: ModelLayout) -> Task:
    """The task of a data set for a model.

    Raises:
        UserError: where the model cannot do it.
    """
    limits = Limits(
        batch_size=spec.training.batch_size,
        max_tokens=min(spec.data.max_tokens, layout.max_positions or spec.data.max_tokens),
        max_positions=layout.max_positions,
        max_new_tokens=spec.data.max_new_tokens,
        seed=spec.seed,
    )
    padding = Padding.of(base.tokenizer, base.pad_id)
    prompts = {name: rows for name, rows in data.splits.items() if isinstance(rows, Exchanges)}
    if prompts:
        stops = stop_ids(base.model, base.tokenizer)
        return CausalLM(data.task, prompts, base.tokenizer, padding, stops, limits)
    labelled = {name: rows for name, rows in data.splits.items() if isinstance(rows, Split)}
    return SequenceClassification(data.task, labelled, base.tokenizer, padding, limits)
