"""Rank and world size from the environment of torchrun and of SLURM, and what contradicts them."""

import pytest

from focal_det.distributed.cluster import ClusterEnvironment, cluster_environment, first_host
from focal_det.errors import InputError

TORCHRUN = {
    **{"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
    **{"MASTER_ADDR": "node1", "MASTER_PORT": "29500"},
}
# Two machines with two tasks each; this is the first task of the second machine.
SLURM = {
    **{"SLURM_JOB_ID": "1234", "SLURM_STEP_ID": "0", "SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4"},
    **{"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_STEP_NODELIST": "gpu[07-08]"},
}


def without(environ, *names):
    return {name: value for name, value in environ.items() if name not in names}


def test_torchrun():
    cluster = ClusterEnvironment(3, 4, 1, 2, "node1", 29500, "torchrun")
    assert cluster_environment(TORCHRUN) == cluster
    assert cluster_environment({**TORCHRUN, "TORCHELASTIC_USE_AGENT_STORE": "True"}).store_is_there


def test_a_step_of_slurm():
    # The port: 10,000 + (31 * 1234 + step) % 20,000, and 31 * 1234 = 38,254.
    assert cluster_environment(SLURM) == ClusterEnvironment(2, 4, 0, 2, "gpu07", 28254, "SLURM")
    assert cluster_environment({**SLURM, "SLURM_STEP_ID": "1"}).port == 28255
    by_hand = cluster_environment({**SLURM, "MASTER_ADDR": "gpu07.ib", "MASTER_PORT": "4000"})
    assert (by_hand.host, by_hand.port) == ("gpu07.ib", 4000)


def test_one_source_after_another():
    bare = without(SLURM, "SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE", "SLURM_STEP_NODELIST")
    assert cluster_environment({**bare, "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NODELIST": "b3,b4"}).host == "b3"
    by_address = {**bare, "SLURM_TASKS_PER_NODE": "2,2", "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7"}
    assert cluster_environment(by_address).host == "10.0.0.7"
    assert cluster_environment({**SLURM, **TORCHRUN}).started_by == "torchrun"  # srun starts torchrun


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WORLD_SIZE": "1", "RANK": "0"},
        {**TORCHRUN, "WORLD_SIZE": "1"},
        {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"},
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8"},  # the shell of salloc
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},  # a batch script
        {**SLURM, "SLURM_STEP_ID": "4294967291"},  # the same, numbered as a step
        {**SLURM, "SLURM_STEP_ID": "4294967290"},  # an interactive step
        {**SLURM, "SLURM_STEP_NUM_TASKS": "1"},
    ],
)
def test_one_process_stays_one(environ):
    assert cluster_environment(environ) is None


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"RANK": "1", "WORLD_SIZE": "2"}, "has RANK, WORLD_SIZE but not LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR"),
        ({"LOCAL_RANK": "0"}, "env -u LOCAL_RANK python"),
        ({**TORCHRUN, "RANK": "one"}, "RANK is 'one'"),
        ({**TORCHRUN, "RANK": "4"}, "contradicts itself: RANK is 4, WORLD_SIZE is 4"),
        ({**TORCHRUN, "WORLD_SIZE": "1000000"}, "WORLD_SIZE is 1000000; PyTorch connects at most 131072 processes"),
        ({**TORCHRUN, "LOCAL_RANK": "2"}, "contradicts itself"),
        ({**TORCHRUN, "LOCAL_RANK": "0"}, "ranks must follow each other"),
        ({**TORCHRUN, "WORLD_SIZE": "5"}, "the same --nproc-per-node"),
        ({**TORCHRUN, "MASTER_PORT": "99999"}, "MASTER_PORT is 99999"),
        (without(SLURM, "SLURM_LOCALID"), "SLURM_LOCALID is not set"),
        ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "3,1"}, "machines with different numbers of processes"),
        ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "2(x3)"}, "SLURM_STEP_NUM_TASKS is 4"),
        ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "two"}, 'not of the form "2(x3),1"'),
        ({**SLURM, "SLURM_PROCID": "1"}, "--distribution=block"),  # cyclic: rank 1 is the first of machine 1
        (without(SLURM, "SLURM_STEP_NODELIST"), "set MASTER_ADDR"),
    ],
)
def test_contradictions_are_refused(environ, message):
    with pytest.raises(InputError, match=r".") as caught:
        cluster_environment(environ)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node[01-04,07],gpu1", "node01"),
        ("gpu1,node[01-04]", "gpu1"),
        ("node[3,5]", "node3"),
        ("rack[2-3]node[1-4]", "rack2node1"),
        ("alone", "alone"),
        ("a[1-2]-ib,b", "a1-ib"),
    ],
)
def test_the_first_machine_of_a_list(nodes, first):
    assert first_host(nodes) == first
