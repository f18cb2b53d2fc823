"""The processes of a job: how they start together, stop together, and end each other when one fails.

Starting. `cluster` reads which rank torchrun or SLURM made of this process; `rendezvous` waits until all have joined,
or names those missing after --start-timeout; by `join`, what ends one rank before the training ends all, with one code.

Stopping. SIGTERM, SIGINT and SIGUSR1 go to whoever handles them at the time; all handlers are installed by `signals`:

    process                         handled by                what that does                             exit code
    any command, before a training  stopping_before_training  removes what is half written                      75
      ... as a rank that starts     joint_start               the same; ends the joint work of all ranks        75
    launcher, while ranks run       SignalForwarder           forwards it to the ranks         75 once they stopped
    rank in a training              GracefulStop              all ranks save after the same step       0, see below
    rank in an evaluation           SignalListener            RankWatchdog ends all ranks              128 + number
    evaluation of one process       stopping_before_training  ends it                                  128 + number
    loader worker                   workers_shielded          nothing, unless its own rank sends it
    rank that starts                blocked                   GracefulStop finds it                              75
    process whose work is done      ignored                   nothing                                     unchanged

A SIGTERM to rank 1 in a training, from the signal to the last exit:

    1. signals        The thread of SignalListener notes it in `received`, whatever the main thread waits for.
    2. graceful_stop  Agreement, after every step: all ranks learn of it one step later, at the same step. RankWatchdog
                      also announces it ("stop") in the store. That matters in an evaluation, which has no steps:
                      each rank's StoppableLoader breaks off, and waits for the others at its end.
    3. engine/hooks   StopOnSignal, which has given it to the Agreement, raises TrainingStopped on all ranks. As the
                      training ends (after_train) rank 0 writes the checkpoint, and the others wait for that.
                      Once all is saved, signals are ignored: srun and torchrun send them to ranks that still leave.
    4. engine/run     Each rank logs the message and sets `stopped`. RankWatchdog waits for all ranks and destroys the
                      process groups; in a fault it does neither, which would be to wait for ranks that are gone.
    5. launch         Ranks of the launcher exit with 0, and the launcher, which sees `stopped`, with 75. Ranks of
                      torchrun and SLURM exit with 75 themselves; torchrun's own code is then 1.

That takes up to two steps and a save; only --hang-timeout bounds it. A signal from before the first step is found as
GracefulStop opens: nothing was trained, 75. One that kills a rank before it can block signals is a fault, 1, unless the
launcher was signalled too: then nothing was trained, 75. A second signal, more than SAME_REQUEST_SECONDS later, ends
the process that gets it at once with 128 + number: the launcher with all its ranks, or a rank, whose launcher ends the
others and then itself with the same code.

Failing. Each rank's RankWatchdog publishes a heartbeat in the job's store every POLL_SECONDS. Rank 0 looks at those of
all, the others at rank 0's. The first verdict in the store is what all end with: one line that names the rank, and 1.

    fault                             found by                                     seconds until all have ended
    an exception, a non-finite loss   the rank itself, see report_failure          END = 3 POLL_SECONDS + LEAVE_AFTER
    a killed loader worker            the rank itself, see is_killed_worker        END
    a killed rank                     the launcher; or a rank that has lost its    DEAD_AFTER_LOST + END
                                      connection, and rank 0 by the heartbeats
    a silent rank or machine          rank 0, or all if it is rank 0, by the       DEAD_AFTER + END; in SILENT_PHASES
                                      heartbeats; _watch_store if rank 0 is        --hang-timeout + END
                                      suspended, and the store with it
    no progress of any rank           rank 0, by the heartbeats' "moves"           --hang-timeout + END
    launcher or torchrun gone         _watch_store, by the parent process          2 POLL_SECONDS
    ranks that never meet             Rendezvous, join_process_group, reach_all;   --start-timeout for each of them
                                      in the launcher StartDeadline

Once it knows the verdict, a rank has LEAVE_AFTER seconds to end by itself, then its watchdog ends it; one rank of each
machine prints the line. The ways in which torch itself would end a job are switched off: the groups' timeouts, by
NO_TIMEOUT, since they would end the wait for a long evaluation and count while a job is suspended; and NCCL's watchdog,
by leave_errors_to_the_watch, since it aborts ranks that have nothing to do with the fault. The constants are in
`watchdog`; tests/distributed/test_watchdog.py holds their sums to what docs/resume.md promises.
"""
