"""The HTML in a real browser without a network: whole, readable on a telephone and in the dark, silent in its console."""

import base64
import io
import json
import re
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from urllib.parse import unquote

import pypdf
import pytest
import websocket
from sample_notebook import FORMULAS, sample, save

from lib.export.exporter import PageExporter

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: on Debian, apt-get install chromium")
WIDTHS = (320, 390, 768, 1400)


class Browser:
    """A headless Chromium, told what to do through its DevTools; `events` are what it has reported."""

    def __init__(self, folder):
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-allow-origins=*"]
        flags += ["--remote-debugging-port=0", f"--user-data-dir={folder}", "--host-resolver-rules=MAP * ~NOTFOUND"]
        self.process = subprocess.Popen([CHROMIUM, *flags, "about:blank"], stderr=subprocess.DEVNULL)
        port = self.wait(folder / "DevToolsActivePort")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
            (page,) = [target for target in json.load(answer) if target["type"] == "page"]
        self.socket = websocket.create_connection(page["webSocketDebuggerUrl"], timeout=60)
        self.asked, self.events, self.at = 0, [], None
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    @staticmethod
    def wait(path):
        deadline = time.monotonic() + 60
        while not (path.exists() and path.read_text().count("\n")):
            assert time.monotonic() < deadline, "Chromium has not started"
            time.sleep(0.1)
        return path.read_text().splitlines()[0]

    def ask(self, method, **params):
        self.asked += 1
        self.socket.send(json.dumps({"id": self.asked, "method": method, "params": params}))
        while True:
            answer = json.loads(self.socket.recv())
            if answer.get("id") == self.asked:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def run(self, script):
        """The value of a JavaScript expression in the page."""
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def open(self, path, width=1400):
        """Show a page, unless it is shown already."""
        if self.at == (path, width):
            return
        self.at = (path, width)
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=width < 700)
        self.events.clear()
        self.ask("Page.navigate", url=path.as_uri())
        deadline = time.monotonic() + 60
        while self.run("document.readyState") != "complete":
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def close(self):
        self.socket.close()
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture(scope="module", params=["sample", "report"])
def page(request, tmp_path_factory):
    """One page of everything, and the page of the committed notebook, each alone in a folder."""
    folder = tmp_path_factory.mktemp("page")
    if request.param == "sample":
        source = save(sample(), tmp_path_factory.mktemp("a b"), "my notebook.ipynb")
    else:
        source = ROOT / "assignment1.ipynb"
    (folder / "page.html").write_text(PageExporter().from_filename(str(source))[0], encoding="utf-8")
    return folder / "page.html"


def test_it_is_one_file_and_the_console_is_silent(browser, page):
    browser.open(page)
    loud = [
        event
        for event in browser.events
        if event["method"] in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
    ]
    assert loud == []
    asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert asked[0] == page.as_uri() and all(url.startswith("data:") for url in asked[1:])
    assert not re.search(r"""(src|href)=["']?https?://[^"']*\.(js|css|woff2?|png)""", page.read_text(encoding="utf-8"))


def test_formulas_are_mathml(browser, page):
    browser.open(page)
    text = browser.run("""(copy => { copy.querySelectorAll('pre, code').forEach(node => node.remove()); return copy.textContent })
        (document.documentElement.cloneNode(true))""")
    assert not re.search(r"\\[a-zA-Z]+|\$\$|<!--", text)
    assert browser.run("document.querySelectorAll('math').length") > 20
    flat = "[...document.querySelectorAll('math')].filter(m => !m.getBoundingClientRect().height).length"
    assert browser.run(flat) == 0 and browser.run("document.querySelectorAll('merror').length") == 0


@pytest.mark.parametrize("width", WIDTHS)
def test_no_screen_is_too_narrow(browser, page, width):
    browser.open(page, width)
    assert browser.run("document.documentElement.scrollWidth") <= width
    outside = f"""[...document.querySelectorAll('main *')].filter(node =>
        node.getBoundingClientRect().right > {width} && !node.closest('pre, .table, .formula')).map(node => node.outerHTML.slice(0, 80))"""
    assert browser.run(outside) == []


def test_every_picture_has_its_text(browser, page):
    browser.open(page)
    pictures = browser.run("[...document.images].map(image => [image.alt, image.naturalWidth, image.src.slice(0, 5)])")
    assert len(pictures) >= 6
    for alt, width, source in pictures:
        assert alt.strip() and width > 0 and source == "data:"
        assert "No description" not in alt


def test_captions_belong_to_their_figures_and_tables(browser, page):
    browser.open(page)
    captions = browser.run("[...document.querySelectorAll('figcaption')].map(node => node.innerText)")
    for kind in ("Figure", "Table"):
        numbers = [int(found[1]) for text in captions if (found := re.match(rf"{kind} (\d+)\.", text))]
        assert numbers == list(range(1, len(numbers) + 1))
    loose = "[...document.querySelectorAll('main p > strong:first-child')].filter(s => /^(Figure|Table)/.test(s.innerText)).length"
    assert browser.run(loose) == 0
    differ = """[...document.querySelectorAll('figure')].filter(figure => figure.querySelector('figcaption'))
        .filter(figure => !figure.querySelector('table, img[alt]')).length"""
    assert browser.run(differ) == 0


def test_links_lead_somewhere(browser, page):
    browser.open(page)
    targets = browser.run(
        """[...document.querySelectorAll('a[href^="#"]')].map(a => a.getAttribute('href').slice(1))"""
    )
    ids = browser.run("[...document.querySelectorAll('[id]')].map(node => node.id)")
    assert [name for name in targets if not {name, unquote(name)} & set(ids)] == []
    assert len(set(ids)) == len(ids)


def test_listings_are_monospaced_and_scroll(browser, page):
    browser.open(page, 390)
    faces = "[...new Set([...document.querySelectorAll('pre, pre *, code')].map(n => getComputedStyle(n).fontFamily))]"
    assert all("monospace" in face for face in browser.run(faces))
    widths = """['iiiiiiiiii', 'mmmmmmmmmm'].map(word => { const pre = document.createElement('pre');
        pre.style.cssText = 'display: inline-block'; pre.textContent = word; document.querySelector('main').append(pre);
        const width = pre.getBoundingClientRect().width; pre.remove(); return width })"""
    narrow, wide = browser.run(widths)
    assert narrow == wide
    long = "[...document.querySelectorAll('pre')].filter(pre => pre.scrollWidth > pre.clientWidth)"
    assert browser.run(f"{long}.length") > 0
    assert browser.run(f"{long}.every(pre => getComputedStyle(pre).overflowX === 'auto')")


def test_words_in_tables_stand_left_and_numbers_right(browser, page):
    browser.open(page)
    cells = browser.run(
        "[...document.querySelectorAll('td')].map(td => [td.innerText, getComputedStyle(td).textAlign])"
    )
    assert len(cells) > 30
    for text, align in cells:
        if re.search(r"[a-z]{12}", text):
            assert align in ("left", "start"), text
    assert any(align == "right" and re.fullmatch(r"[\d.]+", text.strip()) for text, align in cells)


def luminance(colour):
    channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_dark_mode_follows_the_system_and_can_be_read(browser, page, scheme):
    browser.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.open(page)
    body = luminance(browser.run("getComputedStyle(document.body).backgroundColor"))
    assert body > 0.8 if scheme == "light" else body < 0.05
    pairs = browser.run("""[...document.querySelectorAll('main p, main a, main pre span, figcaption, nav a')].map(node => {
        let ground = node; while (getComputedStyle(ground).backgroundColor === 'rgba(0, 0, 0, 0)') ground = ground.parentElement;
        return getComputedStyle(node).color + '|' + getComputedStyle(ground).backgroundColor })""")
    browser.ask("Emulation.setEmulatedMedia", features=[])
    for pair in set(pairs):
        low, high = sorted(map(luminance, pair.split("|")))
        assert (high + 0.05) / (low + 0.05) >= 4.5, pair


def test_contents_stand_at_the_side_and_fold_on_a_telephone(browser, page):
    browser.open(page)
    assert browser.run("getComputedStyle(document.querySelector('nav')).position") == "fixed"
    assert browser.run("document.querySelector('nav').getBoundingClientRect().right") <= browser.run(
        "document.querySelector('main').getBoundingClientRect().left"
    )
    assert browser.run("document.querySelector('nav details').open")
    assert browser.run("document.querySelectorAll('nav a').length") > 2
    browser.open(page, 390)
    assert not browser.run("document.querySelector('nav details').open")
    assert browser.run("document.querySelector('header h1').getBoundingClientRect().top") < 300


def test_it_prints(browser, page):
    browser.open(page)
    data = browser.ask("Page.printToPDF", preferCSSPageSize=True)["data"]
    reader = pypdf.PdfReader(io.BytesIO(base64.b64decode(data)))
    text = "\n".join(sheet.extract_text() for sheet in reader.pages)
    assert "Contents" not in text.splitlines()[0] and browser.run("document.title")[:20] in text
    box = reader.pages[0].mediabox
    assert abs(float(box.width) - 595) < 2 and abs(float(box.height) - 842) < 2  # A4


def test_the_sample_arrives_whole(browser, tmp_path):
    source = save(sample(), tmp_path, "n.ipynb")
    page = tmp_path / "n.html"
    page.write_text(PageExporter().from_filename(str(source))[0], encoding="utf-8")
    browser.open(page)
    text = browser.run("document.body.innerText")
    for words in (
        "4 May 2026",
        "Abstract words.",
        "inline_code",
        "ZeroDivisionError: by zero",
        "done",
        "INPUT_D",
        "output_a",
    ):
        assert words in text, words
    for words in ("STDERR WORDS", "INPUT_A", "output_c", "55%", "PLAINTABLE", "\x1b"):
        assert words not in text, words
    assert "Figure\xa03 and Tables\xa02 and 3" in text and "0.89 or 1 ± 2" in text
    assert browser.run("document.querySelectorAll('main h1').length") == 1
    assert browser.run("document.querySelectorAll('math').length") >= len(FORMULAS) + 3
    alts = browser.run("[...document.images].map(image => image.alt)")
    assert "A caption with x₁, “quotes” and [brackets]." in alts
