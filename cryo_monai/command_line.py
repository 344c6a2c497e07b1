"""Fire without its surprises: unknown flags stop a verb before it runs, values have the types that it asks for."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import fire
import fire.decorators

# Where Fire keeps how to parse a verb's arguments; under its own name it would be listed in every help.
fire.decorators.FIRE_METADATA = "_fire_metadata"

SHIPPED = Path(__file__).parent / "shipped"  # in wheels only: copies of bundles/ and configs/
Verb = Callable[..., None]
Verbs = Mapping[str, "Verb | Mapping[str, Verb]"]


Number = TypeVar("Number", int, float)


class UsageError(Exception):
    """A command line that does not fit its verb."""


def split_list(text: str) -> list[str]:
    """Split a comma-separated argument."""
    return [part for part in text.split(",") if part]


def split_numbers(name: str, text: str, kind: type[Number]) -> tuple[Number, ...]:
    """Split a comma-separated argument into three numbers.

    Raises
    ------
    UsageError
    """
    try:
        numbers = tuple(kind(part) for part in split_list(text))
    except ValueError:
        numbers = ()
    if len(numbers) != 3:
        raise UsageError(f"--{name} {text}: give three numbers, separated by commas")
    return numbers


def _located(argument: str) -> str:
    """Point names of bundles and overlays that are not in the working directory to those that came with the wheel."""
    flag, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    parts = value.split(",")
    for number, part in enumerate(parts):
        ours = SHIPPED / part
        if part.startswith(("bundles/", "configs/")) and not Path(part).exists() and ours.exists():
            parts[number] = str(ours)
    return f"{flag}{equals}{','.join(parts)}"


def parameters_of(verb: Verb) -> list[str]:
    """Names of the flags that a verb spells out."""
    parameters = inspect.signature(verb).parameters.values()
    return [p.name for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD]


def refuse_unknown(names: Iterable[str], known: Sequence[str]) -> None:
    """Stop at the first name that is not known, with the nearest that is.

    Raises
    ------
    UsageError
    """
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            raise UsageError(f"--{name}: no such option" + (f"; did you mean --{near[0]}?" if near else ""))


def _refuse_unknown_flags(verb: Verb, arguments: list[str]) -> None:
    """Fire runs a function first and rejects a flag afterwards: look at the flags before."""
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in inspect.signature(verb).parameters.values()):
        return
    names = [a.lstrip("-").partition("=")[0].replace("-", "_") for a in arguments if a.startswith("--")]
    refuse_unknown(names, [*parameters_of(verb), "help"])


def _spelled_out(verb: Verb, arguments: list[str]) -> list[str]:
    """Write ``-o`` as ``--output_dir``, as help says: Fire does not where a verb takes any flag."""
    spelled = []
    for argument in arguments:
        letter, equals, value = argument[1:].partition("=")
        if argument.startswith("-") and len(letter) == 1 and letter.isalpha():
            names = [name for name in parameters_of(verb) if name.startswith(letter)]
            if len(names) != 1:
                raise UsageError(f"-{letter}: " + (f"could be {', '.join(names)}" if names else "no such option"))
            argument = f"--{names[0]}{equals}{value}"
        spelled.append(argument)
    return spelled


def _refuse_empty_flags(verb: Verb, arguments: list[str]) -> None:
    """Fire gives a flag without a value the value True, which would be a file of that name."""
    parameters = inspect.signature(verb).parameters
    for argument, following in pairwise([*arguments, "--"]):
        name = argument.removeprefix("--").replace("-", "_")
        parameter = parameters.get(name) if argument.startswith("--") else None
        if parameter is None or parameter.kind is inspect.Parameter.VAR_KEYWORD or str(parameter.annotation) == "bool":
            continue
        if following.startswith("--"):
            raise UsageError(f"--{name}: give a value")


def _converted(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb its arguments as its annotations say; Fire would guess types from how a text looks."""
    parameters = inspect.signature(verb).parameters

    def call(*args: str, **kwargs: str) -> None:
        bound = inspect.signature(verb).bind(*args, **kwargs)
        given = {k: v for k, v in bound.arguments.items() if parameters[k].kind is not inspect.Parameter.VAR_KEYWORD}
        rest = {k: v for k, v in kwargs.items() if k not in given}
        verb(**{name: _convert(name, value, str(parameters[name].annotation)) for name, value in given.items()}, **rest)

    call.__name__, call.__doc__ = verb.__name__, verb.__doc__
    call.__signature__ = inspect.signature(verb)  # type: ignore[attr-defined]
    wrapped: Callable[..., None] = fire.decorators.SetParseFn(str)(call)
    return wrapped


def _convert(name: str, value: Any, annotation: str) -> Any:
    if not isinstance(value, str):
        return value
    if annotation == "bool":
        known = {"true": True, "false": False}
        if value.lower() not in known:
            raise UsageError(f"--{name} {value}: give True or False")
        return known[value.lower()]
    try:
        return {"int": int, "float": float}.get(annotation, str)(value)
    except ValueError:
        raise UsageError(f"--{name} {value}: not a number") from None


def _named(verbs: Any, arguments: list[str]) -> tuple[Verb | None, list[str]]:
    """Return the verb that the first arguments name, and the rest."""
    node = verbs
    for position, argument in enumerate(arguments):
        if not isinstance(node, Mapping):
            return node, arguments[position:]
        if argument.startswith("-"):
            return None, []
        if argument not in node:
            near = get_close_matches(argument, node, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(node)}"
            raise UsageError(f"{' '.join(arguments[: position + 1])}: no such verb; {hint}")
        node = node[argument]
    return (None, []) if isinstance(node, Mapping) else (node, [])


def _all_converted(verbs: Any) -> Any:
    if isinstance(verbs, Mapping):
        return {name: _all_converted(verb) for name, verb in verbs.items()}
    return _converted(verbs)


def run(verbs: Verbs, arguments: list[str]) -> int:
    """Call the verb that the arguments name, and turn errors into one line.

    Returns
    -------
    int
        Exit code: 0, 1 for errors, 2 for usage, 75 when stopped and saved, 130 when interrupted.
    """
    try:
        arguments = [_located(argument) for argument in arguments]
        verb, flags = _named(verbs, arguments)
        if "--help" in arguments or "-h" in arguments:
            # In Fire's own way: a verb that takes any flag would take this one too.
            path = arguments[: len(arguments) - len(flags)]
            flags, arguments = [], [*(name for name in path if not name.startswith("-")), "--", "--help"]
        if verb is not None:
            path = arguments[: len(arguments) - len(flags)]
            flags = _spelled_out(verb, flags)
            arguments = [*path, *flags]
            _refuse_unknown_flags(verb, flags)
            _refuse_empty_flags(verb, flags)
        fire.Fire(_all_converted(verbs), command=arguments, name="cryo-monai")
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        from cryo_monai.errors import user_error

        cause = user_error(error)
        if cause is None:
            raise
        print(f"error: {cause}", file=sys.stderr)
        return 1
    return 0


@contextmanager
def late_bar(**options: Any) -> Iterator[Callable[[int, int | None], None]]:
    """Give a function that shows what is done of a total, from its first call on: mistakes come before that."""
    from tqdm.auto import tqdm

    bars: list[tqdm[None]] = []

    def show(done: int, total: int | None) -> None:
        if not bars:
            bars.append(tqdm(total=total, **options))
        if bars[0].total != total:
            bars[0].reset(total)  # another thing with steps of its own
        bars[0].update(done - bars[0].n)

    try:
        yield show
    finally:
        for bar in bars:
            bar.close()


def counted(show: Callable[[int, int | None], None], total: int | None) -> Callable[[int], None]:
    """Turn a function that shows what is done into one that is told of every step."""
    done = 0

    def advance(steps: int) -> None:
        nonlocal done
        done += steps
        show(done, total)

    return advance
