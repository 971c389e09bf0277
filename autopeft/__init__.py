"""AutoPEFT: search parameter-efficient fine-tuning configurations for quality against memory."""

__version__ = "0.1.0"
