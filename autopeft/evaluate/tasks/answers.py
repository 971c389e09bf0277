"""When a generated answer is right."""

from __future__ import annotations

import re
import unicodedata

MARK = "####"
"""What stands before the final answer of a worked solution, as GSM8K writes it."""


def final_answer(text: str, reference: str) -> str:
    """What counts in a text: what follows `####` where the reference solution has it, else all of it; normalised."""
    if MARK not in reference:
        return normalised(text)
    _, mark, after = text.partition(MARK)
    if not mark:
        return ""
    line = next((line for line in after.splitlines() if line.strip()), "")
    return normalised(re.sub(r"(?<=\d),(?=\d)", "", line).replace("$", ""))


def matches(generated: str, completion: str, answer: str | None) -> bool:
    """Whether a generated text is the completion, or ends up with its final answer, or is the short answer alone."""
    found = final_answer(generated, completion)
    if found and found == final_answer(completion, completion):
        return True
    return answer is not None and bool(found) and found == normalised(answer)


def normalised(text: str) -> str:
    """Without case, doubled white space, and white space and full stops at the ends; NFKC."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.split()).strip(" .")
