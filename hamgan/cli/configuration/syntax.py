"""The text of a configuration: its statements, read without any effect."""

from gin import config_parser

from hamgan.cli.configuration import lookup

# What reading one may raise.
ERRORS = (ValueError, OSError, SyntaxError, ImportError, AttributeError, NameError, TypeError)


class _Name(str):
    """A reference or macro, as it is written: '@context.Hamburger', '%WIDTH'."""

    def __repr__(self):
        return str(self)


class _Reader(config_parser.ParserDelegate):
    """Takes names for what they are, and looks nothing up."""

    def configurable_reference(self, scoped_configurable_name, evaluate):
        return _Name(f"@{scoped_configurable_name}{'()' if evaluate else ''}")

    def macro(self, macro_name):
        return _Name(f"%{macro_name}")


def statements(text):
    """The statements of a configuration's text, without any effect. SyntaxError: it is none."""
    return list(config_parser.ConfigParser(text, _Reader()))


def bindings(text):
    """{'scope/module.Class.parameter': value} of a configuration's text."""
    return {
        lookup.scoped(s.scope, f"{s.selector}.{s.arg_name}" if s.arg_name else s.selector): s.value
        for s in statements(text)
        if isinstance(s, config_parser.BindingStatement)
    }
