"""PEFT methods by name: their rules, and the peft configuration that stands for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from autopeft.domain.candidate import Insertion
from autopeft.domain.errors import Problem
from autopeft.domain.layout import ModelLayout
from autopeft.domain.results import TaskInfo
from autopeft.domain.space import Domain
from autopeft.evaluate.methods.lora import Lora


class Method(Protocol):
    """`autopeft.domain.ports.MethodRules` and what the evaluator needs beside it."""

    @property
    def name(self) -> str: ...

    @property
    def settings(self) -> Mapping[str, Domain]: ...

    def problems(self, insertion: Insertion, layout: ModelLayout) -> list[Problem]: ...

    def peft_config(self, insertion: Insertion, layout: ModelLayout, task: TaskInfo) -> Any:
        """The `peft.PeftConfig` that puts this insertion, and the head, into a fresh model.

        Raises:
            UserError: where `problems` finds some.
        """
        ...


METHODS: dict[str, Method] = {method.name: method for method in (Lora(),)}
