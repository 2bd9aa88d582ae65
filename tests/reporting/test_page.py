import base64
import html
import io
import re
import shlex
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

WILD = ["a|b $x^2$ @me", "<!--<script>", '`c` *b* "q"', "[l](http://x) ![i](y)", "www.x.y a@b.c r#4 GH-5 :cat: &amp;"]
MARKDOWN = MarkdownIt("commonmark").enable("table")


def html_rows(text: str) -> list[list[str]]:
    """The cells of each row of each table, without their markup."""
    rows = (re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL))
    return [[html.unescape(re.sub(r"<[^>]*>", "", cell)) for cell in row] for row in rows]


def markdown_rows(text: str) -> list[list[str]]:
    """The same of Markdown, as a parser of CommonMark and tables finds them; nothing in a cell is markup."""
    found = []
    for before, token in pairwise(MARKDOWN.parse(text)):
        if token.type == "tr_open":
            found.append([])
        if before.type in ("td_open", "th_open"):
            assert {child.type for child in token.children} <= {"text", "text_special"}
            found[-1].append("".join(child.content for child in token.children).replace("\u200b", ""))
    return found


def test_both_forms_hold_the_same_tables_verdicts_first_and_experts_last(experiment, writer, render):
    experiment()
    writer.seeds({(seed, run): np.arange(20) >= n for seed in range(3) for n, run in enumerate(writer.runs)})
    index, text = render()
    expected = (
        "resnet | ResNet-18 | 5e-4 | 392,946 | 12 | 90.00% | 69.90–97.21% | 88.00% | +4.56 | 1 h 02 min",
        "ResNet-18, decay 5e-4 and ResNet-18, decay 1e-4 | +5.00",
        "resnet | 11 | 100.00% | 0.",
        "cat | resnet | 10 | 100.00% | 80.00% | 88.89%",
        "resnet | 2,234 | GPU 1 | AVX2 | 3 | bf16 | True | 2.91 | 3.91",
    )
    for rows in (html_rows(index), markdown_rows(text)):
        assert [sum(" | ".join(row).startswith(line) for row in rows) for line in expected] == [1] * 5
    confused = [row[2] for row in markdown_rows(text) if {*row[:2]} == {"cat", "dog"}]
    assert confused == ["3", "1", "2", "2", "1"]  # by each run: cats for dogs, dogs for cats
    parts = "20 test images in 2 classes, 32×32|ot the full experiment|5e-4 and ResNet-18|Next: |p is the chance|"
    parts += "best epoch was chosen on the test|Seeds 0, 1, 2|Top-2|What was run|ab12ab12|[2, 2, 2, 2]"
    for form in (index, html.unescape(text)):
        assert (places := [form.index(part) for part in parts.split("|")]) == sorted(places)
    heads = "<h1>{} against S", "<h2>Is {} better than Sim", "<h2>What {} gets wrong with"
    assert [index.count(head.format("ResNet-18, decay 5e-4")) for head in heads] == [1, 1, 1]
    assert re.search(r'<details class="experts">.*Top-2 accuracy.*</details>', index, re.DOTALL)


def test_each_chart_has_its_place_and_the_page_stands_alone(experiment, render):
    experiment(held_out="validation", study__margin=0.5)
    index, text = render()
    assert all("Validation, last epoch" in form and "equal within 50 points" in form for form in (index, text))
    chart = r'<h3>([^<]*)</h3></figcaption><img src="data:image/svg\+xml;base64,([^"]*)" alt="[^"]+"'
    titles, names = zip(*re.findall(chart, index), strict=True)
    assert titles[:5] == ("Test accuracy", "Validation accuracy", "Loss", "Generalisation gap", "F1 of each class")
    assert titles[5:] == ("Simple CNN", "ResNet-18, decay 5e-4", "ResNet-18, decay 1e-4")
    found = " ".join(base64.b64decode(name).decode() for name in names)
    reliability = "reliability_cnn reliability_resnet reliability_resnet_ablation"
    assert found == f"accuracies accuracy loss generalisation_gap per_class {reliability}"
    assert re.findall(r"Calibration error (\S+); \S+ would be chance", index)[1] == "14.99%"  # see test_tables.py
    assert "50,000 training, 200 validation and 20 test images" in index
    assert not re.findall(r"<script|\s(?:src|href|srcset)=\"(?!data:)|url\(|@import|https?:", index)


def test_names_from_outside_break_neither_form(experiment, render):
    experiment(WILD, [*range(5)] * 4, data__path="\n```\n<img src=x> | $a$ `b`")
    index, text = render()
    assert not re.search(r"<script|<!--|<img src=x>", index)
    assert set(WILD) <= {cell for row in html_rows(index) for cell in row}
    assert {row[0] for row in markdown_rows(text) if len(row) == 6} == {"Class", *WILD}
    tokens = MARKDOWN.parse(text)
    assert [token.tag for token in tokens if token.type == "heading_open"].count("h1") == 1
    tokens += [child for token in tokens for child in token.children or []]
    raw = "".join(token.content for token in tokens if token.type in ("html_block", "html_inline"))
    assert set(re.findall(r"<[^>]*>", raw)) == {"<details>", "</details>", "<summary>", "</summary>"}
    assert not {token.type for token in tokens} & {"image", "link_open", "s_open", "em_open"}
    assert not re.search(r"@me|a@b|r#4|www\.|http://|GH-5|:cat:", text)  # which GitHub would link


def test_of_many_classes_report_md_can_be_posted_and_the_page_names_pairs_in_place_of_matrices(experiment, render):
    experiment([f"{number:03} {'long name ' * 90}" for number in range(100)], [*range(100)] * 3)
    index, text = render()
    assert len(text.encode()) < 65_536
    assert "| --- | --- | ---: | ---: | ---: | ---: |" in text
    assert len([row for row in markdown_rows(text) if row[1:2] == ["cnn"] and len(row) == 6]) == 20
    assert ('<table class="counts' in index, "cnn: what it confuses most often" in index) == (False, True)


def test_confusion_matrices_show_counts_coloured_by_the_root_of_their_share_of_the_row(experiment, render):
    experiment()
    table = re.search(r'<table class="counts.*?</table>', render()[0], re.DOTALL)[0]
    cats, dogs = (re.findall(r"<td([^>]*)>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", table)[1:])
    assert cats == [(' class="right" style="--share: 84%"', "7"), (' style="--share: 55%"', "3")]
    assert dogs == [(' style="--share: 32%"', "1"), (' class="right" style="--share: 95%"', "9")]


def test_galleries_show_suspects_confident_mistakes_and_all_mistakes(experiment, writer, render, monkeypatch):
    wrong = {"cnn": [12, 0, 3, 4], "resnet": [12, 0], "resnet_ablation": [12, 0, 7]}
    runs = {name: writer.runs[name] | {"wrong": images} for name, images in wrong.items()}
    experiment(classes=("cat", "dog", "cow"), runs=runs)
    images, galleries = np.load("data/test.npz")["images"], []
    for gallery in re.findall(r'<ul class="pictures">(.*?)</ul>', render()[0], re.DOTALL):
        galleries.append([])
        for data, caption in re.findall(r'base64,([^"]+)" alt=""><strong>(.*?)</li>', gallery):
            picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
            number = int(np.flatnonzero((images == picture).all((1, 2, 3)))[0])
            galleries[-1].append((number, " ".join(re.sub(r"<[^>]*>", " ", caption).split())))
    dog, cat = (12, "dog cow, 95.8% 1/0012.jpg"), (0, "cat dog, 60.0% 0/0000.jpg")
    assert galleries == [[(12, "dog cow, 94.8% 1/0012.jpg"), cat], [dog, cat], [cat], [dog]]
    assert re.findall(r"<h3>(\w+: \d)</h3>", render()[0]) == ["cat: 1", "dog: 1"]
    monkeypatch.setattr(page, "MOST_WRONG", 1)
    monkeypatch.setattr(page, "GALLERY", 1)
    experiment(size=64, runs=runs)
    assert re.findall(r"<br><bdi>(.*?)</bdi></li>", render()[0]) == ["1/0012.jpg"] * 3
    folded = re.search(r'<details class="wrong">.*?</details>', render()[0], re.DOTALL)[0]
    assert "The 1 most confident of 2." in folded
    (small,) = re.findall(r'base64,([^"]+)"', folded)
    assert Image.open(io.BytesIO(base64.b64decode(small))).size == (32, 32)


@pytest.fixture
def committed(tmp_path, monkeypatch) -> dict:
    """The parameters of a commit, in a repository that is the current folder."""
    monkeypatch.chdir(tmp_path)
    text = "seed: 42\ndata: {path: null}\nruns: {cnn: {model: cnn}, gone: {model: cnn}}\nblocks: [2, 2]\n"
    Path("params.yaml").write_text(text)
    commit = "-c user.name='A & Author' -c user.email=a@b.org commit -qm x --date=2026-01-02T03:04:05"
    for command in ("init --quiet", "add .", commit):
        subprocess.run(["git", *shlex.split(command)], check=True)
    return flat(parse_yaml(text, "params.yaml"))


def test_revision_date_and_author_are_told_and_changed_code(committed, monkeypatch):
    head = subprocess.check_output(["git", "rev-parse", "--short=10", "HEAD"], text=True).strip()
    said = f"Git revision {head} of 2026-01-02 by A & Author"
    assert page.provenance(committed) == (f"{said}.", f"git checkout {head}\ndvc exp run")
    Path("dvc.yaml").touch()
    assert page.provenance(committed)[0] == f"{said}, with uncommitted changes."
    monkeypatch.setenv("PATH", "/nowhere")
    assert page.provenance(committed) == ("Git revision unknown: [Errno 2] No such file or directory: 'git'.", "")


@pytest.mark.parametrize(
    "value", ["a b", "2024", "true", "null", "a,b", "[1, 2]", "k: v", "x=y", "~user", "a; touch X", "猫"]
)
def test_dvc_reads_back_what_the_command_sets_adds_and_drops_or_there_is_none(committed, value):
    new = {"data.path": value, "rate": 1e-5, "flip": False, "blocks": [1, 2], "compare.model": ["a", "b"]}
    changed = {key: value for key, value in (committed | new).items() if key != "runs.gone.model"}
    words = shlex.split(page.provenance(changed)[1].replace("\\\n", " "))
    apply_overrides("params.yaml", [word for flag, word in pairwise(words) if flag == "-S"])
    assert flat(parse_yaml(Path("params.yaml").read_bytes(), "params.yaml")) == changed
    for unsafe in 'a "quote"', "it's", "`b`", "${x}", "two\nlines", "\x85", "C:\\x", "\u2028":
        assert page.provenance(committed | {"data.path": unsafe, "seed": 7})[1] == ""
