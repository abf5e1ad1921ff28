"""What the tests of every method on every family must know of single methods."""

# Options that make a costly method cheap on the tiny models: (method) -> keyword options of `explain`.
OPTIONS: dict[str, dict[str, object]] = {
    # Clamped at zero, the maps of some tiny random models are zero everywhere.
    "attn_gradcam": {"relu": False},
    "partial_lrp": {"rules": "tattr"},
}

# Pairs that a method cannot serve, and what its error says: (method, family) -> a regular expression.
UNSERVED: dict[tuple[str, str], str] = {}
