"""What the tests of every method on every family must know of single methods."""

# Options that make a costly method cheap on the tiny models, or that keep what random weights would leave nothing of:
# (method) -> keyword options of `explain`.
OPTIONS: dict[str, dict[str, object]] = {
    "tis": {"masks": 8},
    "tam": {"samples": 4},
    "bi_head": {"samples": 4},
    "bi_token": {"samples": 4},
    "dix": {"samples": 2},
    "iia": {"samples": 2},
    "grad_eclip": {"relu": False},
    # Clamped at zero, the maps of some tiny random models are zero everywhere.
    "attn_gradcam": {"relu": False},
    "partial_lrp": {"rules": "tattr"},
}

# Methods that divide by a sum of features of either sign, where float32 leaves fewer digits.
TOLERANCE: dict[str, float] = {"gradcam_plus_plus": 1e-3, "xgradcam": 1e-3}

# Pairs that a method cannot serve, and what its error says: (method, family) -> a regular expression.
UNSERVED: dict[tuple[str, str], str] = {
    ("grad_eclip", "user_written_out"): r"blocks\.2\.attention \(WrittenOutAttention\) writes it out as a softmax",
}
