"""Options that take several values in a row, as in `--against conch slug`, beside repeating the option."""

from typing import Any

from typer.core import TyperCommand

__all__ = ["ManyValues", "one_by_one"]


class ManyValues(TyperCommand):
    """A command whose `--against` takes all words up to the next option; images therefore come before it.

    `options` are those that do so.
    """

    options: tuple[str, ...] = ("--against",)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the option before each of its further values, which is how the parser knows them."""
        for option in self.options:
            args = one_by_one(args, option)
        return super().parse_args(ctx, args)


def one_by_one(words: list[str], option: str) -> list[str]:
    """The words with `option` repeated before each value that follows its first, up to the next option.

    >>> one_by_one(["a.jpg", "--against", "conch", "slug", "--json"], "--against")
    ['a.jpg', '--against', 'conch', '--against', 'slug', '--json']
    """
    written: list[str] = []
    values = None  # how many values have followed the option, None outside of it
    for place, word in enumerate(words):
        if word == "--":
            return written + words[place:]
        if word.startswith("-") and len(word) > 1:
            values = 0 if word == option else None
        elif values is not None:
            written += [option] if values else []
            values += 1
        written.append(word)
    return written
