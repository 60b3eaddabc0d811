"""Pages of HTML filled from templates, whole and self-contained."""

import base64
import hashlib
from pathlib import Path
from typing import Any

from utils.errors import InputError
from utils.files import in_words
from utils.later import jinja2

LARGEST = 2_000_000  # bytes: what goes by mail and opens on a telephone


def fill(template: str, folder: str | Path, **content: Any) -> str:
    """Fill a template that extends `base.html.jinja`.

    The page's policy lets one script run, the one whose hash it names, and lets nothing load.

    Args:
        template: its file's name.
        folder: where the page's pictures are from, for the message.
        content: by the names that the template has for it.

    Raises:
        InputError: the page would be larger than `LARGEST`.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # The page allows this one script, by its hash, and nothing else.
    script = environment.get_template("sorting.js.jinja").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template(template).render(
        script=jinja2.utils.markupsafe.Markup(script), script_hash=f"sha256-{digest}", **content
    )
    if (size := len(page.encode())) > LARGEST:
        most = in_words(LARGEST)
        raise InputError(
            f"the page would be {in_words(size)}, above {most}; take pictures out of {folder}"
        )
    return page
