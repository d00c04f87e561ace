"""One Python Engine API over every LLM inference engine."""
