"""The site of documents: every page is in its navigation, and it builds without a warning (``make docs``)."""

import re
import subprocess
import sys

import pytest
import yaml

from app_runs import ROOT

TEXT = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
INSIDE = "inside/"


def entries(nav):
    """The pages of a navigation, in order."""
    for item in nav:
        value = next(iter(item.values())) if isinstance(item, dict) else item
        if isinstance(value, str):
            yield value
        else:
            yield from entries(value)


def test_every_page_is_in_the_navigation_once():
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    pages += [INSIDE + path.relative_to(ROOT / ".doc").as_posix() for path in (ROOT / ".doc").rglob("*.md")]
    named = list(entries(yaml.safe_load(TEXT)["nav"]))
    assert sorted(named) == sorted(pages), "docs/, .doc/ and the nav of mkdocs.yml must have the same pages"


def test_links_to_the_maintainers_documents_are_links_of_the_site():
    pytest.importorskip("mkdocs")
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        from site_pages import on_page_markdown
    finally:
        sys.path.remove(str(ROOT / "tools"))

    class Page:
        class file:
            src_uri = "limits.md"

    assert on_page_markdown("[a](../.doc/b/c.md#d)", Page, None, None) == "[a](inside/b/c.md#d)"
    assert on_page_markdown("[a](../examples/b)", Page, None, None) == "a"
    Page.file.src_uri = "inside/90_operations/x.md"
    assert on_page_markdown("[a](../../docs/b.md)", Page, None, None) == "[a](../../b.md)"
    assert on_page_markdown("[a](../10_modules/b.md)", Page, None, None) == "[a](../10_modules/b.md)"


def test_it_builds_without_a_warning(tmp_path):
    pytest.importorskip("material")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=str(ROOT), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    home = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert 'href="inside/90_operations/experiments.html"' in home
    assert not re.findall(r'(?:src|href)="(?:https?:)?//(?!github\.com/fla-org)[^"]*\.(?:js|css|woff2?)', home)
