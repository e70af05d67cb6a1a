"""The documentation site in a browser: its pages fit, its links lead somewhere, its search finds.

It needs Chromium and playwright, and is skipped without them.
"""

import shutil
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium"),
]

WIDER_THAN_THE_WINDOW = "document.documentElement.scrollWidth > window.innerWidth"
WIDER_THAN_THE_PAGE = """[...document.querySelectorAll('.md-typeset table')].filter(
    table => table.getBoundingClientRect().right
        > table.closest('.md-content').getBoundingClientRect().right
).map(table => table.innerText.slice(0, 80))"""
BROKEN_WORDS = """[
    ...document.querySelectorAll('.md-typeset th, .md-typeset :not(pre) > code')
].flatMap(
    element => {
        const broken = [], range = document.createRange();
        const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
        while (walker.nextNode()) {
            for (const word of walker.currentNode.data.matchAll(/[a-zA-Z0-9]+/g)) {
                range.setStart(walker.currentNode, word.index);
                range.setEnd(walker.currentNode, word.index + word[0].length);
                if (range.getClientRects().length > 1) broken.push(word[0]);
            }
        }
        return broken;
    }
)"""
FOUND = """place => [...document.querySelectorAll('.md-search-result__link')].some(
    link => (link.pathname + link.hash).startsWith(place)
)"""
LINKS = """[...document.querySelectorAll('a[href]')].map(link => link.href)"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def site(site_folder):
    """The folder of the site, and its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site_folder))
    Thread(target=server.serve_forever, daemon=True).start()
    yield site_folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def visit(browser, site, width):
    """Yield every page of the site, by name, in a window of a width."""
    folder, address = site
    page = browser.new_page(viewport={"width": width, "height": 900})
    for file in sorted(folder.rglob("index.html")):
        name = file.relative_to(folder).as_posix()
        page.goto(address + name)
        yield name, page
    page.close()


@pytest.mark.parametrize("width", [390, 1280])
def test_no_page_is_wider_than_a_phone_or_a_desktop(browser, site, width):
    pages = {
        name: page.evaluate(WIDER_THAN_THE_WINDOW) for name, page in visit(browser, site, width)
    }
    assert len(pages) > 20
    assert not [name for name, is_wider in pages.items() if is_wider]


@pytest.mark.parametrize("width", [390, 1280])
def test_no_word_of_code_or_of_a_tables_headings_is_broken(browser, site, width):
    broken = {name: page.evaluate(BROKEN_WORDS) for name, page in visit(browser, site, width)}
    assert {name: words for name, words in broken.items() if words} == {}


def test_every_table_fits_a_desktop(browser, site):
    wide = {name: page.evaluate(WIDER_THAN_THE_PAGE) for name, page in visit(browser, site, 1280)}
    assert {name: tables for name, tables in wide.items() if tables} == {}


def test_every_link_leads_to_a_page_and_to_its_heading(browser, site):
    _, address = site
    anchors, links = {}, set()
    for name, page in visit(browser, site, 1280):
        ids = page.evaluate("[...document.querySelectorAll('[id]')].map(one => one.id)")
        anchors[address + name.removesuffix("index.html")] = set(ids)
        links |= {link for link in page.evaluate(LINKS) if link.startswith(address)}
    for link in links:
        target, _, anchor = link.partition("#")
        target = target.removesuffix("index.html")
        assert target in anchors, link
        assert anchor.startswith("__") or not anchor or anchor in anchors[target], link


def test_search_finds_what_is_typed(browser, site):  # test_search.py has what users ask
    _, address = site
    window = browser.new_page()
    window.goto(f"{address}?q=LoRA")
    window.wait_for_function(FOUND, arg="/existing-apps/#train-a-part-of-a-model")
    window.close()


def test_figures_are_on_white_in_the_dark(browser, site):
    _, address = site
    window = browser.new_page(color_scheme="dark")
    window.goto(f"{address}how-it-works/")
    colors = "[...document.images].map(one => getComputedStyle(one).backgroundColor)"
    assert set(window.evaluate(colors)) == {"rgb(255, 255, 255)"}
    window.close()
