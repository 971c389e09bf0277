"""One point of a run as a folder that other tools load as it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autopeft.domain.errors import Problem, UserError
from autopeft.domain.repetition import believed
from autopeft.domain.results import RunResults, ScoredTrial
from autopeft.export.card import Whole, write_card
from autopeft.export.files import replaced_folder
from autopeft.export.recipe import Recipe, to_yaml

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
"""Of an adapter that peft alone loads."""
RECORD = "autopeft_adapter.json"
"""Of a mix or a method of ours, which `autopeft.load_adapter` loads."""
PREDICTIONS = "test_predictions.json"
CANDIDATE = "candidate.yaml"
RECIPE = "recipe.yaml"
CARD = "README.md"
_OPTIONAL = (
    PREDICTIONS,
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
_OWN = frozenset((WEIGHTS, CONFIG, RECORD, CANDIDATE, RECIPE, CARD, *_OPTIONAL))
_OWN_WHOLE = frozenset((CANDIDATE, RECIPE, CARD, "config.json", "generation_config.json", *_OPTIONAL))
_SHARDS = "model*.safetensors*"


def export_point(results: RunResults, scored: ScoredTrial, artefact_dir: Path, out: Path, label: str) -> Path:
    """Write adapter, config, predictions, `candidate.yaml`, `recipe.yaml` and a model card into `out`.

    The folder appears whole or not at all and takes the place of an earlier export.

    Args:
        results: Of the run that the point is from.
        scored: The point.
        artefact_dir: Folder that the trial's adapter was saved to.
        out: Where to; new, empty, or an earlier export.
        label: Why it was chosen, for example `knee`; a heading of the card.

    Returns:
        `out`.

    Raises:
        UserError: where the adapter is gone (then its recipe is written beside `out`), `out` holds other files, or it
            cannot be written.
    """
    recipe, form = Recipe.of(results.record, scored.trial), _form(results, scored, artefact_dir, out)
    with replaced_folder(out, CANDIDATE, _OWN) as folder:
        for name in (WEIGHTS, form, *_OPTIONAL):
            if (artefact_dir / name).is_file():
                shutil.copyfile(artefact_dir / name, folder / name)
        base_model = _base_model(folder / form) or results.record.spec.model.source
        (folder / CANDIDATE).write_text(to_yaml(_candidate(results, scored, label)), encoding="utf-8")
        recipe.save(folder / RECIPE)
        (folder / CARD).write_text(
            write_card(results, scored, label, base_model, plain_peft=form == CONFIG), encoding="utf-8"
        )
    return out


def export_whole(
    results: RunResults,
    scored: ScoredTrial,
    artefact_dir: Path,
    out: Path,
    label: str,
    write: Callable[[Path], float],
) -> Path:
    """Write the whole model, its adapter merged, with `candidate.yaml`, `recipe.yaml` and a model card into `out`.

    Args:
        results: Of the run that the point is from.
        scored: The point.
        artefact_dir: Folder that the trial's adapter was saved to.
        out: Where to; new, empty, or an earlier export of a whole model.
        label: Why it was chosen.
        write: Fills a folder with model and tokenizer; returns the largest difference of a logit to the adapter's.

    Returns:
        `out`.

    Raises:
        UserError: as `export_point`, and what `write` raises; nothing is written then.
    """
    recipe, form = Recipe.of(results.record, scored.trial), _form(results, scored, artefact_dir, out)
    base_model = _base_model(artefact_dir / form) or results.record.spec.model.source
    earlier = [path.name for path in out.glob(_SHARDS)] if out.is_dir() else []
    with replaced_folder(out, CANDIDATE, _OWN_WHOLE.union(earlier)) as folder:
        difference = write(folder)
        (folder / CANDIDATE).write_text(to_yaml(_candidate(results, scored, label)), encoding="utf-8")
        recipe.save(folder / RECIPE)
        (folder / CARD).write_text(
            write_card(results, scored, label, base_model, whole=Whole(difference)), encoding="utf-8"
        )
    return out


def _form(results: RunResults, scored: ScoredTrial, artefact_dir: Path, out: Path) -> str:
    """Name of the file that says how the adapter is put in."""
    form = CONFIG if (artefact_dir / CONFIG).is_file() else RECORD
    if not all((artefact_dir / name).is_file() for name in (WEIGHTS, form)):
        recipe = Recipe.of(results.record, scored.trial)
        raise _gone(scored, recipe.save(out.with_name(f"{out.name}-recipe.yaml")), out)
    return form


def _candidate(results: RunResults, scored: ScoredTrial, label: str) -> dict[str, Any]:
    trial = scored.trial
    estimate = believed(results.objectives, results.trials).estimates.get(trial.number)
    return {
        "run": results.record.name,
        "trial": trial.number,
        "pick": label,
        "digest": trial.digest,
        "seed": trial.seed,
        "candidate": trial.candidate.model_dump(mode="json"),
        "parameters": dict(trial.parameters),
        "objectives": {
            objective.name: value for objective, value in zip(results.objectives, scored.values or (), strict=False)
        },
        **({} if estimate is None else {"quality": vars(estimate)}),
        "test": trial.test_quality,
        "measurements": trial.measurements.model_dump(mode="json") if trial.measurements else None,
    }


def _base_model(config: Path) -> str | None:
    """What the adapter's config calls its base model: the hub id also where the spec has a short name."""
    try:
        found = json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError):
        return None
    return found if isinstance(found, str) and found else None


def _gone(scored: ScoredTrial, recipe: Path, out: Path) -> UserError:
    return UserError(
        Problem(
            f"trial {scored.trial.number}",
            "its adapter is not kept: adapters of trials that a point of the front dominates are removed",
            "",
            f"Its recipe is written; train it again: autopeft train {recipe} --out {out}. "
            "A search with keep_adapters: all keeps every adapter.",
        )
    )
