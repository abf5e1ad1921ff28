"""The demonstration: a folder of pictures and a page, made from the built-in world without any network."""

from vitrail.demo.page import write_demo

__all__ = ["write_demo"]
