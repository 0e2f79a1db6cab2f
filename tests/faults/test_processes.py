"""An index in other processes: forked after Java has started it says so at once, pickled it works."""

from __future__ import annotations

import os
import pickle
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_indexes import make_vectors, pairs_of, random_matrix, run_python, static_queries

from sparse_ir.errors import ClosedError, DamagedError
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


def test_an_unpickled_index_opens_when_it_is_used(folders: dict[str, Path], tmp_path: Path) -> None:
    place = tmp_path / "index"
    shutil.copytree(folders["exact"], place)
    with Index(place) as index:
        expected = pairs_of(index.search("t1 t3", 5))
        pickled = pickle.dumps(index)
    other = pickle.loads(pickled)
    place.rename(tmp_path / "moved")
    assert isinstance(other, Index)
    assert pickle.dumps(other) == pickled
    with pytest.raises(DamagedError, match="no such folder"):
        other.search("t1 t3", 5)
    (tmp_path / "moved").rename(place)
    with other:
        assert pairs_of(other.search("t1 t3", 5)) == expected
        assert type(other) is Index
        assert other.rule == Rule(1.0, folded=True)
    never_used = pickle.loads(pickled)
    never_used.close()
    with pytest.raises(ClosedError, match="the index is closed"):
        never_used.search("t1 t3", 5)


PRELUDE = """
import multiprocessing, os, sys
from sparse_ir.errors import JavaError
from sparse_ir.retrieval.searcher import Index


def answer(index, text="t1 t3"):
    return list(index.search(text, 5).doc_ids)


def answer_with_inherited(_):
    return answer(index)


def attempt(task, *arguments):
    try:
        return task(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


index = Index(FOLDER)
expected = answer(index)
"""

POOLS = {
    "pool by spawn": ("spawn", "pool.apply(answer, (index,)) == expected", "True"),
    "pool by forkserver": ("forkserver", "pool.apply(answer, (index,)) == expected", "True"),
    "pool by fork, pickled": ("fork", "attempt(pool.apply, answer, (index,))", FORKED),
    "pool by fork, inherited": ("fork", "attempt(pool.map, answer_with_inherited, [0])", FORKED),
}


def run_script(folder: Path, place: Path, text: str) -> str:
    """What a script prints that opens an index first."""
    prelude, _, opening = PRELUDE.partition("index = Index(FOLDER)")
    opening = f"index = Index({str(folder)!r})" + opening
    main = "\n".join("    " + line for line in (opening + text).splitlines())
    place.write_text(prelude + "if __name__ == '__main__':\n" + main + "\n", encoding="utf-8")
    done = run_python(
        "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')", place, timeout=150
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("case", POOLS)
def test_pools_of_every_start_method(folders: dict[str, Path], case: str, tmp_path: Path) -> None:
    method, call, expected = POOLS[case]
    text = f"""
with multiprocessing.get_context({method!r}).Pool(1) as pool:
    print({call})
"""
    assert expected in run_script(folders["lucene"], tmp_path / "pool.py", text)


@pytest.mark.slow
def test_joblib(folders: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("joblib")
    text = """
import joblib
for backend in ("loky", "multiprocessing"):
    work = joblib.Parallel(n_jobs=2, backend=backend)
    print(attempt(work, [joblib.delayed(answer)(index)] * 2) == [expected] * 2)
"""
    printed = run_script(folders["lucene"], tmp_path / "jobs.py", text).split()
    assert printed == ["True", "False"]  # loky starts fresh processes; the other one forks


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_data_loader(folders: dict[str, Path], method: str, tmp_path: Path) -> None:
    script = tmp_path / "loader_parts.py"
    script.write_text(
        """
class Questions:
    def __init__(self, index):
        self.index = index

    def __len__(self):
        return 2

    def __getitem__(self, number):
        return list(self.index.search("t1 t3", 5).doc_ids)
""",
        encoding="utf-8",
    )
    text = f"""
sys.path.insert(0, {str(tmp_path)!r})
from loader_parts import Questions
from torch.utils.data import DataLoader

loader = DataLoader(
    Questions(index),
    num_workers=1,
    collate_fn=list,
    batch_size=2,
    multiprocessing_context={method!r},
    timeout=100,
)
print(attempt(list, loader) == [[expected] * 2], attempt(list, loader))
"""
    printed = run_script(folders["lucene"], tmp_path / "loader.py", text)
    assert (FORKED if method == "fork" else "True") in printed


@pytest.mark.slow
def test_a_server_that_forks_after_loading(folders: dict[str, Path], tmp_path: Path) -> None:
    """gunicorn with ``preload``: the index is opened before its workers are forked."""
    pytest.importorskip("gunicorn")
    (tmp_path / "application.py").write_text(
        f"""
from sparse_ir.retrieval.searcher import Index

index = Index({str(folders["lucene"])!r})
index.search("t1 t3", 5)


def application(environment, start_response):
    try:
        text = repr(index.search("t1 t3", 5).doc_ids)
    except Exception as error:
        text = str(error)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [text.encode()]
""",
        encoding="utf-8",
    )
    place = tmp_path / "socket"
    command = [sys.executable, "-m", "gunicorn", "--preload", "--workers", "1"]
    command += ["--chdir", str(tmp_path), "--bind", f"unix:{place}", "application:application"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as server:
        try:
            assert FORKED in ask(place)
        finally:
            server.terminate()


def ask(place: Path) -> str:
    """The answer of the server at a socket, which may not be there yet."""
    for _ in range(600):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(60)
            try:
                connection.connect(str(place))
            except OSError:
                time.sleep(0.1)
                continue
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return b"".join(iter(lambda: connection.recv(4096), b"")).decode()
    raise AssertionError("the server did not start")
