"""OpenAI's API: chat completions, and completions of plain prompts."""
