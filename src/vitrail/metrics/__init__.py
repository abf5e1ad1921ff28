"""Metrics of explanations: faithfulness, localisation, randomisation, robustness and the sign of relevance."""
