"""AutoPEFT: search parameter-efficient fine-tuning configurations for quality against memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autopeft.evaluate.loading import AdapterError as AdapterError
    from autopeft.evaluate.loading import load_adapter as load_adapter

__version__ = "0.1.0"
__all__ = ["AdapterError", "__version__", "load_adapter"]


def __getattr__(name: str) -> Any:
    """Public names that need torch, imported when they are first asked for."""
    if name in ("AdapterError", "load_adapter"):
        from autopeft.evaluate import loading

        return getattr(loading, name)
    raise AttributeError(f"module 'autopeft' has no attribute '{name}'")
