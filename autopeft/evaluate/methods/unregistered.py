"""What peft has and a search over a base model and a data set cannot use, with the reason of each."""

from __future__ import annotations

UNREGISTERED: dict[str, str] = {
    "CPT": "its prompt is made of the token ids of a text with examples, which a data set does not name",
    "MULTITASK_PROMPT_TUNING": "learns one prompt from several tasks and wants the task of every row; a search has one",
    "POLY": "routes several tasks through shared LoRAs and wants the task of every row; a search has one",
    "SHADOW": "trains a second decoder from random weights beside the first and adds its loss to the measured one",
    "TRAINABLE_TOKENS": "trains the embeddings of tokens that a person names: new ones, which a data set does not tell",
    "XLORA": "mixes LoRAs that were trained before; a search starts from a base model alone",
}
"""Name of the `PeftType`, and why no method of it is registered."""
