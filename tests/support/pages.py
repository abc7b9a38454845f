"""Pages taken apart: what is on them, and that they load nothing."""

import re
from html.parser import HTMLParser

HOSTILE = ["<script>alert(1)</script>", "$x_{", "_hidden", '"><img src=http://evil/x>', "&amp;", "\x00\x1b[31m", "",
           "\ud800", "日本" * 40]
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Elements, attributes and text; refuses tags that do not close in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts, self._open = [], [], [], []
        self.feed(text)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def assert_nothing_is_loaded(text):
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on"), name
        if name in ("src", "href", "xlink:href", "srcset", "action", "poster"):
            assert value.startswith(("#", "data:")), (name, value)
    styles = text + " ".join(value or "" for name, value in page.attributes if name == "style")
    assert "@import" not in styles and not re.search(r"url\((?!#|\"#|'#|data:)", styles)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids)), "ids of pictures collide"
    return page
