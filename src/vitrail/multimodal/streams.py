"""Which stream of tokens asks which, in every attention of a forward pass."""

from collections.abc import Sequence

from ..errors import OptionError, UnsupportedAttentionError

__all__ = ["stream_of_each"]


def stream_of_each(
    shapes: Sequence[tuple[int, ...]],
    after: Sequence[frozenset[int]],
    batch: int,
    names: Sequence[str],
    order: Sequence[tuple[str, str]] | None = None,
) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """Returns the streams (queries, keys) of attentions of these shapes (batch, heads, queries, keys), and their sizes.

    Streams are distinguished by their numbers of tokens, and named in the order in which they first ask. Streams of the
    same size betray themselves where an attention was not computed from the one before it (`after`); they need `order`.

    Raises:
        UnsupportedAttentionError: for more than two streams, for windows, and for streams of equal size without order.
        OptionError: where the names or the order do not fit.

    Example:
        >>> stream_of_each([(1, 2, 5, 5), (1, 2, 5, 9)], [frozenset(), frozenset({0})], 1, ["text", "image"])
        ([('text', 'text'), ('text', 'image')], {'text': 5, 'image': 9})
    """
    for index, (images, _, queries, keys) in enumerate(shapes):
        if images != batch:
            raise UnsupportedAttentionError(
                f"attention {index} runs over {images} parts of a batch of {batch} ({queries} queries, {keys} keys): "
                "attention within windows is not supported"
            )
    if order is not None:
        return _as_given(shapes, order)
    sizes = list(dict.fromkeys(size for _, _, queries, keys in shapes for size in (queries, keys)))
    if len(sizes) > 2:
        raise UnsupportedAttentionError(
            f"the model's attentions join tokens of {len(sizes)} sizes ({', '.join(map(str, sizes))}): "
            "the rules are for two streams"
        )
    if len(sizes) == 1:
        for index in range(1, len(shapes)):
            if index - 1 not in after[index]:
                raise UnsupportedAttentionError(
                    f"attention {index} is not computed from attention {index - 1}, so there are two streams, both of "
                    f"{sizes[0]} tokens, which cannot be told apart: name them with order=, one pair (queries, keys) "
                    f"for each of the {len(shapes)} attentions, or let one input be longer (padded and masked)"
                )
    if len(names) < len(sizes):
        raise OptionError(f"streams={list(names)} names {len(names)} of the model's {len(sizes)} streams ({sizes})")
    name_of = dict(zip(sizes, names, strict=False))
    return [(name_of[q], name_of[k]) for _, _, q, k in shapes], {name: size for size, name in name_of.items()}


def _as_given(
    shapes: Sequence[tuple[int, ...]], order: Sequence[tuple[str, str]]
) -> tuple[list[tuple[str, str]], dict[str, int]]:
    if len(order) != len(shapes):
        raise OptionError(f"order= lists {len(order)} attentions, but the model calls {len(shapes)}")
    sizes: dict[str, int] = {}
    for index, ((queries, keys), shape) in enumerate(zip(order, shapes, strict=True)):
        for name, size in ((queries, shape[2]), (keys, shape[3])):
            if sizes.setdefault(name, size) != size:
                raise OptionError(
                    f"order= calls {name!r} what has {size} tokens in attention {index}, and {sizes[name]} before"
                )
    if len(sizes) > 2:
        raise OptionError(f"order= names {len(sizes)} streams ({', '.join(sizes)}); the rules are for two")
    return [(queries, keys) for queries, keys in order], sizes
