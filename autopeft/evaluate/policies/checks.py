"""What no policy can do, and what only some methods can: said when a space is bound."""

from __future__ import annotations

from autopeft.domain.candidate import Candidate
from autopeft.domain.errors import Problem
from autopeft.domain.method import TreatmentFacts

_WHOLE_MODEL = "full"
"""The one method that takes no choice of layers and trains all of them."""


def layers_to_choose(facts: TreatmentFacts, candidate: Candidate) -> list[Problem]:
    """Methods that train nothing inside the layers, or that look at the gradients of every layer after every step."""
    from autopeft.evaluate.methods import METHODS, PeftMethod

    found = []
    for name in dict.fromkeys(insertion.method for insertion in candidate.insertions):
        method = METHODS.get(name)
        if method is None:
            continue
        if not method.facts.takes_layers and name != _WHOLE_MODEL:
            found.append(f"{name} trains nothing inside the layers, so {facts.name} has nothing to choose")
        elif isinstance(method, PeftMethod) and type(method).after_step is not PeftMethod.after_step:
            found.append(f"{name} needs the gradients of every layer in every step, which {facts.name} does not make")
    if not candidate.insertions:
        found.append(f"the head alone has no layers among which {facts.name} could choose")
    return [Problem("policy", one, "all", f"Leave {facts.name} out of candidates like this one.") for one in found]


def outputs_to_damp(facts: TreatmentFacts, candidate: Candidate) -> list[Problem]:
    """Methods without an output in each layer that could be multiplied by a factor."""
    from autopeft.evaluate.methods import METHODS

    allowed = ", ".join(name for name, method in METHODS.items() if method.facts.scales)
    return [
        Problem(
            "policy",
            f"{name} has no output scale in its layers, by which {facts.name} probes how much a layer matters",
            allowed,
            f"Use one of these methods with {facts.name}, or another policy.",
        )
        for name in dict.fromkeys(insertion.method for insertion in candidate.insertions)
        if name in METHODS and not METHODS[name].facts.scales
    ]
