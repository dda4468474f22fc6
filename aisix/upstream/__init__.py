"""Stage 5: Azure OpenAI without I/O (calls, errors), and its credentials."""
