"""An index in other processes: forked after Java has started it says so at once, pickled it works."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from small_indexes import make_vectors, pairs_of, random_matrix, run_python, static_queries

from sparse_ir.indexing import builder
from sparse_ir.indexing.quantization import Rule
from sparse_ir.retrieval.searcher import Index

FORKED = "this process was forked after Java had started"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One index for each engine, with a stored query side. Read only."""
    root = tmp_path_factory.mktemp("processes")
    weights = [0.0, 2.0, 1.0, 3.0, 1.0, 2.0]
    queries = static_queries(weights)
    vectors = make_vectors(root / "vectors", random_matrix(1, 40, 6, 0.5), queries)
    places = {}
    for engine in ("lucene", "exact"):
        places[engine] = root / engine
        builder.build_impact_index(
            vectors, places[engine], Rule(1.0, folded=True), queries, engine=engine
        )
    return places


@pytest.mark.parametrize("engine", ["lucene", "exact"])
def test_a_pickled_index_opens_again(folders: dict[str, Path], engine: str) -> None:
    with Index(folders[engine]) as index:
        expected = pairs_of(index.search("t1 t3", 5))
        with pickle.loads(pickle.dumps(index)) as other:
            assert pairs_of(other.search("t1 t3", 5)) == expected
            assert other.folder == folders[engine]


def test_a_fork_raises_at_once_and_the_parent_goes_on(folders: dict[str, Path]) -> None:
    done = run_python(
        """
        import os, sys
        from sparse_ir.errors import JavaError
        from sparse_ir.retrieval.searcher import Index

        index = Index(sys.argv[1])
        before = index.search("t1 t3", 5).doc_ids
        messages = []
        for number in range(3):
            reader, writer = os.pipe()
            child = os.fork()
            if child == 0:
                try:
                    if number == 0:
                        index.search("t1 t3", 5)
                    elif number == 1:
                        index.has_document("d1")
                    else:
                        Index(sys.argv[1])
                    text = "no error"
                except JavaError as error:
                    text = str(error)
                index.close()
                os.write(writer, text.encode())
                os._exit(0)
            os.close(writer)
            messages.append(os.read(reader, 4000).decode())
            os.waitpid(child, 0)
        assert index.search("t1 t3", 5).doc_ids == before
        print("\\n".join(messages))
        """,
        folders["lucene"],
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()
    assert len(lines) == 3
    assert all(FORKED in line and "spawn" in line for line in lines)


def test_the_exact_engine_survives_a_fork(folders: dict[str, Path]) -> None:
    done = run_python(
        """
        import os, sys
        from sparse_ir.retrieval.searcher import Index

        index = Index(sys.argv[1])
        before = index.search("t1 t3", 5).doc_ids
        child = os.fork()
        if child == 0:
            os._exit(0 if index.search("t1 t3", 5).doc_ids == before else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """,
        folders["exact"],
        timeout=60,
    )
    assert done.stdout.strip() == "0", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_pools_of_every_start_method(folders: dict[str, Path], method: str, tmp_path: Path) -> None:
    script = tmp_path / "pool.py"
    script.write_text(
        f"""
import multiprocessing, sys
from sparse_ir.errors import JavaError
from sparse_ir.retrieval.searcher import Index


def answer(index):
    try:
        return index.search("t1 t3", 5).doc_ids
    except JavaError as error:
        return str(error)


def answer_with_inherited():
    return answer(index)


if __name__ == "__main__":
    index = Index({str(folders["lucene"])!r})
    before = index.search("t1 t3", 5).doc_ids
    with multiprocessing.get_context({method!r}).Pool(1) as pool:
        if {method!r} == "fork":
            print(pool.apply(answer_with_inherited))
        else:
            print(pool.apply(answer, (index,)) == before)
""",
        encoding="utf-8",
    )
    done = run_python(
        "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')", script, timeout=100
    )
    assert done.returncode == 0, done.stderr
    expected = FORKED if method == "fork" else "True"
    assert expected in done.stdout
