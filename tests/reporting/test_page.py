import base64
import html
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from markdown_it import MarkdownIt
from PIL import Image

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WILD = [
    "a|b $x^2$ @someone",
    "<script>alert(1)</script>",
    "`code` *bold* _it_",
    "[link](http://x) ![i](y)",
    "<!-- \\| ~~s~~ #1 &amp;",
]


def html_rows(page: str) -> list[list[str]]:
    """The cells of each row of each table, without their markup."""
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    cells = (re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows)
    return [[html.unescape(re.sub(r"<[^>]*>", "", cell)) for cell in row] for row in cells]


def markdown_rows(text: str) -> list[list[str]]:
    """The same of Markdown, as a parser of CommonMark and tables finds them; nothing in a cell is markup."""
    found, inside = [], False
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "tr_open":
            found.append([])
        inside = token.type in ("td_open", "th_open") or (inside and token.type == "inline")
        if inside and token.type == "inline":
            assert {child.type for child in token.children} <= {"text", "text_special"}
            found[-1].append("".join(child.content for child in token.children))
    return found


def test_both_forms_hold_the_same_tables(experiment, render):
    experiment()
    page, text = render()
    for rows in (html_rows(page), markdown_rows(text)):
        for expected in (
            ["Figure", "ResNet-18", "Simple CNN", "Difference"],
            ["Test accuracy", "90.00%", "80.00%", "+10.00"],
            ["cat", "resnet", "10", "100.00%", "80.00%", "88.89%"],
        ):
            assert [row[: len(expected)] for row in rows].count(expected) == 1


def test_verdicts_come_first_then_accuracies_then_curves_and_experts_last(experiment, render):
    experiment()
    page, text = render()
    parts = [
        "Not the full experiment",
        "Weight decay 5e-4 is better",
        "Accuracies",
        "Over the epochs",
        "Where each model",
    ]
    parts += ["Numbers for experts", "Top-2 accuracy", "What was run"]
    places = [page.index(part) for part in parts]
    assert places == sorted(places)
    assert "<details>" in page[: page.index("Top-2 accuracy")][-3000:]
    assert text.index("Weight decay 5e-4 is better") < text.index("Top-2 accuracy")


def test_both_say_what_was_run(experiment, render):
    experiment()
    for text in render():
        for fact in ("toys", "50,000 training", "20 test", "ab12", "a GPU", "bf16", "1,234", "2.99", "3.98"):
            assert fact in text
        assert "resnet.base_channels" in text
        assert "dvc exp run" in text
        assert "not a git repository" in text


def test_of_one_recipe_nothing_is_compared_and_it_is_said_once(experiment, render):
    resnet = ("ResNet-18", 11_173_962, 5e-4, 100, 0.0456, 3720, [7, 0])
    experiment(runs={"one": resnet, "two": resnet}, comparisons={"x": (["one", "two"], 0.0, [0.0, 0.0], 1.0, [0, 0])})
    for text in render():
        assert text.count("nothing to compare") == 1
        assert "p = 1" not in text
        assert "one beside two" not in text


def test_a_study_is_shown_and_a_single_seed_is_not(study, render):
    for text in render():
        assert "Over 4 seeds, on average: +4.00 points" in text
    seeds = Path("plots/seeds.csv")
    seeds.write_text("\n".join(line for line in seeds.read_text().splitlines() if line[:2] in ("se", "42")) + "\n")
    for text in render():
        assert "seeds</h2>" not in text
        assert "## Over" not in text
        assert not re.search(r"\bnan\b", text)


def test_names_from_outside_break_neither_form(experiment, render):
    labels = list(np.repeat(range(5), 4))
    experiment(WILD, labels)
    params = Path("params.yaml")
    wild = "\\n```\\n<img src=x> | $a$ `b`"
    params.write_text(
        params.read_text().replace("launcher: python", f'launcher: "{wild}"').replace("path: null", f'path: "{wild}"')
    )
    page, text = render()
    assert "<script" not in page
    assert "<img src=x>" not in page
    cells = {cell for row in html_rows(page) for cell in row}
    assert {name for name in WILD if len(name) <= 60} <= cells
    parsed = markdown_rows(text)
    assert {row[0].replace("\u200b", "") for row in parsed if len(row) == 6} == {"Class", *WILD}
    assert "@someone" not in text  # GitHub would call this person
    assert {len(row) for row in parsed} == {4, 6, 10}
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    assert [token.tag for token in tokens if token.type == "heading_open"].count("h1") == 1
    (fence,) = (token for token in tokens if token.type == "fence")
    assert "launcher=" in fence.content
    raw = [token.content for token in tokens if token.type == "html_block"]
    raw += [child.content for token in tokens for child in token.children or [] if child.type == "html_inline"]
    assert {tag.strip() for part in raw for tag in re.findall(r"</?\w+", part)} <= {
        *("<details", "</details", "<summary", "</summary")
    }
    assert not [
        c for token in tokens for c in token.children or [] if c.type in ("image", "link_open", "s_open", "em_open")
    ]


def test_the_page_stands_alone(experiment, render):
    experiment()
    page, _ = render()
    assert "<script" not in page
    assert not re.findall(r"\s(?:src|href|srcset)=\"(?!data:)", page)
    assert not re.findall(r"url\(|@import", page)
    assert not re.findall(r"https?:(?!//www\.w3\.org)", page)


def test_report_md_can_be_posted_numbers_to_the_right_and_no_pictures(experiment, render):
    names = [f"{number:03} {'long name ' * 90}" for number in range(100)]
    experiment(names, list(np.tile(range(100), 3)))
    _, text = render()
    assert len(text.encode()) < 65_536
    assert "figures/" not in text
    assert "| --- | --- | ---: | ---: | ---: | ---: |" in text
    assert "worst and the best of 100 classes" in text
    assert len([row for row in markdown_rows(text) if row[1:2] == ["cnn"] and len(row) == 6]) == 20


def test_the_page_grows_with_the_classes_and_not_with_their_square(experiment, render):
    sizes = []
    for count in (100, 200):
        experiment([f"class {number}" for number in range(count)], list(np.tile(range(count), 2)))
        sizes.append(len(render()[0]))
    assert sizes[1] < 2 * sizes[0]
    assert "confuses most often" in render()[0]


def matrices(page: str) -> list[list[list[str]]]:
    found = re.findall(r'<table class="counts.*?</table>', page, re.DOTALL)
    rows = ([re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", one)] for one in found)
    return [matrix[1:] for matrix in rows]


def test_confusion_matrices_show_counts_and_of_more_than_twelve_classes_percentages(experiment, render):
    experiment()
    assert matrices(render()[0])[0] == [["7", "3"], ["1", "9"]]
    experiment([f"class {number}" for number in range(13)], [0] * 10 + [12] * 10)
    first = matrices(render()[0])[0]
    assert first[0] == ["70", "30", *[""] * 11]
    assert first[12] == ["10", *[""] * 11, "90"]
    assert first[5] == [""] * 13


def shown(gallery: str) -> list[int]:
    """The numbers of the test images in a gallery."""
    images = np.load("data/test.npz")["images"]
    pictures = [base64.b64decode(data) for data in re.findall(r"base64,([^\"]+)", gallery)]
    arrays = [np.asarray(Image.open(io.BytesIO(picture))) for picture in pictures]
    return [int(np.flatnonzero((images == array).all((1, 2, 3)))[0]) for array in arrays]


def test_the_galleries_show_confident_mistakes_and_disagreements(experiment, render):
    experiment()
    mistakes, disagreements = re.findall(r'<ul class="pictures">(.*?)</ul>', render()[0], re.DOTALL)
    assert shown(mistakes) == [7, 0]
    assert re.findall(r"<strong>(.*?)</strong>(.*?)</li>", mistakes)[0] == ("cat", "taken for dog, 80.0%")
    assert shown(disagreements) == [7, 11, 3, 4]  # the less confident of both: 80, 79, 78 and 77 %
    assert "ResNet-18: dog, 90.0%<br>Simple CNN: cat, 79.0%" in disagreements


MEASURE = """
const pages = JSON.parse(document.getElementById("pages").textContent), found = [];
let left = 0;
for (const [name, page] of Object.entries(pages)) for (const width of [390, 768, 1100, 1280, 1600]) {
  left++;
  const frame = document.createElement("iframe");
  frame.style.cssText = `border: 0; width: ${width}px; height: 800px`;
  frame.onload = () => {
    const inside = frame.contentDocument;
    inside.querySelectorAll("details").forEach(fold => fold.open = true);
    const [all, boxes] = [inside.documentElement, [...inside.querySelectorAll(".scroll")]];
    const wide = boxes.filter(box => box.scrollWidth > box.clientWidth).map(box => box.ariaLabel);
    found.push({name, width, page: all.scrollWidth - all.clientWidth, boxes: boxes.length, wide});
    if (!--left) document.body.textContent = "measured: " + JSON.stringify(found) + " end";
  };
  frame.srcdoc = page;
  document.body.append(frame);
}
"""


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium")
def test_nothing_scrolls_sideways_in_a_browser(experiment, render, tmp_path):
    pages = {}
    long = "an unusually long name of a class, as collections of plants have it"
    for count in (2, 12, 30, 100):
        labels = list(np.tile(range(count), 1 + 10_000 // count))
        experiment([f"{number} {long if number % 2 else 'x' * 40}" for number in range(count)], labels)
        pages[f"{count} classes"] = render()[0]
    content = json.dumps(pages).replace("</", "<\\/")
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(
        f'<!doctype html><meta charset="utf-8"><body><script type="application/json" id="pages">{content}</script>'
        f"<script>{MEASURE}</script>"
    )
    quiet = ["gpu", "quic", "background-networking", "component-update", "sync"]
    command = [CHROMIUM, "--headless", "--no-sandbox", "--no-first-run", *(f"--disable-{what}" for what in quiet)]
    command += [
        f"--user-data-dir={tmp_path / 'browser'}",
        "--virtual-time-budget=20000",
        "--dump-dom",
        wrapper.as_uri(),
    ]
    dom = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120).stdout
    found = json.loads(html.unescape(re.search(r"measured: (.*) end", dom)[1]))
    assert len(found) == 20
    for measured in found:
        assert measured["boxes"] > 5
        assert measured["page"] <= 0, measured
        assert measured["width"] < 1100 or not measured["wide"], measured
