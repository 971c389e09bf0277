"""Named sets of module roles, bound to the roles that a model has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autopeft.domain.errors import Problem, UserError
from autopeft.domain.layout import Role
from autopeft.spaces.file import FAMILIES

Roles = tuple[str, ...]
_FUSED = (Role.QUERY, Role.KEY, Role.VALUE)


def bind_roles(asked: str | Sequence[str], offered: Sequence[Role]) -> tuple[Roles, Roles]:
    """The model's roles that a set stands for, sorted, and the entries that the model has nothing for.

    A fused `attention.qkv` counts for query, key and value; `ffn.*` is every role of the family.
    """
    if asked == "all":
        return tuple(sorted(role.value for role in offered)), ()
    found: set[str] = set()
    lacking = []
    for entry in asked:
        if entry in FAMILIES:
            roles = {role.value for role in offered if role.value.startswith(entry[:-1])}
        elif entry in offered:
            roles = {entry}
        elif entry in _FUSED and Role.QKV in offered:
            roles = {Role.QKV.value}
        else:
            roles = set()
        if not roles:
            lacking.append(entry)
        found |= roles
    return tuple(sorted(found)), tuple(lacking)


def bind_sets(
    sets: Mapping[str, str | Sequence[str]], offered: Sequence[Role], where: str
) -> tuple[dict[str, Roles], list[str]]:
    """The sets that the model can have, by name, and what a person should know of the others.

    A set that asks for a role the model lacks is dropped; so is one that means the same modules as a set before it.

    Raises:
        UserError: where no set is left.
    """
    bound: dict[str, Roles] = {}
    notices = []
    for name, asked in sets.items():
        roles, lacking = bind_roles(asked, offered)
        same = next((other for other, known in bound.items() if known == roles), None)
        if lacking:
            notices.append(f"Module set '{name}' is left out: the model has no {', '.join(lacking)}.")
        elif same is not None:
            notices.append(f"Module set '{name}' is left out: on this model it is the same as '{same}'.")
        elif roles:
            bound[name] = roles
    if not bound:
        has = ", ".join(role.value for role in offered) or "no linear module that every layer has"
        raise UserError(
            Problem(where, f"none of the sets {', '.join(sets)} fits this model", has, "Use roles that the model has.")
        )
    return bound, notices
