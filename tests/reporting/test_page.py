import base64
import html
import io
import json
import re
import shlex
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from dvc.utils.hydra import apply_overrides
from markdown_it import MarkdownIt
from PIL import Image

from stages.common.params import flat, parse_yaml
from stages.reporting import page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WILD = ["a|b $x^2$ @me", "<!--<script>x</script>", '`code` *b* "q"', "[l](http://x) ![i](y)", "www.evil.example #1"]


def html_rows(text: str) -> list[list[str]]:
    """The cells of each row of each table, without their markup."""
    rows = (re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL))
    return [[html.unescape(re.sub(r"<[^>]*>", "", cell)) for cell in row] for row in rows]


def markdown_rows(text: str) -> list[list[str]]:
    """The same of Markdown, as a parser of CommonMark and tables finds them; nothing in a cell is markup."""
    found, inside = [], False
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "tr_open":
            found.append([])
        inside = token.type in ("td_open", "th_open") or (inside and token.type == "inline")
        if inside and token.type == "inline":
            assert {child.type for child in token.children} <= {"text", "text_special"}
            found[-1].append("".join(child.content for child in token.children).replace("\u200b", ""))
    return found


def test_both_forms_hold_the_same_tables_verdicts_first_and_experts_last(experiment, writer, render):
    experiment()
    writer.seeds({(seed, run): np.arange(20) >= n for seed in range(3) for n, run in enumerate(writer.runs)})
    index, text = render()
    for rows in (html_rows(index), markdown_rows(text)):
        for expected in (
            ["resnet", "ResNet-18", "5e-4", "392,946", "12", "90.00%", "69.90–97.21%", "88.00%", "+4.56", "1 h 02 min"],
            ["Test accuracy", "90.00%", "80.00%", "+10.00"],
            ["ResNet-18, decay 5e-4 and ResNet-18, decay 1e-4", "+5.00"],
            ["cat", "resnet", "10", "100.00%", "80.00%", "88.89%"],
            ["resnet", "2,234", "GPU 1", "AVX2", "3", "bf16", "True", "2.91", "3.91"],
        ):
            assert [row[: len(expected)] for row in rows].count(expected) == 1, expected
    parts = [
        "ot the full experiment",
        "ecay 5e-4 and ResNet-18",
        "Next: ",
        "p is the chance",
        "Top-2 accuracy",
        "What was run",
    ]
    for form in (index, html.unescape(text)):
        places = [form.index(part) for part in parts]
        assert places == sorted(places)
        for fact in (
            "50,000 training and 20 test images in 2 classes, 32×32",
            "toys",
            "ab12ab12",
            "study.margin",
            "[2, 2, 2, 2]",
        ):
            assert fact in form
    assert re.search(r'<details class="experts">.*Top-2 accuracy.*</details>', index, re.DOTALL)


def test_each_chart_has_its_place_and_the_page_stands_alone(experiment, render):
    experiment(held_out="validation")
    index = render()[0]
    chart = r'<h3>([^<]*)</h3></figcaption><img src="data:image/svg\+xml;base64,([^"]*)" alt="[^"]+"'
    assert [(title, base64.b64decode(data).decode()) for title, data in re.findall(chart, index)] == [
        ("Test accuracy", "accuracies"),
        ("Validation accuracy", "accuracy"),
        ("Loss", "loss"),
        ("Generalisation gap", "generalisation_gap"),
        ("Learning rate", "learning_rate"),
        ("F1 of each class", "per_class"),
        ("Simple CNN", "reliability_cnn"),
        ("ResNet-18, decay 5e-4", "reliability_resnet"),
        ("ResNet-18, decay 1e-4", "reliability_resnet_ablation"),
    ]
    assert re.findall(r"Calibration error (\S+); \S+ would be chance", index)[1] == "14.99%"  # see test_tables.py
    assert "50,000 training, 200 validation and 20 test images" in index
    assert not re.findall(r"<script|\s(?:src|href|srcset)=\"(?!data:)|url\(|@import|https?:", index)


def test_names_from_outside_break_neither_form(experiment, render):
    experiment(WILD, [*range(5)] * 4, data__path="\n```\n<img src=x> | $a$ `b`")
    index, text = render()
    assert not re.search(r"<script|<!--|<img src=x>", index)
    assert set(WILD) <= {cell for row in html_rows(index) for cell in row}
    assert {row[0] for row in markdown_rows(text) if len(row) == 6} == {"Class", *WILD}
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    assert [token.tag for token in tokens if token.type == "heading_open"].count("h1") == 1
    tokens += [child for token in tokens for child in token.children or []]
    raw = "".join(token.content for token in tokens if token.type in ("html_block", "html_inline"))
    assert set(re.findall(r"<[^>]*>", raw)) == {"<details>", "</details>", "<summary>", "</summary>"}
    assert not {token.type for token in tokens} & {"image", "link_open", "s_open", "em_open"}
    assert not re.search(r"@me|www\.|http://|#1\b", text)  # which GitHub would link


def test_of_many_classes_report_md_can_be_posted_and_the_page_names_pairs_in_place_of_matrices(experiment, render):
    experiment([f"{number:03} {'long name ' * 90}" for number in range(100)], [*range(100)] * 3)
    index, text = render()
    assert len(text.encode()) < 65_536
    assert "| --- | --- | ---: | ---: | ---: | ---: |" in text
    assert len([row for row in markdown_rows(text) if row[1:2] == ["cnn"] and len(row) == 6]) == 20
    assert '<table class="counts' not in index
    assert "cnn: what it confuses most often" in index


def test_confusion_matrices_show_counts_and_of_more_than_twelve_classes_percentages(experiment, render):
    def matrices() -> list[list[list[str]]]:
        found = re.findall(r'<table class="counts.*?</table>', render()[0], re.DOTALL)
        rows = (
            [re.findall(r"<td([^>]*)>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", one)] for one in found
        )
        return [matrix[1:] for matrix in rows]

    experiment()
    right, wrong = ' class="right" style="--share: {}%"', ' style="--share: {}%"'  # roots of the shares of a row
    (cats, dogs), *_ = matrices()
    assert cats == [(right.format(84), "7"), (wrong.format(55), "3")]
    assert dogs == [(wrong.format(32), "1"), (right.format(95), "9")]
    experiment([f"class {number}" for number in range(13)], [0] * 10 + [12] * 10)
    first = [[cell for _, cell in row] for row in matrices()[0]]
    assert (first[0], first[12]) == (["70", "30", *[""] * 11], ["10", *[""] * 11, "90"])


def test_galleries_show_suspects_confident_mistakes_disagreements_and_all_mistakes(experiment, render, monkeypatch):
    def shown(gallery: str) -> list[tuple[int, str]]:
        images, found = np.load("data/test.npz")["images"], []
        for data, caption in re.findall(r'base64,([^"]+)" alt=""><strong>(.*?)</li>', gallery):
            picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
            found.append((int(np.flatnonzero((images == picture).all((1, 2, 3)))[0]), re.sub(r"<[^>]*>", " ", caption)))
        return found

    experiment(classes=("cat", "dog", "cow"))
    suspects, wrong, differing, folded = map(
        shown, re.findall(r'<ul class="pictures">(.*?)</ul>', render()[0], re.DOTALL)
    )
    assert suspects == [(0, "cat every run: dog, 60.0% 0/0000.jpg")]
    assert wrong == [(7, "cat taken for dog, 95.8% 0/0007.jpg"), (0, "cat taken for dog, 60.0% 0/0000.jpg")]
    assert differing[0] == (7, "cat ResNet-18, decay 5e-4: dog, 95.8% Simple CNN: cat, 90.0% 0/0007.jpg")
    assert [number for number, _ in differing] == [7, 11, 3, 4]  # the less confident of both: 90, 85, 72, 60 %
    assert [number for number, _ in folded] == [7, 0]
    assert "cat: 2</h3>" in render()[0]
    monkeypatch.setattr(page, "MOST_WRONG", 1)
    experiment(size=64)
    index = render()[0]
    assert "The 1 most confident of 2; all are in <code>plots/predictions/</code>" in index
    (small,) = re.findall(r'base64,([^"]+)"', index[index.index('<details class="wrong">') :].split("</details>")[0])
    assert Image.open(io.BytesIO(base64.b64decode(small))).size == (32, 32)


@pytest.fixture
def committed(tmp_path, monkeypatch) -> dict:
    """The parameters of a commit, in a repository that is the current folder."""
    monkeypatch.chdir(tmp_path)
    text = "seed: 42\ndata: {path: null}\nruns: {cnn: {model: cnn}, gone: {model: cnn}}\nblocks: [2, 2]\n"
    Path("params.yaml").write_text(text)
    commit = [
        "-c",
        "user.name=A & Author",
        "-c",
        "user.email=a@b.org",
        "commit",
        "--quiet",
        "--date=2026-01-02T03:04:05",
    ]
    for command in (["init", "--quiet"], ["add", "."], [*commit, "--message=x"]):
        subprocess.run(["git", *command], check=True)
    return flat(parse_yaml(text, "params.yaml"))


def test_revision_date_and_author_are_told_and_changed_code(committed, monkeypatch):
    head = subprocess.run(["git", "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True).stdout.strip()
    said = f"Git revision {head} of 2026-01-02 by A & Author"
    assert page.origin(committed) == {"revision": f"{said}.", "repeat": f"git checkout {head}\ndvc exp run"}
    Path("dvc.yaml").touch()
    assert page.origin(committed)["revision"] == f"{said}, with changes to the code that are not committed."
    monkeypatch.setenv("PATH", "/nowhere")
    unknown = {"revision": "Git revision unknown: [Errno 2] No such file or directory: 'git'"}
    assert page.origin(committed) == unknown | {"lacking": "The parameters below repeat this."}


VALUES = [
    "two words",
    "2024",
    "true",
    "null",
    "a,b",
    "[1, 2]",
    "key: value",
    "x=y",
    "~user",
    "$HOME ; touch X",
    "猫",
    "plain",
]


@pytest.mark.parametrize("value", VALUES)
def test_dvc_reads_back_what_the_command_sets_adds_and_drops(committed, value):
    new = {"data.path": value, "rate": 1e-5, "flip": False, "blocks": [1, 2], "compare.model": ["a", "b"]}
    changed = {key: value for key, value in (committed | new).items() if key != "runs.gone.model"}
    words = shlex.split(page.origin(changed)["repeat"].replace("\\\n", " "))
    apply_overrides("params.yaml", [word for flag, word in pairwise(words) if flag == "-S"])
    assert flat(parse_yaml(Path("params.yaml").read_bytes(), "params.yaml")) == changed


@pytest.mark.parametrize("value", ['a "quote"', "it's", "`b`", "${x}", "two\nlines", "\x85", "C:\\x", "\u2028"])
def test_what_a_command_line_may_change_is_not_put_there_and_a_line_says_so(committed, value):
    found = page.origin(committed | {"data.path": value, "seed": 7})
    assert found["repeat"].endswith("\ndvc exp run \\\n    -S seed=7")
    assert found["lacking"] == "Set by hand, since a command line may change them: data.path; see below."


MEASURE = """<!doctype html><meta charset="utf-8"><body><script>
const pages = %s, found = [];
for (const page of pages) for (const width of [390, 768, 1100, 1600]) {
  const frame = document.createElement("iframe");
  frame.style.cssText = `border: 0; width: ${width}px; height: 800px`;
  frame.onload = () => {
    const inside = frame.contentDocument, all = inside.documentElement;
    inside.querySelectorAll("details").forEach(fold => fold.open = true);
    const wide = [...inside.querySelectorAll(".scroll")].filter(box => box.scrollWidth > box.clientWidth);
    found.push([width, all.scrollWidth - all.clientWidth, wide.map(box => box.ariaLabel)]);
    if (found.length == 4 * pages.length) document.body.textContent = "measured: " + JSON.stringify(found) + " end";
  };
  frame.srcdoc = page;
  document.body.append(frame);
}
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM or not shutil.which("pdftotext"), reason="apt-get install chromium poppler-utils")
def test_nothing_scrolls_sideways_in_a_browser_and_print_opens_the_numbers_for_experts(experiment, render):
    pages = []
    for count in (2, 12, 30, 100):
        names = [f"{n} {'an unusually long name of a class ' * 2 if n % 2 else 'x' * 40}" for n in range(count)]
        experiment(names, [*range(count)] * (1 + 2000 // count))
        pages.append(render()[0])
    Path("wrapper.html").write_text(MEASURE % json.dumps(pages).replace("</", "<\\/"))
    Path("page.html").write_text(pages[1])
    browser = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={Path('browser').absolute()}"]
    dump = [*browser, "--virtual-time-budget=20000", "--dump-dom", Path("wrapper.html").absolute().as_uri()]
    dom = subprocess.run(dump, capture_output=True, text=True).stdout
    found = json.loads(html.unescape(re.search(r"measured: (.*) end", dom)[1]))
    assert len(found) == 16
    assert [row for row in found if row[1] > 0 or (row[0] >= 1100 and row[2])] == []
    subprocess.run([*browser, "--print-to-pdf=page.pdf", Path("page.html").absolute().as_uri()], capture_output=True)
    printed = subprocess.run(["pdftotext", "page.pdf", "-"], capture_output=True, text=True).stdout
    assert "Top-2 accuracy" in printed
    assert "All that ResNet-18" not in printed
