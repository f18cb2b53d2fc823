"""Training, evaluation and prediction on Detectron2's engine.

trainer joins the parts of a training: one step (train_step), what is done after it (hooks, weight_average,
best_checkpoint, initial_loss, validation_loss, draw_detections, early_stopping), what is written (the room tracking)
and how a set is scored (the room evaluators). run is a whole run as each process sees it, with its setup; predictor is
a trained detector.

Private names of Detectron2, fvcore and PyTorch are touched where no public one exists, in these modules alone:

    _trainer, _hooks                         DefaultTrainer, TrainerBase    engine.trainer, engine.hooks
    _data_loader_iter, _write_metrics        SimpleTrainer                  engine.train_step
    _last_write, _writer_args, _writer       TensorboardXWriter             tracking.metrics_file
    _eval_predictions, _derive_coco_results  COCOEvaluator                  evaluators.coco_evaluator
    _coco_api, _do_evaluation, _metadata,
        _results
    _multiplier                              LRMultiplier                   engine.train_step
    _load_model, _log_incompatible_keys      Checkpointer                   checkpoint.checkpointer, .compatibility
    _load_file, _torch_load                  Checkpointer                   checkpoint.safe_load
    _forward_hooks, _version                 Module, Tensor                 modeling.criterion, .convolutions, .captured
    _apply                                   Module                         modeling.anchor_generator
    _parameters, _buffers, _modules          Module                         modeling.captured
    _foreach_copy_                           torch                          modeling.captured
    _try_get_data                            DataLoader's iterator          distributed.failures
    _subclasses.fake_tensor                  torch                          engine.memory_estimate
    _get_global_gloo_group, _set_pg_timeout  detectron2.utils.comm, torch   distributed.join
"""
