"""The page in a real Chromium: nothing runs but its own script, nothing is fetched, keys work."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from report_browser import Browser, chromium
from report_support import make_golf, make_store, nasty_bytes

from tokgolf.report.build import build, write

pytestmark = pytest.mark.slow  # starting a browser takes seconds


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    chromium()  # or skip before anything is made
    folder = tmp_path_factory.mktemp("page")
    text = folder / "nasty.txt"
    text.write_bytes(nasty_bytes())
    report = build([make_store(folder / "runs"), make_golf(folder)], text=str(text))
    write(report, folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("scripts", [True, False])
def test_text_of_a_corpus_shows_as_text_and_nothing_happens(
    page: Path, browser: Browser, scripts: bool, dark: bool
) -> None:
    browser.open(page, scripts=scripts, dark=dark)
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]


def test_a_script_in_a_corpus_is_text(page: Path, browser: Browser) -> None:
    browser.open(page)
    shown = browser.value("document.getElementById('text').textContent")
    # The tokens are single bytes here, so that each byte of the bidi control is spelt out.
    assert shown.startswith("<script>alert(1)</script>\"'&\\xe2\\x80\\xaeevil")
    assert "\\xff" in shown and shown.endswith("end")
    assert browser.value("document.querySelectorAll('script').length") == 2
    assert "<script>alert(1)</script>" in browser.value("document.body.innerText")


def test_a_script_that_is_put_into_the_page_does_not_run(page: Path, browser: Browser) -> None:
    browser.open(page)
    browser.value(
        "const s = document.createElement('script'); s.textContent = 'window.ran = 1'; "
        "document.body.append(s)"
    )
    assert browser.value("window.ran") is None
    assert browser.complaints(), "the policy says that it was refused"


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_the_page_itself_never_scrolls_sideways(page: Path, browser: Browser, width: int) -> None:
    browser.open(page, width=width)
    assert browser.value("document.documentElement.scrollWidth") <= width


def test_tables_sort_by_keyboard_and_say_so(page: Path, browser: Browser) -> None:
    browser.open(page)
    browser.value("document.querySelectorAll('#leaderboard thead button')[5].focus()")
    browser.key("Enter")
    heading = "document.querySelectorAll('#leaderboard thead th')[5]"
    assert browser.value(f"{heading}.getAttribute('aria-sort')") == "ascending"
    cells = "[...document.querySelector('#leaderboard tbody').rows].map(r => +r.cells[5].dataset.v)"
    sizes = browser.value(cells)
    assert sizes == sorted(sizes) and len(sizes) == 4
    browser.key("Enter")
    assert browser.value(cells) == sorted(sizes, reverse=True)
    assert browser.value("document.querySelectorAll('#leaderboard [aria-sort]').length") >= 1


def test_the_text_is_one_stop_and_arrows_tell_each_token(page: Path, browser: Browser) -> None:
    browser.open(page)
    assert browser.value("document.querySelectorAll('#text [tabindex]').length") == 0
    browser.value("document.getElementById('text').focus()")
    first = browser.value("document.getElementById('token').textContent")
    browser.key("ArrowRight")
    second = browser.value("document.getElementById('token').textContent")
    assert "bits" in first and "bits" in second and first != second
    assert browser.value("document.querySelectorAll('#token li').length") == 5


def test_the_first_tab_goes_past_the_header_and_focus_is_seen(page: Path, browser: Browser) -> None:
    browser.open(page)
    browser.key("Tab")
    assert browser.value("document.activeElement.className") == "skip"
    assert browser.value("document.activeElement.getBoundingClientRect().left") >= 0
    assert browser.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_the_theme_follows_the_system_until_it_is_chosen(page: Path, browser: Browser) -> None:
    color = "getComputedStyle(document.body).backgroundColor"
    browser.open(page)
    light = browser.value(color)
    browser.open(page, dark=True)
    dark = browser.value(color)
    assert light != dark
    browser.value("document.getElementById('theme').click()")
    assert browser.value(color) == light


def test_without_scripts_everything_is_there(page: Path, browser: Browser) -> None:
    browser.open(page)
    whole = browser.value("document.querySelectorAll('tbody tr').length")
    browser.open(page, scripts=False)
    document = browser.call("DOM.getDocument", depth=1)["root"]["nodeId"]
    rows = browser.call("DOM.querySelectorAll", nodeId=document, selector="tbody tr")["nodeIds"]
    hidden = browser.call("DOM.querySelectorAll", nodeId=document, selector="[hidden]:not(#theme)")[
        "nodeIds"
    ]
    assert len(rows) == whole and hidden == []


def test_it_prints_on_paper(page: Path, browser: Browser) -> None:
    browser.open(page, dark=True)
    assert browser.pdf().startswith(b"%PDF")
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert browser.value("getComputedStyle(document.querySelector('nav')).display") == "none"
    heading = "document.querySelector('th button').getBoundingClientRect().height"
    assert browser.value(heading) > 5
    browser.call("Emulation.setEmulatedMedia", media="")
