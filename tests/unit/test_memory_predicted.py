"""What is foretold without weights is what is tracked while really training."""

from __future__ import annotations

import pytest
import torch

from autopeft.domain.candidate import Candidate, Insertion, Policy, Pruning
from autopeft.domain.layout import Role
from autopeft.domain.spec import TrainingSpec
from autopeft.evaluate.insertion import insert
from autopeft.evaluate.layout import inspect_layout
from autopeft.evaluate.memory.breakdown import Moment
from autopeft.evaluate.memory.kinds import ALIKE, Pattern
from autopeft.evaluate.memory.predictor import StepPredictor
from autopeft.evaluate.memory.setup import Setup
from autopeft.evaluate.memory.step import traced_step
from autopeft.evaluate.memory.tracing import MetaModel
from autopeft.evaluate.methods import METHODS
from autopeft.evaluate.policies import POLICIES
from autopeft.evaluate.pruning import CRITERIA
from autopeft.evaluate.train import Training
from autopeft.evaluate.untouched import Untouched, removed_afterwards
from tests.unit.evaluate_models import CONFIGS
from tests.unit.memory_models import ROWS, TOKENS, Stack, batch, candidate, forecast_of, model_of, setup_of, tracked

SOME = ("lora", "dora", "serial", "prefix", "layernorm", "shira", "frod")


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("method", ["lora", "serial"])
def test_the_peak_is_the_tracked_one_on_every_architecture(kind: str, method: str) -> None:
    forecast = forecast_of(kind)
    wanted = candidate(forecast.layout, method, (1, 3))
    found = forecast.predict(wanted)
    assert found is not None, forecast.why_not(wanted)
    peak, trainable = tracked(kind, wanted)
    assert found.train_peak_bytes == pytest.approx(peak, rel=0.01)
    assert found.trainable_parameters == trainable


@pytest.mark.parametrize("method", SOME)
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_the_peak_on_a_half_precision_base_counts_the_copies_that_autocast_makes(kind: str, method: str) -> None:
    forecast = forecast_of(kind, dtype=torch.bfloat16)
    wanted = candidate(forecast.layout, method, (1, 3))
    found = forecast.predict(wanted)
    assert found is not None, forecast.why_not(wanted)
    peak, trainable = tracked(kind, wanted, dtype=torch.bfloat16)
    assert found.train_peak_bytes == pytest.approx(peak, rel=0.03)
    assert found.trainable_parameters == trainable


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_checkpointed_blocks_keep_their_inputs_alone(kind: str) -> None:
    plain, saving = forecast_of(kind, 12), forecast_of(kind, 12, checkpointing=True)
    wanted = candidate(plain.layout, "lora", range(12))
    with_all, with_inputs = plain.predict(wanted), saving.predict(wanted)
    assert with_all is not None
    assert with_inputs is not None, saving.why_not(wanted)
    peak, _ = tracked(kind, wanted, 12, gradient_checkpointing=True)
    assert with_inputs.train_peak_bytes == pytest.approx(peak, rel=0.01)
    assert sum(with_inputs.layer_activation_bytes) < 0.2 * sum(with_all.layer_activation_bytes)


def under(policy: str, plain: Candidate) -> Candidate:
    settings = dict(POLICIES[policy].facts.defaults)
    return plain.model_copy(update={"policy": Policy(name=policy, settings=settings)})


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("policy", POLICIES)
def test_the_peak_under_a_policy_is_that_of_its_heaviest_step(kind: str, policy: str) -> None:
    forecast = forecast_of(kind)
    wanted = under(policy, candidate(forecast.layout, "lora"))
    found = forecast.predict(wanted)
    assert found is not None, forecast.why_not(wanted)
    peak, _ = tracked(kind, wanted)
    # Which branches DropBP leaves out is known when their sensitivities are: 16 steps on four layers differ by chance.
    assert found.train_peak_bytes == pytest.approx(peak, rel=0.12 if (kind, policy) == ("bert", "dropbp") else 0.005)


def test_what_is_cut_off_by_dropbp_keeps_no_activations() -> None:
    forecast = forecast_of("bert")
    wanted = candidate(forecast.layout, "lora")
    model = model_of("bert")
    layout, untouched = inspect_layout(model), Untouched(model)
    cut = frozenset({(0, Role.FFN_OUT), (1, Role.FFN_OUT), (2, Role.ATTENTION_OUTPUT), (3, Role.FFN_OUT)})
    with removed_afterwards(untouched):
        inserted = insert(untouched, wanted, layout, 3, steps=2)
        for layer, role in cut:
            module = layout.layers[layer].module(role)
            assert module is not None
            inserted.base.get_submodule(module.path).register_forward_hook(lambda _, __, output: output.detach())
        training = Training(inserted, [batch()] * 2, TrainingSpec(steps=2), 1e-3, torch.device("cpu"), torch.float32)
        for _ in training.run():
            pass
        peak = training.meter.peak()
    assert peak is not None
    parts = StepPredictor(forecast._model, forecast.setup).parts(wanted, Pattern(None, cut))
    # Layer 2 has LoRA in its attention alone, which is always cut off, and so never gets optimiser state.
    found = parts.prediction(Moment(with_state=frozenset({0, 1, 3})))
    assert found.train_peak_bytes == pytest.approx(peak.live_bytes, rel=0.005)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_gradients_of_earlier_passes_of_a_step_are_there_in_the_later_ones(kind: str) -> None:
    model = model_of(kind, device="meta")
    meta = MetaModel(model, inspect_layout(model))
    wanted = candidate(meta.layout, "full-layers", (2, 3))
    once, twice = (StepPredictor(meta, setup_of(accumulates=several)) for several in (False, True))
    peak, _ = tracked(kind, wanted, gradient_accumulation=2)
    found = twice.predict(wanted)
    assert found.train_peak_bytes == pytest.approx(peak, rel=0.005)
    assert found.train_peak_bytes > once.predict(wanted).train_peak_bytes
    assert found == twice.traced(wanted)


def test_a_step_on_a_smaller_batch_takes_less_by_what_depends_on_the_batch() -> None:
    forecast = forecast_of("bert")
    wanted = candidate(forecast.layout, "lora")
    parts = StepPredictor(forecast._model, forecast.setup).parts(wanted)
    fewer = StepPredictor(forecast._model, setup_of(rows=ROWS - 1)).predict(wanted)
    scaled = parts.prediction(Moment(share=(ROWS - 1) / ROWS))
    assert scaled.train_peak_bytes == pytest.approx(fewer.train_peak_bytes, rel=0.005)
    assert (scaled.gradient_bytes, scaled.weights_bytes) == (fewer.gradient_bytes, fewer.weights_bytes)
    # In tokens it is an upper bound: scores of attention grow with the square.
    shorter = StepPredictor(forecast._model, setup_of(tokens=TOKENS - 2)).predict(wanted).train_peak_bytes
    assert shorter < parts.prediction(Moment(share=(TOKENS - 2) / TOKENS)).train_peak_bytes


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("criterion", [one.name if hasattr(one, "name") else one for one in CRITERIA])
def test_a_pruned_candidate_has_its_pruned_widths(kind: str, criterion: str) -> None:
    forecast = forecast_of(kind)
    plain = candidate(forecast.layout, "lora")
    settings = {**CRITERIA[criterion].facts.defaults, "heads": 0.5, "ffn": 0.5, "modules": 0.5, "ranks": 0.5}
    wanted = plain.model_copy(update={"pruning": Pruning(criterion=criterion, settings=settings)})
    whole, cut, estimation = forecast.predict(plain), forecast.predict(wanted), forecast.estimation(wanted)
    assert whole is not None
    assert cut is not None, forecast.why_not(wanted)
    assert estimation is not None
    blocks = sum(
        (one.in_features + one.bias) * one.out_features for layer in forecast.layout.layers for one in layer.modules
    )
    assert cut.weights_bytes + cut.peft_bytes < whole.weights_bytes + whole.peft_bytes - 0.4 * 4 * blocks
    assert cut.train_peak_bytes < whole.train_peak_bytes < estimation.train_peak_bytes


@pytest.mark.parametrize(("kind", "shared"), [("bert", "groups"), ("llama", "groups"), ("llama", "queries")])
def test_the_peak_after_a_random_pruning_is_that_of_the_same_one_in_a_real_model(kind: str, shared: str) -> None:
    forecast = forecast_of(kind)
    settings = {**CRITERIA["random"].facts.defaults, "heads": 0.5, "modules": 0.5, "shared_heads": shared}
    plain = candidate(forecast.layout, "lora")
    wanted = plain.model_copy(update={"pruning": Pruning(criterion="random", settings=settings)})
    found = forecast.predict(wanted)
    assert found is not None, forecast.why_not(wanted)
    peak, trainable = tracked(kind, wanted)
    assert found.train_peak_bytes == pytest.approx(peak, rel=0.01)
    assert found.trainable_parameters == trainable


def test_composing_is_the_same_as_tracing_the_whole_model() -> None:
    forecast = forecast_of("bert", 6)
    lora, serial = (candidate(forecast.layout, name).insertions[0] for name in ("lora", "serial"))
    predictor = StepPredictor(forecast._model, forecast.setup)
    for below, above in (((0, 2), (2, 5)), ((1,), (1, 2, 3)), ((4, 5), (0,)), ((), (3, 4))):
        parts = [
            one.model_copy(update={"layers": layers}) for one, layers in ((lora, below), (serial, above)) if layers
        ]
        wanted = Candidate(insertions=tuple(parts), learning_rate=1e-3)
        assert predictor.predict(wanted) == predictor.traced(wanted)


def test_velora_on_a_half_precision_base_is_exact_in_any_layers_and_is_what_is_tracked() -> None:
    forecast = forecast_of("llama", 6, torch.bfloat16)
    predictor = StepPredictor(forecast._model, forecast.setup)
    for layers in ((0, 1, 2, 3, 4, 5), (1, 2, 4), (2, 3, 4)):
        wanted = candidate(forecast.layout, "velora", layers, num_groups=4)
        foretold = predictor.predict(wanted)
        assert foretold == predictor.traced(wanted)
        peak, _ = tracked("llama", wanted, 6, dtype=torch.bfloat16)
        assert foretold.train_peak_bytes == peak


def test_a_third_rank_needs_no_trace_and_is_exact() -> None:
    predictor = StepPredictor(forecast_of("llama")._model, setup_of())
    layout = predictor._model.layout

    def of(rank: int) -> Candidate:
        return candidate(layout, "lora", (0, 2, 3), rank=rank)

    for rank in (1, 4, 2):
        predictor.predict(of(rank))
    before = predictor.traces
    foretold = predictor.predict(of(3))
    assert predictor.traces == before
    assert foretold == predictor.traced(of(3))


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_methods_that_are_taken_for_alike_have_the_same_births_and_deaths(kind: str) -> None:
    meta = MetaModel(model_of(kind, 3, device="meta"), forecast_of(kind, 3).layout)
    for name, other in ALIKE.items():
        for dropout in (0.0, 0.1):
            one, two = (
                meta.timeline(candidate(meta.layout, method, (1, 2), dropout=dropout), Setup(ROWS, TOKENS)).events
                for method in (name, other)
            )
            assert one == two


def test_parameters_that_peft_makes_in_the_first_forward_pass_are_counted() -> None:
    wanted = candidate((forecast := forecast_of("bert")).layout, "monteclora", (2, 3))
    found = forecast.predict(wanted)
    assert found is not None
    peak, trainable = tracked("bert", wanted)
    assert found.trainable_parameters == trainable
    assert found.train_peak_bytes == pytest.approx(peak, rel=0.01)


def test_sizes_that_memory_is_not_affine_in_are_traced_each() -> None:
    predictor = StepPredictor(forecast_of("bert")._model, setup_of())
    layout = predictor._model.layout
    ladder = [value for value in METHODS["oft"].facts.ladder if 16 % int(value) == 0]
    for block in ladder:
        wanted = candidate(layout, "oft", (0, 2), **{METHODS["oft"].facts.knob or "": block})
        assert predictor.predict(wanted).train_peak_bytes == predictor.traced(wanted).train_peak_bytes


def test_weights_gradients_and_moments_of_a_linear_stack_to_the_byte() -> None:
    width, depth, rows, trained = 32, 6, 5, (2, 4)
    with torch.device("meta"):
        model = Stack(width, depth, trained)
    optimizer = torch.optim.AdamW([part for part in model.parameters() if part.requires_grad])
    base = {id(part) for part in model.parameters()}
    hidden = torch.empty(rows, width, device="meta")
    step = traced_step(
        model, list(model.blocks), lambda part: id(part) in base, optimizer, {"hidden": hidden}, setup_of(clip=False)
    )
    per_layer = 4 * (width * width + width)
    assert step.outside.bytes == 0
    assert [held.weights for held in step.blocks] == [per_layer] * depth
    # Two moments, and one counter of steps for each of weight and bias.
    assert [held.state for held in step.blocks] == [
        2 * per_layer + 8 if index in trained else 0 for index in range(depth)
    ]
    assert [held.trainable for held in step.blocks] == [
        width * width + width if i in trained else 0 for i in range(depth)
    ]
    assert step.inputs == 4 * rows * width
    saved = [float(part.sum()) for part in step.forward]
    activation = 4 * rows * width
    # A layer that trains keeps its input. One that does not keeps nothing: each gives up its input and makes an output.
    # The batch itself stays, so that the first layer gives up nothing.
    assert saved[0] == activation
    assert [saved[index] for index in (1, 3)] == [0, 0]
    assert [saved[index] for index in trained] == [activation, activation]
    assert [made.bytes for made in step.gradients] == [per_layer if index in trained else 0 for index in range(depth)]


def test_layers_below_the_lowest_that_trains_save_nothing() -> None:
    forecast = forecast_of("bert", 12)
    found = forecast.predict(candidate(forecast.layout, "lora", (8, 11)))
    assert found is not None
    assert [one for one in found.layer_activation_bytes[1:8] if one] == []
    assert all(one > 0 for one in found.layer_activation_bytes[8:])


def test_two_layers_of_twelve_at_the_top_need_a_sixth_of_the_activations_of_all() -> None:
    forecast = forecast_of("bert", 12)
    all_layers, top = (forecast.predict(candidate(forecast.layout, "lora", range(low, 12))) for low in (0, 10))
    assert all_layers is not None
    assert top is not None
    share = sum(top.layer_activation_bytes[10:]) / sum(all_layers.layer_activation_bytes)
    assert share == pytest.approx(2 / 12, rel=0.1)


def test_two_layers_at_the_top_of_bert_base_need_a_third_of_the_memory_of_twelve() -> None:
    model = model_of(
        *("bert", 12, torch.float32, "meta"),
        hidden_size=768,
        intermediate_size=3072,
        num_attention_heads=12,
        vocab_size=30522,
        max_position_embeddings=512,
    )
    predictor = StepPredictor(MetaModel(model, layout := inspect_layout(model)), Setup(32, 128))
    all_layers, top = (predictor.predict(candidate(layout, "lora", range(low, 12))) for low in (0, 10))
    assert top.train_peak_bytes / all_layers.train_peak_bytes == pytest.approx(1 / 3, abs=0.05)


def test_tied_embeddings_count_once() -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig

    from autopeft.evaluate.layout import inspect_layout

    found = {}
    for tied in (True, False):
        config = LlamaConfig(
            vocab_size=500,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            tie_word_embeddings=tied,
        )
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config).requires_grad_(False)
        layout = inspect_layout(model)
        meta = MetaModel(model, layout)
        found[tied] = StepPredictor(meta, setup_of()).predict(candidate(layout, "lora", (0, 1)))
    assert found[False].weights_bytes - found[True].weights_bytes == 4 * 500 * 32


def test_frozen_embeddings_have_no_gradient_and_no_moments() -> None:
    forecast = forecast_of("bert")
    lora, full = (forecast.predict(candidate(forecast.layout, name)) for name in ("lora", "full"))
    assert lora is not None
    assert full is not None, forecast.why_not(candidate(forecast.layout, "full"))
    model = model_of("bert")
    everything = sum(part.numel() for part in model.parameters())
    assert full.trainable_parameters == everything
    assert full.optimizer_bytes == pytest.approx(8 * everything, rel=0.01)
    assert lora.optimizer_bytes == pytest.approx(8 * lora.trainable_parameters, rel=0.05)


def test_a_method_that_defies_tracing_has_a_reason_and_no_number() -> None:
    forecast = forecast_of("bert")
    odd = Candidate(insertions=(Insertion(method="lora", layers=(0,), modules=("no.such",)),), learning_rate=1e-3)
    assert forecast.predict(odd) is None
    assert forecast.why_not(odd)
    wanted = candidate(forecast.layout, "lora")
    assert forecast.why_not(wanted) == ""


def test_the_parts_sum_to_the_whole() -> None:
    forecast = forecast_of("gpt2")
    for method in (one for one in SOME if one not in ("shira", "frod")):  # which do not take its transposed matrices
        found = forecast.predict(candidate(forecast.layout, method, (1, 2)))
        assert found is not None
        parts = (
            found.weights_bytes,
            found.peft_bytes,
            found.optimizer_bytes,
            found.inputs_bytes,
            found.gradient_bytes,
            found.activation_bytes,
            found.temporary_bytes,
        )
        assert sum(parts) == found.train_peak_bytes
        assert min(parts) >= 0


@pytest.mark.parametrize("target", ["cuda", "cpu"])
def test_attention_without_padding_keeps_no_mask(target: str) -> None:
    with_mask, without = (
        forecast_of("llama", target=target, padded=padded).predict(candidate(forecast_of("llama").layout))
        for padded in (True, False)
    )
    assert with_mask is not None
    assert without is not None
    assert without.train_peak_bytes < with_mask.train_peak_bytes
