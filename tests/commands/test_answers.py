"""Questions asked from the shell, documents shown, and things described."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest

import sparse_ir
from sparse_ir import cli
from sparse_ir.console import format_answers
from sparse_ir.data import runs
from sparse_ir.errors import ConfigError, DataError

DOCUMENTS = [
    {"_id": "threads", "title": "Threads", "text": "A barrier waits for several threads."},
    {"_id": "locks", "title": "", "text": "A lock lets one thread pass, and [others] wait."},
    {"_id": "csv", "title": "CSV files", "text": "Rows of comma separated values."},
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index, its vectors, an index without documents, a run and qrels."""
    folder = tmp_path_factory.mktemp("answers")
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS))
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q1", "text": "threads"}) + "\n")
    (folder / "qrels").mkdir()
    qrels = "query-id\tcorpus-id\tscore\nq1\tthreads\t2\nq1\tcsv\t0\n"
    (folder / "qrels" / "test.tsv").write_text(qrels)
    sparse_ir.build("lexical", corpus, folder / "index", engine="exact", fields="sparse")
    sparse_ir.index(
        folder / "index.vectors", folder / "bare", engine="exact", store=False, fields="sparse"
    )
    sparse_ir.search(folder / "index", folder, folder / "run.trec")
    return folder


def shown_by(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert cli.main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def test_a_question_is_answered_with_titles_and_passages(root, capsys):
    shown = shown_by(capsys, "search", "--index", root / "index", "several threads")
    assert shown.splitlines()[0] == "several threads"
    assert "**Threads**  threads" in shown
    assert "A barrier waits for **several** **threads**." in shown


def test_questions_come_as_words_from_standard_input_and_from_a_file(root, capsys, monkeypatch):
    (root / "questions.txt").write_text("comma separated\n\nlock\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("barrier\nrows\n"))
    words = ["search", "--index", root / "index", "lock", "-"]
    report = json.loads(
        shown_by(capsys, *words, "--query-file", root / "questions.txt", "--json", "--hits", 1)
    )
    questions = ["lock", "barrier", "rows", "comma separated", "lock"]
    answers = report["answers"]
    assert [answer["question"] for answer in answers] == questions
    assert [answer["query_id"] for answer in answers] == ["1", "2", "3", "4", "5"]
    found = [answer["hits"][0]["doc_id"] for answer in answers]
    assert found == ["locks", "threads", "csv", "csv", "locks"]
    assert answers[2]["hits"][0]["title"] == "CSV files"
    assert answers[2]["hits"][0]["snippet"]["highlights"] == [[0, 4]]


def test_answers_are_a_trec_run_on_request(root, capsys, tmp_path):
    shown = shown_by(capsys, "search", "--index", root / "index", "threads", "rows", "--trec")
    (tmp_path / "run").write_text(shown)
    run = runs.read_run(tmp_path / "run")
    assert list(run) == ["1", "2"]
    assert run["2"][0][0] == "csv"
    with pytest.raises(ConfigError, match="--trec prints answers"):
        cli.main(
            f"search --index {root / 'index'} --queries {root} --output {tmp_path / 'r'} --trec".split()
        )


def test_a_question_without_answer_and_an_index_without_documents(root, capsys):
    assert "no document matches" in shown_by(capsys, "search", "--index", root / "index", "?!")
    shown = shown_by(capsys, "search", "--index", root / "bare", "several threads")
    assert shown.splitlines()[1].split()[-1] == "threads"
    assert "barrier" not in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "search needs a question, or queries"),
        (["a", "--queries", "x"], "questions are answered on standard output; drop --queries"),
        (["a", "--output", "x"], "questions are answered on standard output; drop --queries"),
        (["--queries", "x"], "queries need a file for their run; name it with --output"),
        ([" "], "the question is empty; it must be a text"),
        (["a", "--bogus"], "Unknown option: --bogus"),
        (["a", "--hits", "0"], "hits is 0; it must be at least 1"),
    ],
)
def test_what_cannot_be_asked(root, words, message):
    with pytest.raises(ConfigError, match=message):
        cli.main(["search", "--index", str(root / "index"), *words])


def test_documents_are_shown_with_all_fields(root, capsys):
    shown = shown_by(capsys, "show", "--index", root / "index", "csv", "threads")
    assert shown.splitlines()[0].split() == ["doc_id", "csv"]
    assert "CSV files" in shown
    assert "Rows of comma separated values." in shown
    assert "A barrier waits for several threads." in shown
    report = json.loads(shown_by(capsys, "show", "--index", root / "index", "csv", "--json"))
    assert report["documents"][0]["text"] == "Rows of comma separated values."
    for words, error, message in (
        (["index", "nowhere"], DataError, "has no document 'nowhere'"),
        (["bare", "csv"], ConfigError, "keeps no documents; build it from vectors"),
        (["index"], ConfigError, "name at least one document"),
    ):
        with pytest.raises(error, match=message):
            cli.main(["show", "--index", str(root / words[0]), *words[1:]])


def test_info_says_what_a_thing_is(root, capsys, tmp_path):
    facts = sparse_ir.info(root / "index")
    assert (facts["kind"], facts["engine"], facts["documents"]) == ("impact index", "exact", 3)
    assert facts["documents_kept"] is True
    assert sparse_ir.info(root / "bare")["documents_kept"] is False
    facts = sparse_ir.info(root / "index.vectors")
    assert (facts["kind"], facts["documents"], facts["encoder"]) == ("vectors", 3, "lexical")
    begun = shutil.copytree(root / "index.vectors", tmp_path / "begun")
    (begun / "manifest.json").unlink()
    facts = sparse_ir.info(begun)
    assert facts["kind"].startswith("unfinished vectors")
    assert (facts["shards"], facts["finished_shards"]) == (1, 1)
    facts = sparse_ir.info(root / "run.trec")
    assert (facts["kind"], facts["queries"], facts["tag"]) == ("run", 1, "sparse_ir")
    facts = sparse_ir.info(root / "qrels" / "test.tsv")
    assert (facts["kind"], facts["judgements"], facts["relevant"]) == ("qrels", 2, 1)
    assert facts["grades"] == {"0": 1, "2": 1}
    model = Path(sparse_ir.__file__).parent / "resources" / "model"
    assert sparse_ir.info(model)["kind"] == "model"
    assert "kind" in shown_by(capsys, "info", root / "index")
    for path, message in (
        (root / "nowhere", "does not exist"),
        (root / "qrels", "of no known kind; it must be an index"),
        (root / "queries.jsonl", "of no known kind; a file must be a run"),
    ):
        with pytest.raises(ConfigError, match=message):
            sparse_ir.info(path)
    with pytest.raises(ConfigError, match="info takes one path, not 2"):
        cli.main(["info", "a", "b"])


def test_an_answer_is_text_without_markup():
    snippet = {
        "text": "a [red]\n  fox",
        "highlights": [(3, 6)],
        "title_highlights": [],
        "expansions": {"vulpes": 2.0, "animal": 1.0},
    }
    hit = {"rank": 1, "doc_id": "d", "score": 3.0, "title": "[b]", "snippet": snippet}
    shown = format_answers([{"question": "fox", "hits": [hit]}])
    assert "[b]  d" in shown
    assert "a [**red**] fox" in shown
    assert "by expansion: vulpes, animal" in shown
