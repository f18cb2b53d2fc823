"""Checkpoints: written completely or not at all, read as data alone, and resumed by rules.

What a training does with its OUTPUT_DIR, decided before anything is written (`resume.find_checkpoint`):

    OUTPUT_DIR holds                      without --resume   --resume              --resume auto
    no checkpoint, no last_checkpoint     starts             refused               starts
    the same, but metrics                 refused            refused               starts; puts the metrics aside
    an intact checkpoint                  refused            resumes from it       resumes from it
    one with all iterations               refused            evaluates             evaluates
    none intact, or only last_checkpoint  refused            refused, lists them   refused, lists them

The checkpoint is the one that last_checkpoint names, if it is intact: every checksum is right, it holds plain data
alone (`integrity`), and it has weights, optimiser and iteration. Else, with a warning, the intact one of most
iterations, and model_best.pth where no other is intact. Without --resume no checkpoint is looked at.

With --eval-only, --resume evaluates what it would resume from, and changes nothing of the training; with auto,
MODEL.WEIGHTS where there is nothing.

May this run resume from it? `preflight.plan.check` asks, and every refusal names the value and the fix. First of all,
by itself, since all else may follow from it:

    config.plugins              are the plug-ins imported that the run was trained with?

then, in one list with whatever else is wrong with flags, configuration and data:

    resume.find_checkpoint      is there an intact checkpoint?
    preflight.datasets          are the labels those of classes.json beside it?
    compatibility.build_parts   does the configuration make a model, a schedule and loaders at all?

and, in a second list:

    compatibility.check_weights does it have every weight of the configuration's model, in its shape?
    disk_space.check_disk       is there room for the checkpoints to come?
    run_record.compare          do configuration, data, classes and number of processes make the same training?
                                Its rules are at its top; --allow-changes lifts these refusals and no others

and, as the training starts:

    resume.folder_taken         is the folder this training's alone, and as it was when all this was decided?

What a resumed run takes from where (`engine.trainer`):

    from the checkpoint         weights, their EMA, momentum, iteration, the normaliser's average, the metrics of the
                                last steps, which files the run has written, and SEED where the configuration's is
                                negative
    from the configuration      everything else, such as lr, schedule, weight decay and data; the order of the data
                                follows from SEED and the iteration

Files: `checkpointer` writes and retains, `disk_space` is about room for them, `safe_load` and `restricted_pickle` load
weights of strangers.
"""
