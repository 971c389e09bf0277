"""What no policy can do, and what only some methods can: said when a space is bound."""

from __future__ import annotations

from autopeft.domain.candidate import Candidate
from autopeft.domain.errors import Problem
from autopeft.domain.method import TreatmentFacts

_WHOLE_MODEL = "full"
"""The one method that takes no choice of layers and trains all of them."""
_SHARED = ("tinylora", "unilora")
"""Methods whose trained vectors belong to all layers at once."""
_OPTIMISER = ("lora-fa",)
"""Methods whose own optimiser uses every gradient, whether it is there or not."""


def layers_to_choose(facts: TreatmentFacts, candidate: Candidate) -> list[Problem]:
    """Methods of which a policy cannot leave some layers out for a step, one problem for each."""
    found = [
        f"{name} {reason}"
        for name in dict.fromkeys(insertion.method for insertion in candidate.insertions)
        if (reason := _reason(name, facts.name))
    ]
    if not candidate.insertions:
        found.append(f"the head alone has no layers among which {facts.name} could choose")
    return [Problem("policy", one, "all", f"Leave {facts.name} out of candidates like this one.") for one in found]


def _reason(name: str, policy: str) -> str:
    from autopeft.evaluate.methods import METHODS, OwnMethod, PeftMethod

    method = METHODS.get(name)
    if method is None:
        return ""
    if not method.facts.takes_layers and name != _WHOLE_MODEL:
        return f"trains nothing inside the layers, so {policy} has nothing to choose"
    if name in _SHARED:
        return f"trains parameters that all layers share, so {policy} cannot train some layers only"
    watching = isinstance(method, PeftMethod) and type(method).after_step is not PeftMethod.after_step
    watching = watching or (isinstance(method, OwnMethod) and method.grows)
    if watching or name in _OPTIMISER:
        return f"needs the gradients of every layer in every step, which {policy} does not make"
    return ""


def outputs_to_damp(facts: TreatmentFacts, candidate: Candidate) -> list[Problem]:
    """Methods without an output in each layer that could be multiplied by a factor."""
    from autopeft.evaluate.methods import METHODS

    allowed = [name for name, method in METHODS.items() if method.facts.scales and not _reason(name, facts.name)]
    return [
        Problem(
            "policy",
            f"{name} has no output scale in its layers, by which {facts.name} probes how much a layer matters",
            ", ".join(allowed),
            f"Use one of these methods with {facts.name}, or another policy.",
        )
        for name in dict.fromkeys(insertion.method for insertion in candidate.insertions)
        if name in METHODS and not METHODS[name].facts.scales
    ]
