"""HTML pages that stand alone: templates filled with escaped values, with styles, scripts and pictures inside."""

from __future__ import annotations

import base64
import json
import math
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from cryo_monai.errors import InputError

MEDIA_TYPES = {"svg": "image/svg+xml", "png": "image/png", "webp": "image/webp"}


def check_folder(target: Path, page: str) -> None:
    """Refuse a folder that holds something else than a page, or a part of one.

    Raises
    ------
    InputError
    """
    if target.exists() and not target.is_dir():
        raise InputError(f"{target}: is a file; give a folder")
    # An interrupted call leaves a part of these.
    ours = (page, "metrics.json", "figures")
    others = sorted(entry.name for entry in target.iterdir() if entry.name not in ours) if target.is_dir() else []
    if others:
        what = "a run" if "run.json" in others else f"something else ({others[0]})"
        raise InputError(f"{target}: holds {what}; choose another output_dir")


def render(template: str, **context: Any) -> str:
    """Fill a template of ``reports/templates``; text is escaped, and nothing is fetched when the page is opened.

    Templates have these besides Jinja's own: ``asset(name)``, the text of a file beside them; ``{{ value | json }}``
    for a ``<script type="application/json">``; ``{{ number | decimals(3) }}``, a dash where there is no number.

    Parameters
    ----------
    template : str
        File name, such as ``"report.html.jinja"``.
    **context
        What the template names; a name that is missing is an error.

    Returns
    -------
    str
        The page.
    """
    return str(_environment().get_template(template).render(context))


@cache
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("cryo_monai.reports", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["asset"] = asset
    environment.filters["json"] = script_json
    environment.filters["decimals"] = decimals
    return environment


def asset(name: str) -> Any:
    """Text of a file in ``cryo_monai/reports/templates``, marked as not to be escaped."""
    from markupsafe import Markup

    return Markup(files("cryo_monai.reports").joinpath("templates", name).read_text(encoding="utf-8"))


def script_json(value: Any) -> Any:
    """JSON that can stand within a ``<script>``: nothing in it ends the element or opens a comment.

    Raises
    ------
    ValueError
        For numbers that JSON does not have.
    """
    from markupsafe import Markup

    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def decimals(value: float | None, places: int = 3) -> str:
    """Write a number with so many decimals; a dash where it is undefined."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{places}f}"


def data_uri(content: bytes | str, kind: str) -> str:
    """Return a picture as the address of an ``<img>``; `kind` is one of ``svg``, ``png``, ``webp``."""
    raw = content.encode() if isinstance(content, str) else content
    return f"data:{MEDIA_TYPES[kind]};base64,{base64.b64encode(raw).decode('ascii')}"
