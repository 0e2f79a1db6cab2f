"""The page: its data and its escaping, read without a browser; and the page itself, worked in a
headless Chromium.
"""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browser import PDF, needs_chromium, run_chromium
from made_rows import HOSTILE, write_dataset, write_results, write_row

import sparse_ir
from sparse_ir.benchmark import board, columns
from sparse_ir.benchmark.page import Selection, ShownDataset, _template, collect_queries
from sparse_ir.benchmark.results import read_rows
from sparse_ir.commands import benchmarking
from sparse_ir.data import datasets
from sparse_ir.errors import DataError

RANKS = {
    "made": {"bm25": [1, 2, 3, 0, 1, 4], "model": [2, 1, 1, 1, 1, 4], "weak": [2, 3, 0, 0, 0, 4]},
    "scifact": {"bm25": [1] * 10 + [2] * 10, "model": [1] * 20, "weak": [3] * 20},
}


class Scripts(HTMLParser):
    """The script elements of a page, and the names of all elements."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data


@pytest.fixture(scope="module", autouse=True)
def any_size():
    """Sets of any size stand for those of the names that they have here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "published_size", {}.get)
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Rows and data sets of ``RANKS``. Read only."""
    return write_results(tmp_path_factory.mktemp("webpage"), RANKS)


@pytest.fixture(scope="module")
def page(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    output = tmp_path_factory.mktemp("page")
    benchmarking.leaderboard(folders[0], output, data_dir=folders[1], documents=2)
    return (output / "leaderboard.html").read_text(encoding="utf-8")


def collect(folders: tuple[Path, Path], **options: Any) -> dict[str, ShownDataset]:
    selection = Selection(folders[0], folders[1], "bm25", "nDCG@10", queries=40, documents=0)
    return collect_queries(read_rows(folders[0]), dataclasses.replace(selection, **options))


# --- data ---


def test_the_queries_that_differ_most_with_their_texts(folders):
    found = collect(folders, queries=2)["made"]
    # model differs most in q3 (not found, first) and q2 (third, first); weak in q4 (first, not
    # found) and q2
    assert [query.id for query in found.queries] == ["q2", "q3", "q4"]
    assert found.total == 6
    assert found.queries[1].values == {"bm25": 0.0, "model": 1.0, "weak": 0.0}
    assert found.queries[1].text == f"question 3 {HOSTILE[3]}"
    assert found.queries[1].hits == {}
    assert found.documents == {}
    # q5 is the same for all
    assert [query.id for query in collect(folders)["made"].queries] == [
        "q0",
        "q1",
        "q2",
        "q3",
        "q4",
    ]
    assert collect(folders, queries=0)["made"].queries == []


def test_documents_with_their_relevance_when_asked_for(folders):
    found = collect(folders, documents=2)["made"]
    query = next(query for query in found.queries if query.id == "q1")
    assert query.hits == {"bm25": ["f0", "d1"], "model": ["d1"], "weak": ["f0", "f1"]}
    assert found.qrels["q1"] == {"d1": 1}
    assert found.documents["d1"] == f"answer 1 {HOSTILE[1]}"
    assert found.documents["f0"] == "filler"
    assert "f2" not in found.documents


def test_without_the_data_set_there_are_ids(folders, tmp_path):
    found = collect(folders, documents=1, data_dir=tmp_path)["made"]
    assert {query.text for query in found.queries} == {None}
    assert found.queries[0].hits["weak"] == ["f0"]
    assert (found.documents, found.qrels) == ({}, {})


def test_long_texts_are_cut(tmp_path):
    folder = write_dataset(tmp_path / "data", "made", 1)
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q0", "text": "x" * 501}) + "\n")
    for system, ranks in (("bm25", [1]), ("weak", [2])):
        write_row(tmp_path / "results", tmp_path / "data", "made", system, ranks)
    (query,) = collect((tmp_path / "results", tmp_path / "data"))["made"].queries
    assert query.text == "x" * 499 + "…"


def test_texts_of_other_data_than_the_rows_are_refused(tmp_path):
    folders = write_results(tmp_path, {"made": {"bm25": [1], "weak": [2]}})
    path = folders[1] / "made" / "queries.jsonl"
    path.write_text('{"_id": "q0", "text": "another question"}\n')
    with pytest.raises(
        DataError,
        match=r"queries\.jsonl: sha256 is \w{64}, but must be \w{64}, the "
        r"queries that the rows "
        "of made were measured on; name another data folder",
    ):
        collect(folders)


def test_data_sets_without_the_baseline_or_without_others_have_no_queries(tmp_path):
    folders = write_results(tmp_path, {"one": {"bm25": [1]}, "two": {"weak": [2], "model": [1]}})
    assert collect(folders) == {}


# --- escaping ---


def test_the_page_holds_the_data_as_they_are_and_no_element_of_theirs(page, folders):
    parsed = Scripts(page)
    assert len(parsed.scripts) == 2  # the data, and the one script
    found = json.loads(parsed.scripts[0])
    made = board.make_board(read_rows(folders[0]))
    assert found["board"] == made.model_dump()
    shown = collect(folders, documents=2)
    assert found["details"] == {name: dataclasses.asdict(one) for name, one in shown.items()}
    described = columns.describe_for_page("nDCG@10", "bm25")
    assert found["columns"] == json.loads(json.dumps(described))
    assert {"img", "iframe", "object", "embed", "form"}.isdisjoint(parsed.tags)
    assert page.isascii() or not re.search("[\u2028\u2029]", page)


@pytest.mark.parametrize(
    "text", [*HOSTILE, "</SCRIPT >", "<!--<script>", "&amp;", "\u2029\x00\x1f\ud7ff", "]]>"]
)
def test_no_text_leaves_the_script_element(text):
    embedded = (
        _template().environment.from_string("{{ data | tojson }}").render(data={text: [text]})
    )
    assert json.loads(embedded) == {text: [text]}
    assert embedded.isascii()
    assert not re.search("[<>&\u2028]", embedded)


def test_the_template_is_filled_once_whatever_the_data_say(page):
    query = json.loads(Scripts(page).scripts[0])["details"]["made"]["queries"][3]
    assert "{{ data }}" in query["text"]
    template = (Path(sparse_ir.__file__).parent / "resources" / "leaderboard.html").read_text(
        encoding="utf-8"
    )
    (before, after) = template.split("{{ data | tojson }}")
    assert page.startswith(before)
    assert page.endswith(after)


def test_the_page_asks_nothing_of_the_network_and_writes_no_html():
    template = (Path(sparse_ir.__file__).parent / "resources" / "leaderboard.html").read_text(
        encoding="utf-8"
    )
    # a name, not an address
    assert re.findall(r"https?://[^\"']*", template) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"\bsrc=|@import|url\(|fetch\(|XMLHttpRequest|WebSocket", template)
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new "
        r"Function",
        template,
    )
    assert "default-src 'none'" in template
    assert len(template.splitlines()) < 500


# --- in the browser ---

# works the page as a reader would, and leaves what it saw in an attribute of the document
PROBE = """<script>{
const all = (query, within = document) => [...within.querySelectorAll(query)];
const rowsOf = id => all(`#${id} tbody`).map(body => [...body.rows].map(row => row.cells[0].textContent));
const head = (id, name) => all(`#${id} th`).find(one => one.textContent === name);
const put = (one, value) => { one.value = value; one.oninput(); };
const pick = (place, value) => put(all("#query-controls select")[place], value);
const listed = () => all("#queries summary").map(one => one.textContent);
const seen = { errors, title: document.title, ready: document.documentElement.dataset.ready };
seen.foreign = document.querySelectorAll("img, iframe, b").length;
seen.requests = performance.getEntriesByType("resource").map(entry => entry.name);
seen.about = document.getElementById("about").textContent;
seen.systems = rowsOf("means")[0];
seen.sorted = head("means", "nDCG@10").getAttribute("aria-sort");
head("means", "nDCG@10").firstChild.click();
seen.again = [rowsOf("means")[0], head("means", "nDCG@10").getAttribute("aria-sort")];
head("means", "system").firstChild.click();
seen.named = [rowsOf("means")[0], head("means", "nDCG@10").getAttribute("aria-sort")];
head("means", "docs/s").firstChild.click();
seen.missing = rowsOf("means")[0];
seen.sets = rowsOf("sets");
head("sets", "scifact").firstChild.click();
seen.bySet = rowsOf("sets");
const labels = () => all("#plots svg").map(one => one.getAttribute("aria-label"));
seen.plots = labels();
put(document.querySelector("#cost-controls select"), "made");
seen.plotsOfMade = labels();
seen.outside = all("#plots circle, #deltas circle").filter(one => {
  const { width, height } = one.ownerSVGElement.viewBox.baseVal, x = one.cx.baseVal.value, y = one.cy.baseVal.value;
  return !(x > 0 && x < width && y > 0 && y < height);
}).length;
seen.deltas = document.querySelector("#deltas svg").getAttribute("aria-label");
pick(0, "made"); pick(1, "model"); seen.queries = listed();
pick(2, "wins"); seen.wins = listed(); pick(2, "losses"); seen.losses = listed(); pick(2, "wins and losses");
const words = document.querySelector("#query-controls input");
put(words, "QUESTION 3"); seen.searched = listed(); put(words, "");
const box = document.querySelector("#queries details"); box.open = true; box.ontoggle();
seen.hits = all(".sides > div", box).map(side => side.textContent);
seen.notes = document.querySelectorAll("#notes li").length;
seen.sources = all("#provenance details").map(one => one.textContent);
seen.ground = getComputedStyle(document.body).backgroundColor;
seen.labels = all("select, input").every(one => one.labels.length === 1);
document.documentElement.dataset.seen = JSON.stringify(seen);
}</script>"""
FIRST = """<script>
const errors = [];
addEventListener("error", event => errors.push(event.message));
addEventListener("securitypolicyviolation", event => errors.push(event.violatedDirective));
</script>"""


def look(page: str, folder: Path, *options: str) -> dict[str, Any]:
    """What the probe saw."""
    path = folder / "page.html"
    watched = page.replace("<title>", FIRST + "<title>", 1).replace("</body>", PROBE + "</body>")
    path.write_text(watched, encoding="utf-8")
    dumped = run_chromium(path, "--dump-dom", *options)

    class Root(HTMLParser):
        seen: dict[str, Any] | None = None

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag == "html":
                self.seen = json.loads(dict(attrs)["data-seen"] or "")

    root = Root()
    root.feed(dumped)
    assert root.seen is not None
    return root.seen


@pytest.fixture(scope="module")
def seen(page: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return look(page, tmp_path_factory.mktemp("light"))


@needs_chromium
def test_the_page_draws_itself_without_an_error_or_a_request(seen):
    assert (seen["errors"], seen["requests"], seen["ready"]) == ([], [], "yes")
    assert seen["about"] == "3 systems on 2 data sets, by nDCG@10, compared with bm25."
    assert seen["notes"] == 4
    assert "[object" not in "".join(seen["sources"])
    for system, text in zip(("model", "bm25", "weak"), seen["sources"], strict=True):
        assert text.startswith(f"Where the figures of {system} come from")
        assert f"hashhash of {system}" in text
        assert f"commandsparse-ir beir --model {system}" in text
    assert seen["labels"]


@needs_chromium
def test_hostile_texts_stay_texts(seen):
    assert (seen["title"], seen["foreign"]) == ("Leaderboard", 0)
    shown = " ".join(seen["queries"])
    for text in HOSTILE:
        assert text in shown


@needs_chromium
def test_tables_sort_by_figures_and_by_names(seen):
    assert (seen["systems"], seen["sorted"]) == (["model", "bm25", "weak"], "descending")
    assert seen["again"] == [["weak", "bm25", "model"], "ascending"]
    assert seen["named"] == [["bm25", "model", "weak"], None]
    assert seen["missing"][-1] == "bm25"  # no figure stays last
    ours, others = seen["sets"]
    assert ours == ["model", "bm25", "weak"]
    assert others[0] == "Published elsewhere, not measured here"
    assert "SPLADE-v3-Doc" in others
    assert not set(ours) & set(others)
    assert seen["bySet"][1][:2] == [
        "Published elsewhere, not measured here",
        "BGE-base-en-v1.5 (Pyserini, Lucene)",
    ]


@needs_chromium
def test_plots_show_every_system_inside_of_their_frames(seen):
    latency, terms = seen["plots"]
    assert latency.startswith("nDCG@10 against latency: model 2.0 ms, median, nDCG@10 0.9")
    assert "weak 13.0 terms per document" in terms
    assert "weak 6.0 terms per document" in seen["plotsOfMade"][1]
    assert seen["outside"] == 0
    assert "made, weak −" in seen["deltas"]
    assert "scifact, model +0.1845" in seen["deltas"]


@needs_chromium
def test_queries_are_listed_filtered_searched_and_opened(seen):
    assert [text.split()[1] for text in (line.replace("▸", "") for line in seen["queries"])] == [
        "3",
        "2",
        "1",
        "0",
    ]
    assert (len(seen["wins"]), len(seen["losses"]), len(seen["searched"])) == (3, 1, 1)
    assert "question 0" in seen["losses"][0]
    assert "+1.0000" in seen["searched"][0]
    baseline, model = seen["hits"]
    assert baseline.startswith("bm25 0.0000f0")
    assert model.startswith("model 1.0000d3 relevant 1answer 3")


@needs_chromium
def test_the_page_is_dark_where_the_reader_prefers_it(page, seen, tmp_path):
    dark = look(page, tmp_path, "--blink-settings=preferredColorScheme=0")
    assert (seen["ground"], dark["ground"]) == ("rgb(255, 255, 255)", "rgb(18, 22, 27)")
    assert dark["errors"] == []


@needs_chromium
def test_the_page_prints(page, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(page, encoding="utf-8")
    run_chromium(path, f"--print-to-pdf={tmp_path / PDF}")
    assert (tmp_path / PDF).read_bytes().startswith(b"%PDF-")


@needs_chromium
def test_a_page_with_little_in_it(tmp_path):
    results, data_dir = write_results(tmp_path, {"one": {"bm25": [1, 2]}, "two": {"weak": [0, 1]}})
    benchmarking.leaderboard(results, tmp_path / "out", data_dir=data_dir, published="none")
    text = run_chromium(tmp_path / "out" / "leaderboard.html", "--dump-dom")
    assert 'data-ready="yes"' in text
    shown = text.split("<main>")[1].split("</main>")[0]
    for sentence in (
        "No data set has all systems",
        "Nothing to compare.",
        "No data set has both bm25 and another",
    ):
        assert sentence in shown
