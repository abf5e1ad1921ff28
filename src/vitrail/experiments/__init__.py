"""The paper's experiments, each a command."""
