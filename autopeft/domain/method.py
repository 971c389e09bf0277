"""What a PEFT method is, said once: for binding a space, for the table of methods, for a person."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from autopeft.domain.candidate import Setting
from autopeft.domain.layout import TaskName
from autopeft.domain.space import Domain

BOTH_TASKS = frozenset((TaskName.SEQUENCE_CLASSIFICATION, TaskName.CAUSAL_LM))


@dataclass(frozen=True)
class MethodFacts:
    """What is true of a method on any model."""

    name: str
    """As candidates and spaces write it: lower case, words joined by `-`."""
    title: str
    """As its paper writes it."""
    paper: str
    """Authors, venue or year, and arXiv number."""
    summary: str
    """What it trains, in one sentence."""
    settings: Mapping[str, Domain]
    """The knobs of `Insertion.settings`, each with the largest domain that the method takes."""
    defaults: Mapping[str, Setting] = field(default_factory=dict)
    """The usual value of every setting; a space that does not name a setting gets it."""
    knob: str | None = None
    """The setting that decides how much is trained, as a rank does; None where there is none."""
    ladder: tuple[Setting, ...] = ()
    """Values of the knob worth trying, from few to many trainable parameters."""
    learning_rates: tuple[float, float] = (1e-4, 1e-2)
    """Lowest and highest peak learning rate worth trying with AdamW; methods differ by a hundred times."""
    takes_layers: bool = True
    """Whether it can be put into some layers only; else an insertion names all of them."""
    takes_modules: bool = True
    """Whether an insertion names roles of modules; else its `modules` are empty."""
    merges: bool = True
    """Whether the trained weights can be folded into the base, which then predicts the same at no cost."""
    quantised: bool = False
    """Whether it trains on a base that is loaded in 4 or 8 bits."""
    tasks: frozenset[TaskName] = BOTH_TASKS
    alone: bool = False
    """Whether it must be the only insertion of a candidate: it needs an optimiser, a loss or a wrapper of its own."""
    library: str = "peft"
    """Who implements it: `peft`, or `autopeft` where peft has it not."""
    scales: bool = False
    """Whether its output in a layer can be damped by a factor, as policies that probe layers do."""


@dataclass(frozen=True)
class TreatmentFacts:
    """What is true of a pruning criterion or of a training policy on any model."""

    name: str
    title: str
    """As its paper writes it."""
    paper: str
    """Authors, venue or year, and arXiv number."""
    summary: str
    """What it does, in one sentence."""
    settings: Mapping[str, Domain] = field(default_factory=dict)
    """Its settings, each with the largest domain that it takes."""
    defaults: Mapping[str, Setting] = field(default_factory=dict)
    """The published or usual value of every setting; a space that does not name a setting gets it."""
