"""Numbers and names as notes and messages give them."""

from collections.abc import Sequence

__all__ = ["counted", "listed"]


def counted(count: int, one: str, several: str | None = None) -> str:
    """A number of things.

    Example:
        >>> counted(1, "picture"), counted(3, "class folder")
        ('1 picture', '3 class folders')
    """
    return f"{count} {one if count == 1 else several or one + 's'}"


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first few names, and how many more there are.

    Example:
        >>> listed(["a", "b", "c"], most=2)
        'a, b and 1 more'
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
