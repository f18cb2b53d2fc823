"""A forked run behaves as a new process: exit codes, signals, environment, what it leaves behind."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch.distributed as dist
from forked import ROOT, Prepared
from free_ports import free_port

pytestmark = pytest.mark.detectron2

SAYS = """
import os, sys
from detectron2.data import DatasetCatalog, MetadataCatalog
print(os.getcwd(), sys.argv[1:], os.environ["MINE"], __name__, os.getsid(0) == os.getpid())
print(MetadataCatalog.get("coco_2017_val").image_root, len(DatasetCatalog))
"""


@pytest.fixture
def run(prepared, tmp_path):
    """Return a function that starts some code as a program."""

    def start(code, *args, **options):
        (tmp_path / "program.py").write_text(code)
        return prepared.popen(*args, program=tmp_path / "program.py", **options)

    return start


def in_a_new_process(path, *args, **options):
    return subprocess.run([sys.executable, path, *args], capture_output=True, text=True, check=False, **options)


def test_it_has_the_folder_arguments_and_environment_of_a_new_process(run, tmp_path):
    env = {**os.environ, "MINE": "1", "DETECTRON2_DATASETS": str(tmp_path / "sets")}
    forked = run(SAYS, "a", "b c", cwd=tmp_path, env=env, new_session=True)
    expected = in_a_new_process(
        tmp_path / "program.py", "a", "b c", cwd=tmp_path, env={**env, "PYTHONPATH": str(ROOT)}, start_new_session=True
    )
    assert forked.communicate()[0] == expected.stdout
    assert str(tmp_path / "sets" / "coco/val2017") in expected.stdout


@pytest.mark.parametrize(
    "code",
    [
        "raise ValueError('no')",
        "import sys; sys.exit('said')",
        "import sys; sys.exit(75)",
        "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
        "raise KeyboardInterrupt",
        "import atexit; atexit.register(print, 'last')",
        "import threading; threading.Timer(0.1, print, ['late']).start()",
        "import os; print('lost'); os._exit(3)",
        "print(input())",
    ],
)
def test_it_ends_as_a_new_process_does(run, tmp_path, code):
    forked = run(code)
    out, err = forked.communicate()
    expected = in_a_new_process(tmp_path / "program.py", stdin=subprocess.DEVNULL)
    assert (forked.returncode, out, err.splitlines()[-1:]) == (
        expected.returncode,
        expected.stdout,
        expected.stderr.splitlines()[-1:],
    )


def test_a_killed_run_leaves_nothing_behind(run):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        process = run("import time; time.sleep(100)")
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        process.kill()  # of a process that has ended
        assert not os.path.exists(f"/proc/{process.pid}")
    del process
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # the channel to the prepared process, if it was the first


def test_a_process_that_a_run_spawns_finds_its_function(run):
    code = """
import multiprocessing
def work(): print(__name__, flush=True)
if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=work)
    process.start()
    process.join()
"""
    process = run(code)
    assert process.communicate() == ("__mp_main__\n", "")


def test_variables_that_only_a_new_process_reads_are_refused(prepared):
    with pytest.raises(ValueError, match="OMP_NUM_THREADS: read as Python starts"):
        prepared.popen("--help", env={**os.environ, "OMP_NUM_THREADS": "77"})


def test_warnings_that_a_command_in_this_process_has_silenced_refuse_no_run(prepared, monkeypatch):
    monkeypatch.setenv("PYTHONWARNINGS", "ignore:of this test alone:UserWarning")
    assert prepared.popen("--help").wait() == 0


def test_when_the_prepared_process_dies_nothing_waits(tmp_path):
    broken = Prepared({**os.environ, "PYTHONHOME": str(tmp_path)})  # where Python finds no standard library
    for _ in range(2):
        with pytest.raises(RuntimeError, match="the prepared process has died"):
            broken.run("--help", env=broken.env)
    broken.close()


def test_a_store_that_is_garbage_at_a_fork_of_the_tests_themselves_does_not_end_the_child():
    cycle = [dist.TCPStore("127.0.0.1", free_port(), is_master=True, wait_for_workers=False)]
    cycle.append(cycle)
    gc.disable()
    try:
        del cycle
        if (child := os.fork()) == 0:
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()  # which takes the lost one's place
            gc.collect()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        gc.enable()
