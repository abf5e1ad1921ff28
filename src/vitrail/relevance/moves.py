"""The functions that only move numbers about: relevance moves with them, as a gradient does."""

__all__ = ["CASTS", "MOVES"]

MOVES = frozenset(
    "__getitem__ as_strided broadcast_to cat chunk clone column_stack concat concatenate contiguous detach diagonal "
    "dstack expand expand_as flatten flip gather hsplit hstack index_select movedim moveaxis narrow pad permute "
    "pixel_shuffle pixel_unshuffle ravel repeat repeat_interleave requires_grad_ reshape reshape_as roll rot90 select "
    "split split_with_sizes squeeze stack swapaxes swapdims t take_along_dim tensor_split tile transpose tril triu "
    "unbind unflatten unfold unsqueeze view view_as vsplit vstack where masked_fill masked_select adjoint as_subclass "
    "_unsafe_view alias positive __pos__".split()
)

# These also change the type, which the rules' own precision overrides.
CASTS = frozenset("to type type_as float double half bfloat16 cpu cuda".split())
