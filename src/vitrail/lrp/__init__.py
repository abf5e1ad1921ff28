"""Relevance propagated through an unmodified model: every operation is met by a rule, or the model is refused."""
