"""Modules that are loaded when the flags have been read: TensorFlow takes seconds, --help none."""

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys

_lazy = []


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the project's modules, to be run at the first use of anything in them."""

    def find_spec(self, name, path, target=None):
        del target
        if not name.startswith("hamgan.") or path is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = importlib.util.LazyLoader(spec.loader)
            _lazy.append(name)
        return spec


@contextlib.contextmanager
def imports():
    """The project's modules that are imported within are loaded by `load`, or when one of their
    names is asked for.
    """
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def load():
    """Loads what was imported so: a command's threads mustn't be the first to ask."""
    while _lazy:
        getattr(sys.modules[_lazy.pop()], "__doc__")  # noqa: B009 - asked for its effect
