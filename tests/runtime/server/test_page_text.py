"""How the page reads texts: Markdown as elements, and events of a stream, whatever they are cut into."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.runtime.server.scripted import MARKDOWN, Script, serving

if TYPE_CHECKING:
    from selenium import webdriver

    from tests.runtime.server.browser import Page

SHOWN = {
    "plain": ("One\ntwo  \nthree\n\nfour", "<p>One\ntwo<br>three</p><p>four</p>"),
    "emphasis": (
        "*a* __b__ ***c*** ~~d~~ 2 * 3",
        "<p><em>a</em> <strong>b</strong> <strong><em>c</em></strong> <del>d</del> 2 * 3</p>",
    ),
    "underscores in words": ("snake_case_name _em_", "<p>snake_case_name <em>em</em></p>"),
    "left open": ("**bold and `code", "<p>**bold and `code</p>"),
    "nested": ("**a *b* c** *d **e***", "<p><strong>a <em>b</em> c</strong> <em>d <strong>e</strong></em></p>"),
    "code": ("`a` ``b ` c`` `*d*`", "<p><code>a</code> <code>b ` c</code> <code>*d*</code></p>"),
    "escapes": (r"\*a\* \# \\ \q", r"<p>*a* # \ \q</p>"),
    "markup": ("a <b>b</b> &lt; <i", "<p>a &lt;b&gt;b&lt;/b&gt; &amp;lt; &lt;i</p>"),
    "headings": ("# A\n## B ##\n####### no", "<h3>A</h3><h4>B</h4><p>####### no</p>"),
    "rule and quote": ("---\n> b\n> > c", "<hr><blockquote><p>b</p><blockquote><p>c</p></blockquote></blockquote>"),
    "tight list": ("- a\n- b\n  - c\n- d", "<ul><li>a</li><li>b<ul><li>c</li></ul></li><li>d</li></ul>"),
    "loose list": ("1. a\n\n   more\n\n2. b", "<ol><li><p>a</p><p>more</p></li><li><p>b</p></li></ol>"),
    "a list that begins late": ("3) a\n4) b", '<ol start="3"><li>a</li><li>b</li></ol>'),
    "a list within an item by two blanks": ("1. a\n  - b\n2. c", "<ol><li>a<ul><li>b</li></ul></li><li>c</li></ol>"),
    "a list after a line": ("a:\n- b\n- c\n\nd", "<p>a:</p><ul><li>b</li><li>c</li></ul><p>d</p>"),
    "tasks": (
        "- [x] a",
        '<ul><li class="task"><input type="checkbox" disabled="" checked="" aria-label="task">a</li></ul>',
    ),
    "a year is no list": ("It was in\n1984. Then", "<p>It was in\n1984. Then</p>"),
    "prices are no formulas": ("$5 and $6, $7", "<p>$5 and $6, $7</p>"),
    "a formula with what is not known": ("$$\n\\odd{a}\n$$", '<pre class="math" tabindex="0">\\odd{a}</pre>'),
    "no links": (
        "[a](javascript:b) [c](<d e>)",
        '<p><span class="unlinked" title="This address is not shown as a link.">a (javascript:b)</span> '
        "[c](&lt;d e&gt;)</p>",
    ),
}
LINK = '<a href="{0}" target="_blank" rel="noopener noreferrer nofollow">{1}</a>'
LINKS = {
    '[a *b*](https://c.d/e_(f)?g=h "i")': ("https://c.d/e_(f)?g=h", "a <em>b</em>"),
    "<mailto:a@b.c>": ("mailto:a@b.c", "mailto:a@b.c"),
    "https://a.b/c_d_e": ("https://a.b/c_d_e", "https://a.b/c_d_e"),
    "![a](https://b.c/d.png)": ("https://b.c/d.png", "Picture: a"),
}
FORMULAS = {
    "x_{i}^2": "<msubsup><mi>x</mi><mi>i</mi><mn>2</mn></msubsup>",
    r"\frac{a}{\sqrt{b}}": "<mfrac><mi>a</mi><msqrt><mi>b</mi></msqrt></mfrac>",
    r"\alpha \le -1": '<mrow><mi>α</mi><mo stretchy="false">≤</mo><mo>−</mo><mn>1</mn></mrow>',
    r"\mathbb{R}^n": "<msup><mi>ℝ</mi><mi>n</mi></msup>",
    r"\text{if } f'": "<mrow><mtext>if&nbsp;</mtext><msup><mi>f</mi><mo>′</mo></msup></mrow>",
    r"\sum_i a": "<mrow><munder><mo>∑</mo><mi>i</mi></munder><mi>a</mi></mrow>",
    r"\begin{aligned}a\\b\end{aligned}": (
        '<mrow><mtable class="aligned"><mtr><mtd><mi>a</mi></mtd></mtr><mtr><mtd><mi>b</mi></mtd></mtr></mtable></mrow>'
    ),
}
UNKNOWN = [
    r"\href{a}{b}",
    "a}",
    "{a",
    "a^",
    "a^b^c",
    r"\left(a",
    r"\begin{b}\end{b}",
    r"\text{<b>{}",
    "{" * 90 + "}" * 90,
    "a#",
    r"\constructor",
    r"\begin{constructor}a\end{constructor}",
    r"\mathbb{a}",
]
HARD = {
    "braces": "$$" + "{" * 3_000 + "$$",
    "fractions": "$$" + "\\frac" * 600 + "$$",
    "stars": "*a " * 20_000,
    "brackets": "[" * 50_000,
    "links": "[a](" * 20_000,
    "ticks": "`a``b" * 15_000,
    "quotes": "> " * 5_000 + "a",
    "lists": "\n".join("  " * depth + "- a" for depth in range(400)),
    "formulas": "\\(" * 30_000,
    "table": "|a|b|\n|-|-|\n" + "|1|2|\n" * 3_000,
    "dollars": "$a" * 30_000,
    "lines": "a\n" * 30_000,
}
PIECES = [*"*_`~#|[]()<>${}^&a", "**", "```", "~~", "\n", "\n\n", "- ", "1. ", "> ", "  ", "|-|-|", "](", "![", "</p>"]
PIECES += [
    "<script>",
    "javascript:a",
    "https://a.b",
    "$$",
    "\\(",
    "\\)",
    "\\",
    "\\frac",
    "\\left(",
    "---",
    "[x] ",
    "b c",
    "🦊",
]
PIECES += ["\\begin{cases}", "\\end{cases}"]
SHOW = "const box = document.createElement('div'); it.render(box, given[0]); "


@pytest.fixture(scope="module")
def page(chromium: webdriver.Chrome) -> Iterator[Page]:
    from tests.runtime.server.browser import Page

    with serving(Script().app()) as url:
        found = Page(chromium, url)
        found.open()
        yield found


@pytest.mark.parametrize("name", SHOWN)
def test_markdown_becomes_elements(page: Page, name: str) -> None:
    text, shown = SHOWN[name]
    assert page.module("markdown.js", SHOW + "return box.innerHTML", text) == shown


@pytest.mark.parametrize("text", LINKS)
def test_links_lead_out_by_themselves_alone(page: Page, text: str) -> None:
    assert page.module("markdown.js", SHOW + "return box.innerHTML", text) == f"<p>{LINK.format(*LINKS[text])}</p>"


@pytest.mark.parametrize("text", FORMULAS)
def test_formulas_become_mathml(page: Page, text: str) -> None:
    shown = page.module("formula.js", "return it.formula(given[0], false).innerHTML", text)
    assert shown == FORMULAS[text]


def test_formulas_that_are_not_known_stay_as_they_are_written(page: Page) -> None:
    shown = page.module("formula.js", "return given[0].map((text) => it.formula(text, false).outerHTML)", UNKNOWN)
    escaped = [text.replace("<", "&lt;").replace(">", "&gt;") for text in UNKNOWN]
    assert shown == [f'<code class="math">{text}</code>' for text in escaped]


def test_what_is_shown_while_it_comes_is_what_is_shown_at_the_end(page: Page) -> None:
    steps = "const whole = box.innerHTML; const grown = document.createElement('div');"
    steps += "for (let end = 0; end <= given[0].length; end += 3) it.render(grown, given[0].slice(0, end));"
    steps += "it.render(grown, given[0]); return whole === grown.innerHTML ? '' : grown.innerHTML"
    assert page.module("markdown.js", SHOW + steps, MARKDOWN) == ""


def test_blocks_that_stay_the_same_are_not_made_again(page: Page) -> None:
    steps = "const first = box.firstChild; it.render(box, given[0] + '\\n\\nmore');"
    steps += "return [box.firstChild === first, box.childNodes.length]"
    assert page.module("markdown.js", SHOW + steps, "one\n\ntwo") == [True, 3]


def test_no_text_breaks_it_or_brings_other_elements(page: Page) -> None:
    """3,000 texts of pieces that mean something."""
    steps = """
      const pieces = given[1];
      let seed = 7;
      const draw = (count) => (seed = (seed * 48271) % 2147483647) % count;
      const found = new Set(), wrong = [];
      for (let number = 0; number < 3000; number += 1) {
        const text = Array.from({length: 1 + draw(40)}, () => pieces[draw(pieces.length)]).join("");
        const box = document.createElement("div");
        try { it.render(box, text); } catch (error) { wrong.push(`${error}: ${text}`); }
        for (const each of box.querySelectorAll("*")) found.add(each.localName);
        for (const link of box.querySelectorAll("a")) if (link.protocol !== "https:") wrong.push(link.href);
      }
      return [[...found].filter((name) => !given[0].includes(name)), wrong.slice(0, 3), found.size]"""
    known = "p br em strong del code pre a span h3 h4 h5 h6 hr blockquote ul ol li input div table thead tbody tr th td"
    known += " figure figcaption button math mrow mi mn mo mtext mspace mfrac msub msup msubsup mtable mtr mtd"
    others, wrong, size = page.module("markdown.js", steps, known.split(), PIECES)
    assert (others, wrong) == ([], []) and size > 30


@pytest.mark.parametrize("name", HARD)
def test_no_text_takes_long(page: Page, name: str) -> None:
    taken = page.module(
        "markdown.js", f"const began = performance.now(); {SHOW} return performance.now() - began", HARD[name]
    )
    assert isinstance(taken, int | float) and taken < 2000


def test_events_are_read_however_the_stream_is_cut(page: Page) -> None:
    stream = ': hello\r\n\r\ndata: {"a": 1}\r\n\r\nevent: x\ndata:one\ndata: two\n\nid: 3\rdata: last\r\r: end\n'
    cut = """
      const wrong = [];
      for (let first = 0; first <= given[0].length; first += 1) for (let size = 1; size < 12; size += 3) {
        const reader = new it.EventReader(); const found = [];
        found.push(...reader.push(given[0].slice(0, first)));
        for (let at = first; at < given[0].length; at += size)
          found.push(...reader.push(given[0].slice(at, at + size)));
        if (JSON.stringify(found) !== JSON.stringify(given[1])) wrong.push([first, size, found]);
      }
      return wrong"""
    assert page.module("api.js", cut, stream, ['{"a": 1}', "one\ntwo", "last"]) == []


def test_metrics_are_read_by_their_labels(page: Page) -> None:
    text = '# HELP a b\na{model="x",path="/\\"y\\""} 1\na{model="z"} 2e1\nb 3\nc NaN\n'
    asked = "const m = it.parse(given[0]); return given[1].map(([name, labels]) => m(name, labels))"
    wanted = [["a", {}], ["a", {"model": "x"}], ["a", {"path": '/"y"'}], ["b", {}], ["b", {"model": "x"}], ["c", {}]]
    assert page.module("machine.js", asked, text, wanted) == [21, 1, 1, 3, None, None]


def test_what_comes_quickly_is_drawn_a_few_times_a_second(page: Page) -> None:
    steps = """
      let draws = 0, asked = 0;
      const later = it.paced(() => (draws += 1));
      const began = performance.now();
      while (performance.now() - began < 300) {
        later();
        asked += 1;
        await new Promise((done) => setTimeout(done));
      }
      await new Promise((done) => setTimeout(done, 200));
      return [asked, draws]"""
    asked, draws = page.module("dom.js", steps)
    assert 1 <= draws <= 8 and draws < asked
