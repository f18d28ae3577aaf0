"""What each command pays before it does anything, made less. Commands import this first.

A command is a fresh interpreter that lives for a tenth of a second, most of which it imports.

What the short way of `launcher exec` imports (launcher.cli) does without typing, too, and what that
imports: a third of the whole. Annotations stay what they are, text; and `TYPE_CHECKING = False` is
true for a type checker (https://typing.python.org/en/latest/spec/directives.html#type-checking).
"""

import gc
import sys

_EASY_COLLECTION = 50_000
"""Imports make tens of thousands of objects and no garbage; to look for it after each 700 of them
takes a tenth of the start. What is garbage later is found later."""


def _import_msgspec() -> None:
    """Import msgspec without typing_extensions, which is installed for the checkers only.

    It would take from it what typing has, too; but typing_extensions imports inspect, and that the
    syntax tree, the tokenizer and the disassembler. With None for a module an import of it fails
    (https://docs.python.org/3/reference/import.html#the-module-cache), and msgspec asks typing.
    """
    if "typing_extensions" in sys.modules:
        return
    sys.modules["typing_extensions"] = None  # type: ignore[assignment]
    try:
        import msgspec  # noqa: F401 (from now on it is there)
    finally:
        del sys.modules["typing_extensions"]


gc.set_threshold(_EASY_COLLECTION, 10, 10)
_import_msgspec()
