"""What the site needs beyond its configuration: pages from the top level, and links that hold.

In the repository a page links to any file, by a path that is relative to its own. On the site some
files of the top level are pages too, and what is no page has no address: its link becomes text.
What the API reference describes is a link wherever it is named.
"""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]

OF_THE_TOP_LEVEL = ("SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md")
"""Files beside docs/ that are pages of the site."""

_DIRECTIVE = re.compile(r"^::: (\S+)$", flags=re.MULTILINE)
_CODE = re.compile(
    r"<(a|autoref|h\d|pre)\b.*?</\1>|<code>((?:\w+\.)*\w+)(?:\(.*?\))?</code>", flags=re.DOTALL
)
_TAG = re.compile(r"(<pre\b.*?</pre>|<[^>]*>)", flags=re.DOTALL)
_BREAK = re.compile(r"(?<=\w)[(\[_/](?=[^\W\d])|=(?=[^\W\d]|[\[(])|[.,](?=[^\W\d])")
_LONG_WORD = re.compile(r"[^\W_]{30,}")
_LINK = re.compile(r"(?<!!)\[([^\]\n]+)\]\(([^)#\s:]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/."""
    for name in OF_THE_TOP_LEVEL:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Link a page's names of what the API reference describes, and let long ones break."""
    return with_breaks(with_links_to_reference(html, page.file.src_uri))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn a page's links from paths in the repository to paths on the site."""
    return site_links(markdown, page.file.src_uri, set(files.src_uris))


def site_links(markdown: str, page: str, pages: set[str]) -> str:
    """Return a page with each link to a file of the repository as the site needs it.

    Parameters
    ----------
    markdown : str
        The page as it stands in the repository.
    page : str
        Its path on the site: relative to docs/, or of a file of the top level its name.
    pages : set of str
        The paths of all that is on the site.

    Returns
    -------
    str
        The page. Links to what is on the site lead there, and of others the text is left.
    """
    in_repository = PurePosixPath("" if page in OF_THE_TOP_LEVEL else "docs", page)

    def on_the_site(found: re.Match[str]) -> str:
        text, target, anchor = found.group(1), found.group(2), found.group(3) or ""
        path = (ROOT / in_repository.parent / target).resolve()
        if not path.is_relative_to(ROOT) or not path.exists():
            return found.group()  # code that looks like a link, or a broken one, which mkdocs names
        name = path.relative_to(ROOT).as_posix()
        site_path = name.removeprefix("docs/")
        if site_path not in pages or (site_path == name and name not in OF_THE_TOP_LEVEL):
            return text
        up = "../" * page.count("/")
        return f"[{text}]({up}{site_path}{anchor})"

    return _LINK.sub(on_the_site, markdown)


def reference() -> Iterator[tuple[str, str]]:
    """Yield all that the API reference describes, each with the page that does."""
    for path in sorted((ROOT / "docs" / "api").glob("*.md")):
        for name in _DIRECTIVE.findall(path.read_text(encoding="utf-8")):
            yield name, f"api/{path.name}"


def with_links_to_reference(html: str, page: str) -> str:
    """Return a page's HTML with a link wherever code is a name of the API reference.

    Where two have one name, as in both of Flower's APIs, it is that of the page, or else the newer.
    """
    known: dict[str, str] = {}
    for name, _ in sorted(reference(), key=lambda one: (one[1] != page, ".legacy." in one[0])):
        known.setdefault(name, name)
        known.setdefault(name.rpartition(".")[2], name)

    def linked(found: re.Match[str]) -> str:
        name = known.get(found[2])
        if name is None:
            return found[0]
        return f'<autoref identifier="{name}" optional>{found[0]}</autoref>'

    return _CODE.sub(linked, html)


def with_breaks(html: str) -> str:
    """Return a page's HTML in which code, and what is in tables, may break between its words."""
    parts, depth = [], 0
    for part in _TAG.split(html):
        if tag := re.match(r"<(/?)(?:table|code)\b", part):
            depth += -1 if tag[1] else 1
        elif depth and not part.startswith("<"):
            part = _LONG_WORD.sub(
                lambda word: re.sub("(?<=[a-z])(?=[A-Z])", "<wbr>", word[0]), part
            )
            part = _BREAK.sub(r"\g<0><wbr>", part)
        parts.append(part)
    return "".join(parts)
