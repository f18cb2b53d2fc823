"""Losses and gradients that are not finite: noticed before the weights change, kept, replayed, and found on a resume.

What is looked at   (check) Each rank's losses; and the gradients' norm, which all ranks share, unless float16 has
                    scaled them, since they may overflow then.
When                (engine/train_step) On a CPU at every step; on a GPU, which has to be waited for, when it is due:
                    before a log line (every 20 iterations), a checkpoint, an evaluation and the end.
Who decides         (check) All ranks together: the worst that any of them saw ends the training on all of them, before
                    the optimiser's step and with the same message.
What is written     (dump, diverged_folder) diverged/iteration_<i>_rank<r>.pth: batch, weights before the step, losses
                    and configuration; by each rank with bad losses; for bad gradients by rank 0, with the batches of
                    all. At most 4 files in all.
Between two looks   (engine/train_step, hooks) A GPU's losses are read later, one by one, and the weights before a
                    signal's checkpoint; where they are bad, an empty file diverged/iteration_<i>_seen says so.
focal-det replay    (replay, cli/replay) Repeats the batch, each image alone, and noise, in float32 and in the run's
                    precision: which image, box, loss and module did it, or that the weights before the step did.
--resume            (diverged_folder, engine/train_step) Looks at each of the 20 steps up to an iteration that the
                    folder names, so that the first bad step is kept if it comes again.
"""
