"""What the tests of every method on every family must know of single methods."""

# Options that make a costly method cheap on the tiny models: (method) -> keyword options of `explain`.
OPTIONS: dict[str, dict[str, object]] = {
    "tis": {"masks": 8},
    "tam": {"samples": 4},
    "bi_head": {"samples": 4},
    "bi_token": {"samples": 4},
    "dix": {"samples": 2},
    "iia": {"samples": 2},
}

# Pairs that a method cannot serve, and what its error says: (method, family) -> a regular expression.
UNSERVED: dict[tuple[str, str], str] = {}
