"""Lily shares matrices between layers, and its router looks at the whole batch."""

from __future__ import annotations

import torch

from autopeft.domain.layout import Role, TaskName
from autopeft.evaluate.methods import METHODS
from tests.contract.method_runs import base_of, inserted_in, train
from tests.contract.test_methods_low_rank_fit import classifier, insertion_of
from tests.unit.evaluate_models import batch


def test_layers_share_outputs_per_role_and_inputs_with_their_neighbour() -> None:
    base = classifier("bert")
    roles = (Role.QUERY.value, Role.VALUE.value)
    with inserted_in(base, insertion_of("lily", base, roles, (0, 1, 2), stride_A=2)) as inserted:
        found = {
            role: [inserted.base.get_submodule(path) for path in base.layout.paths((0, 1, 2), (role,))]
            for role in roles
        }
        for first, second, third in found.values():
            assert first.lily_A["default"] is second.lily_A["default"] is not third.lily_A["default"]
            assert first.lily_B["default"] is second.lily_B["default"] is third.lily_B["default"]
            assert first.lily_router["default"] is not second.lily_router["default"]
        query, value = (found[role][0] for role in roles)
        assert query.lily_B["default"] is not value.lily_B["default"]


def test_a_module_whose_path_ends_like_another_is_told_from_it() -> None:
    base = classifier("bert")
    insertion = insertion_of("lily", base, (Role.FFN_OUT.value,))
    paths = base.layout.paths((0, 1), (Role.FFN_OUT.value,))
    assert all(path.endswith("output.dense") for path in paths)
    with inserted_in(base, insertion) as inserted:
        assert inserted.module_names == paths, "attention.output.dense ends alike"


def test_roles_that_peft_would_mix_up_are_refused() -> None:
    base = classifier("bert")
    square = base.layout.model_copy(
        update={
            "layers": tuple(
                layer.model_copy(
                    update={
                        "modules": tuple(
                            module.model_copy(update={"in_features": 16, "out_features": 16})
                            for module in layer.modules
                        )
                    }
                )
                for layer in base.layout.layers
            )
        }
    )
    insertion = insertion_of("lily", base, (Role.ATTENTION_OUTPUT.value, Role.FFN_OUT.value))
    assert METHODS["lily"].problems(insertion, base.layout) == []
    problems = METHODS["lily"].problems(insertion, square)
    assert [problem.where for problem in problems] == ["modules"]


def test_it_is_not_for_language_models_because_a_token_would_see_those_after_it() -> None:
    assert METHODS["lily"].facts.tasks == {TaskName.SEQUENCE_CLASSIFICATION}
    base = base_of("llama")
    tokens = batch()["input_ids"]
    changed = tokens.clone()
    changed[:, -1] = 4 + (changed[:, -1] - 3) % 15
    classifying = base.layout.model_copy(update={"task": TaskName.SEQUENCE_CLASSIFICATION})
    base.layout = classifying  # as if it were allowed
    with inserted_in(base, insertion_of("lily", base)) as inserted:
        train(base, inserted, 4, 3e-2)
        inserted.model.eval()
        with torch.no_grad():
            before, after = (inserted.base(input_ids=ids).logits[:, 0] for ids in (tokens, changed))
    assert not torch.allclose(before, after, atol=1e-5), "the first token does not see the last"
