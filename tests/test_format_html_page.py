"""The page for a person as a file: whole, safe to open, and to be read by everybody."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from html_pages import HOSTILE, PAGES, everywhere, tree

from hostprep import render
from hostprep.errors import ReportUnusable
from hostprep.formats import html

each_page = pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)


# -- one file, well formed, that fetches and runs nothing ------------------------------------------


@each_page
def test_the_page_is_well_formed_for_strict_and_for_lenient_parsers(page: str) -> None:
    closed = set(re.findall(r"<([a-z]+)(?: [^<>]*)?/>", page))
    assert closed <= {"meta", "link", "path", "circle", "rect", "use"}  # HTML ignores the / of others
    assert [element.tag for element in tree(page)] == ["head", "body"]
    ids = [element.get("id") for element in tree(page).iter() if element.get("id")]
    assert len(ids) == len(set(ids))


@each_page
def test_nothing_is_fetched_nothing_runs_and_no_style_but_its_own_counts(page: str) -> None:
    root = tree(page)
    ids = {element.get("id") for element in root.iter()}
    style = root.findtext("./head/style", "")
    for element in root.iter():
        assert element.tag not in ("script", "img", "iframe", "object", "embed", "form", "base", "audio", "video")
        assert not [name for name in element.attrib if name.startswith("on") or name in ("style", "src", "action")]
        if link := element.get("href"):
            assert link.startswith("data:image/svg+xml,%3C") or (link[0] == "#" and link[1:] in ids)
    assert not re.search(r"url\(|@import|image-set", style)
    policy = next(m.get("content", "") for m in root.iterfind("./head/meta") if m.get("http-equiv"))
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}';")
    assert [child.tag for child in root[0][:2]] == ["meta", "meta"]  # before anything that it is about


class Tags(HTMLParser):
    """The tags that a lenient parser finds, as browsers have one, with the names of their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, ...]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, *(name for name, _ in attrs)))

    def handle_comment(self, data: str) -> None:
        self.found.append(("a comment", data))


def test_text_of_the_host_is_text() -> None:
    """T8: names and messages come from whoever can name a file, a device or a host."""
    page = html.render(everywhere(HOSTILE))
    assert Tags(page).found == Tags(html.render(everywhere("harmless"))).found
    assert Tags(PAGES["unusable"]).found == Tags(html.unusable(ReportUnusable("harmless", "harmless"))).found
    assert all(c.isprintable() or c == "\n" for c in page)  # no ANSI, no bidi control, no half of a surrogate pair
    assert tree(page).findtext("./head/title", "").startswith(render.line(HOSTILE))
    assert all(escape(render.line(HOSTILE)) in text for text in (page, PAGES["unusable"]))


# -- for everybody, on every screen ---------------------------------------------------------------


@each_page
def test_a_screen_reader_finds_its_way(page: str) -> None:
    root = tree(page)
    ids = {element.get("id") for element in root.iter()}
    assert root.get("lang") == "en"
    assert [len(root.findall(f".//{tag}")) for tag in ("h1", "main")] == [1, 1]
    assert all(cell.get("scope") in ("row", "col") for cell in root.iter("th"))
    assert all(
        e.get("aria-labelledby") in ids for e in root.iter() if e.tag in ("section",) or e.get("aria-labelledby")
    )
    assert all(image.get("aria-hidden") == "true" for image in root.iter("svg"))


def luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance."""
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_can_be_read_on_its_background(scheme: int) -> None:
    """WCAG 2.2, 1.4.3: a contrast of at least 4.5:1."""
    block = re.findall(r":root {(.*?)}", Path(html.STYLE_FILE).read_text(), re.S)[scheme]
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block))
    tones = ("bad", "odd", "wait", "ok")
    pairs = [(text, ground) for text in ("ink", "dim", "link", *tones) for ground in ("page", "card", "soft")]
    for text, ground in [*pairs, *((t, f"{t}-soft") for t in tones), *(("ink", f"{t}-soft") for t in tones)]:
        light, dark = sorted((luminance(colours[text]), luminance(colours[ground])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)


def test_a_real_browser_shows_it_and_refuses_nothing(tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    for name, page in PAGES.items():
        (tmp_path / "page.html").write_text(page)
        argv = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/own"]
        argv += ["--enable-logging=stderr", "--dump-dom", f"file://{tmp_path}/page.html"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
        assert "CONSOLE" not in done.stderr, name
        assert Tags(done.stdout).found == Tags(page).found, name
