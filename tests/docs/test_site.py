"""The documentation site: what its API reference has, and how the repository's pages become its."""

import importlib
import importlib.util

import pytest

pytest.importorskip("mkdocs")

import fedmedian
from fedmedian import clients, privacy, strategies
from fedmedian.clients import attacks
from fedmedian.strategies import legacy
from tests.tools.places import ROOT

SITE = ROOT / "docs" / "site"
PAGES = {"noise.md", "deployment.md", "api/parts.md", "demo.png", "SECURITY.md"}


def load(name):
    spec = importlib.util.spec_from_file_location(name, SITE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def hooks():
    return load("hooks")


@pytest.fixture(scope="module")
def docstrings():
    return load("docstrings")


def public_names():
    """Every public name, by the path under which users import it."""
    for module in (fedmedian, clients, privacy, strategies, legacy):
        yield from (f"{module.__name__}.{name}" for name in module.__all__)
    for name, thing in vars(attacks).items():
        if not name.startswith("_") and getattr(thing, "__module__", "") == attacks.__name__:
            yield f"{attacks.__name__}.{name}"


@pytest.fixture(scope="module")
def package(docstrings):
    griffe = pytest.importorskip("griffe")
    extensions = griffe.Extensions(docstrings.Defaults())
    return griffe.load("fedmedian", search_paths=[ROOT], extensions=extensions)


class TestReference:
    def test_every_public_name_has_a_place_in_it_and_one_only(self, hooks):
        described = [name for name, _ in hooks.reference()]
        modules = {attacks.__name__}
        assert sorted(set(described) - modules) == sorted(public_names())
        assert len(described) == len(set(described))

    def test_code_that_is_a_public_name_becomes_a_link_to_it(self, hooks):
        def linked(code, page="noise.md"):
            return hooks.with_links_to_reference(f"<p><code>{code}</code></p>", page)

        def to(name, code):
            return f'<p><autoref identifier="{name}" optional><code>{code}</code></autoref></p>'

        assert linked("Clip") == to("fedmedian.Clip", "Clip")
        assert linked("fedmedian.Clip") == to("fedmedian.Clip", "fedmedian.Clip")
        assert linked("Clip(1.0)") == to("fedmedian.Clip", "Clip(1.0)")
        assert linked("SignSGD()") == to("fedmedian.strategies.SignSGD", "SignSGD()")
        assert linked("SignSGD", "api/legacy.md") == to(
            "fedmedian.strategies.legacy.SignSGD", "SignSGD"
        )

    @pytest.mark.parametrize(
        ("code", "pieces"),
        [
            ("SignSGD(downlink=CodedSteps())", ["SignSGD(", "downlink=", "CodedSteps())"]),
            ("mods=[perturb]", ["mods=", "[perturb]"]),
            ("fedmedian.clients", ["fedmedian.", "clients"]),
            ("client_app", ["client_", "app"]),
            ("_private", ["_private"]),
            ("44,470 of 0.5", ["44,470 of 0.5"]),
            (
                "DifferentialPrivacyServerSideClipping",
                ["Differential", "Privacy", "Server", "Side", "Clipping"],
            ),
        ],
    )
    def test_code_and_tables_break_between_words(self, hooks, code, pieces):
        for tag in ("code", "table"):
            html = f"<p>{code}</p><{tag}>{code}</{tag}><pre><code>{code}</code></pre>"
            broken = "<wbr>".join(pieces)
            assert hooks.with_breaks(html) == html.replace(
                f"<{tag}>{code}</{tag}><pre>", f"<{tag}>{broken}</{tag}><pre>"
            )

    def test_other_code_and_what_is_a_link_already_stay(self, hooks):
        for html in (
            "<code>fraction_train</code>",
            "<code>make demo</code>",
            '<a href="x">our <code>Clip</code></a>',
            '<h2 id="clip"><code>Clip</code></h2>',
            "<pre><code>Clip(1.0)</code></pre>",
        ):
            assert hooks.with_links_to_reference(html, "noise.md") == html


class TestSignatures:
    @pytest.mark.parametrize(
        ("argument", "default"),
        [
            ("noise", "Gaussian(TopUp())"),
            ("aggregator", "Counts()"),
            ("rotation", "Rotation()"),
            ("seed", "None"),
        ],
    )
    def test_a_default_is_the_value_that_the_code_names(self, package, argument, default):
        signature = package["strategies.arguments.SignArguments.__init__"].parameters
        assert str(signature[argument].default) == default


class TestLinks:
    @pytest.mark.parametrize(
        ("page", "link", "on_the_site"),
        [
            ("noise.md", "[a](deployment.md)", "[a](deployment.md)"),
            ("noise.md", "[a](deployment.md#b)", "[a](deployment.md#b)"),
            ("noise.md", "[a](../SECURITY.md)", "[a](SECURITY.md)"),
            ("api/parts.md", "[a](../noise.md)", "[a](../noise.md)"),
            ("api/parts.md", "[a](../../SECURITY.md)", "[a](../SECURITY.md)"),
            ("SECURITY.md", "[a](docs/noise.md)", "[a](noise.md)"),
            ("SECURITY.md", "[a](SECURITY.md)", "[a](SECURITY.md)"),
        ],
    )
    def test_a_link_to_what_is_a_page_leads_there(self, hooks, page, link, on_the_site):
        assert hooks.site_links(link, page, PAGES) == on_the_site

    @pytest.mark.parametrize(
        ("page", "link"),
        [
            ("noise.md", "[`a`](../experiments/apps)"),
            ("SECURITY.md", "[`a`](tests/docs/test_site.py)"),
            ("noise.md", "[`a`](../README.md)"),
        ],
    )
    def test_of_a_link_to_what_is_not_on_the_site_the_text_is_left(self, hooks, page, link):
        assert hooks.site_links(link, page, PAGES) == "`a`"

    @pytest.mark.parametrize(
        "text",
        ["[a](#b)", "[a](https://example.org)", "![a](demo.png)", "rows[1](x)", "[a](no.md)"],
    )
    def test_all_else_stays(self, hooks, text):
        assert hooks.site_links(text, "noise.md", PAGES) == text


class TestDocstrings:
    @pytest.mark.parametrize(
        ("ours", "theirs"),
        [
            ("x : int (default: 3)", "x : int, default: 3"),
            ("x : Noise (default: ``Clip(2)``)", "x : Noise, default: Clip(2)"),
            ('x : {"a", "b"} (default: "a")', 'x : "a" or "b", default: "a"'),
            ("x, y\n    Both.\n", "x\n    Both.\ny\n    Both.\n"),
        ],
    )
    def test_types_and_defaults_are_told_apart(self, docstrings, ours, theirs):
        assert docstrings.as_numpydoc(ours) == theirs

    @pytest.mark.parametrize(
        "text",
        [
            "Of a list (default: none) the first.",
            "x : int\n    A number.\n",
            "TypeError, ValueError\n    If it is wrong.\n",
        ],
    )
    def test_all_else_stays(self, docstrings, text):
        assert docstrings.as_numpydoc(text) == text
