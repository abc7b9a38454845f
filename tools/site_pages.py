"""A hook of MkDocs (``mkdocs.yml``): the documents for maintainers in ``.doc/`` become pages of the site as well.

Links between ``docs/`` and ``.doc/`` are written as they work in the repository; here they become links of the site.
"""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
INSIDE = "inside/"
"""Where ``.doc/`` lies in the site."""


def on_files(files, config):
    """Add every page and picture of ``.doc/``."""
    for path in sorted((ROOT / ".doc").rglob("*.*")):
        name = INSIDE + path.relative_to(ROOT / ".doc").as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links to the other folder of documents, and to files of the repository, which the site does not have."""
    here = page.file.src_uri
    if here.startswith(INSIDE):
        up = "../" * here.count("/")
        markdown = re.sub(r"\]\((?:\.\./)+docs/", f"]({up}", markdown)
    else:
        markdown = markdown.replace("](../.doc/", f"]({INSIDE}")
    return re.sub(r"\[([^\]]+)\]\((?:\.\./)+(?:README|CHANGELOG|tests|examples|src)[^)]*\)", r"\1", markdown)
