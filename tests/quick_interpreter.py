"""Triton's interpreter, without what it does again at every call inside a kernel."""

import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpretedFunction


def patch_the_language_once() -> None:
    """The launch of a kernel exchanges the members of `triton.language` for interpreted ones.

    Every call of a function inside it does so again, which is more than a third of the time of a
    kernel with loops. Only those of `triton.language.core`, which Triton's own functions use, are
    not exchanged by the launch; nor are they put back afterwards.
    """
    core_is_patched = False

    def call(self: InterpretedFunction, *args, **kwargs):
        nonlocal core_is_patched
        if not core_is_patched and any(x is tl.core for x in self.fn.__globals__.values()):
            interpreter._patch_lang(self.fn)
            core_is_patched = True
        try:
            return self.rewrite()(*args, **kwargs)
        except Exception as e:
            raise interpreter.InterpreterError(repr(e)) from e

    InterpretedFunction.__call__ = call
