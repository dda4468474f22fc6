"""AISIX for Azure OpenAI: one address, one set of keys, every Azure OpenAI deployment."""

__version__ = "0.1.0"
