"""What arguments take: kind and range of each, as a table beside the constructor that has them.

The same table serves the constructor, which checks the values it gets, and whoever reads a
configuration, which is checked before anything is built.

    @arguments.take(width=arguments.whole(1), context=arguments.constructor("@context.Hamburger"))
    class Generator: ...
"""

import dataclasses
import inspect
import math
import numbers
from collections.abc import Callable

# What networks compute in: Keras dtype policies. (float16 would need gradients to be scaled.)
PRECISIONS = ("float32", "mixed_bfloat16")

_LITERALS = (str, bytes, bool, int, float, complex, list, tuple, dict, set)


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of value.

    Attributes:
      rule: what it must, 'be at least 1'.
      takes: what it is, for people: 'a whole number like 100'.
      convert: function value -> the value as it is used; a ValueError or TypeError refuses it.
      refers: function (class or function, whether it is called) -> whether a configuration may
        name it here in place of a value.
      parts: the kind of each part of a list, None for other kinds.
    """

    rule: str
    takes: str
    convert: Callable
    refers: Callable
    parts: "Kind | None" = None


def refused(kind: Kind, name: str, value: str) -> ValueError:
    """The error of a value, given as text, that the argument `name` doesn't take."""
    return ValueError(f"{name} must {kind.rule}, got {value}. It takes {kind.takes}.")


def _refuse_unless(condition):
    if not condition:
        raise ValueError


def _is_number(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _called_function(target, called):
    """A value may be what a function returns; what that is, the constructor sees."""
    return called and not inspect.isclass(target)


def whole(least: int = 0, below: int = 2**63) -> Kind:
    """A whole number in [least, below), also written as 1e6."""

    def convert(value):
        _refuse_unless(_is_number(value))
        if not isinstance(value, numbers.Integral):
            # Beyond 2^53 a float no longer says which whole number was meant.
            _refuse_unless(float(value).is_integer() and abs(value) <= 2**53)
        _refuse_unless(least <= value < below)
        return int(value)

    rule = f"be at least {least}" if below == 2**63 else f"be in [{least}, {below})"
    example = "1000 or 1e6" if below > 10**6 else f"{below - 1}"
    return Kind(rule, f"a whole number like {example}", convert, _called_function)


def number(
    least: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> Kind:
    """A finite number with limits: at least, above, below, at most."""

    def convert(value):
        _refuse_unless(_is_number(value) and math.isfinite(value))
        _refuse_unless(least is None or value >= least)
        _refuse_unless(above is None or value > above)
        _refuse_unless(below is None or value < below)
        _refuse_unless(most is None or value <= most)
        return value

    low = f"[{least}" if least is not None else f"({above}" if above is not None else None
    high = f"{most}]" if most is not None else f"{below})" if below is not None else None
    if low and high:
        rule = f"be in {low}, {high}"
    elif least is not None:
        rule = "not be negative" if least == 0 else f"be at least {least}"
    elif above is not None:
        rule = "be positive" if above == 0 else f"be above {above}"
    else:
        rule = f"be at most {most}" if most is not None else "be finite"
    return Kind(rule, "a finite number", convert, _called_function)


def truth() -> Kind:
    """True or False."""

    def convert(value):
        _refuse_unless(isinstance(value, bool))
        return value

    return Kind("be True or False", "True or False", convert, _called_function)


def text() -> Kind:
    """A string that isn't empty."""

    def convert(value):
        _refuse_unless(isinstance(value, str) and value)
        return value

    return Kind("be a text that isn't empty", "a text in quotes", convert, _called_function)


def one_of(*values) -> Kind:
    """One of some values."""

    def convert(value):
        _refuse_unless(not isinstance(value, bool))
        return values[values.index(value)]

    words = f"one of {', '.join(repr(value) for value in values if value is not None)}"
    if None in values:
        words = f"None or {words}"
    return Kind(f"be {words}", words, convert, _called_function)


def constructor(example: str, *, of: type = object) -> Kind:
    """A class, or a function that makes objects of it; `of`: of which class."""

    def fits(target, called=False):
        return (
            not called
            and callable(target)
            and not (inspect.isclass(target) and not issubclass(target, of))
        )

    def convert(value):
        _refuse_unless(fits(value))
        return value

    return Kind("be a constructor", f"a constructor like {example}", convert, fits)


def function(example: str) -> Kind:
    """A function, or an object that can be called as one."""

    def convert(value):
        _refuse_unless(callable(value) and not inspect.isclass(value))
        return value

    return Kind(
        "be a function",
        f"a function like {example}",
        convert,
        # A class that isn't called is no function, and what a function returns hardly one.
        lambda target, called: inspect.isclass(target) == called,
    )


def made(example: str, *, of: type = object) -> Kind:
    """An object of a class."""

    def convert(value):
        _refuse_unless(value is not None and not isinstance(value, (*_LITERALS, type)))
        _refuse_unless(isinstance(value, of))
        return value

    def refers(target, called):
        return called and not (inspect.isclass(target) and not issubclass(target, of))

    return Kind("be an object", f"an object like {example}", convert, refers)


def each(kind: Kind) -> Kind:
    """A list or tuple of values of one kind."""

    def convert(value):
        _refuse_unless(isinstance(value, list | tuple))
        return type(value)(kind.convert(part) for part in value)

    return Kind(
        f"be a list, each part of which must {kind.rule}",
        f"a list or tuple; each part is {kind.takes}",
        convert,
        _called_function,
        parts=kind,
    )


def either(*kinds: Kind) -> Kind:
    """A value of one of some kinds."""

    def convert(value):
        for kind in kinds:
            try:
                return kind.convert(value)
            except (ValueError, TypeError):
                pass
        raise ValueError

    return Kind(
        kinds[0].rule,
        ", or ".join(kind.takes for kind in kinds),
        convert,
        lambda target, called: any(kind.refers(target, called) for kind in kinds),
        parts=next((kind.parts for kind in kinds if kind.parts), None),
    )


def optional(kind: Kind) -> Kind:
    """A value of a kind, or None."""
    return dataclasses.replace(
        kind,
        takes=f"{kind.takes}, or None",
        convert=lambda value: None if value is None else kind.convert(value),
    )


def seed() -> Kind:
    """A seed, as wide as `hamgan.stateless` keeps it."""
    return dataclasses.replace(whole(), rule="be in [0, 2**63)")


def take(**kinds: Kind) -> Callable:
    """Gives a class or function its table, {argument: kind}, beside those of its bases."""

    def decorate(target):
        target.ARGUMENTS = {**getattr(target, "ARGUMENTS", {}), **kinds}
        return target

    return decorate


def parameters_of(target) -> dict[str, inspect.Parameter]:
    """{argument: `inspect.Parameter`} of a class or function; of a class that passes others on
    (`**kwargs`) those of its bases in `hamgan` too.
    """
    classes = inspect.getmro(target) if inspect.isclass(target) else (target,)
    found: dict[str, inspect.Parameter] = {}
    for each in classes:
        if each is not target and not each.__module__.startswith("hamgan."):
            break
        parameters = inspect.signature(each).parameters.values()
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        found = {p.name: p for p in parameters if p.kind in kinds} | found
        if all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in parameters):
            break
    return found


def kinds_of(target) -> dict[str, Kind]:
    """{argument: kind} of a class or function; where no table has it, by the default's kind."""
    found = {"dtype": one_of(None, *PRECISIONS), "name": optional(text())}
    for parameter in inspect.signature(target).parameters.values():
        for kind, holds in (
            (truth(), isinstance(parameter.default, bool)),
            (whole(), isinstance(parameter.default, int)),
            (number(), isinstance(parameter.default, float)),
            (text(), isinstance(parameter.default, str)),
        ):
            if holds:
                found[parameter.name] = kind
                break
    return {**found, **getattr(target, "ARGUMENTS", {})}


def check(owner: str, kinds: dict[str, Kind], **values) -> dict:
    """Checks values against a table.

    Args:
      owner: who has the arguments, for the error.
      kinds: {argument: kind}.
      **values: {argument: value}.

    Returns:
      {argument: the value as it is used}.

    Raises:
      ValueError: a value isn't of its argument's kind or range.
    """
    converted = {}
    for name, value in values.items():
        try:
            converted[name] = kinds[name].convert(value)
        except (ValueError, TypeError):
            raise refused(kinds[name], f"{owner}: {name}", repr(value)) from None
    return converted


def check_fields(made) -> None:
    """`check` of all fields of a dataclass's object, to be called in its `__post_init__`."""
    kinds = kinds_of(type(made))
    values = {f.name: getattr(made, f.name) for f in dataclasses.fields(made) if f.name in kinds}
    for name, value in check(type(made).__name__, kinds, **values).items():
        object.__setattr__(made, name, value)
