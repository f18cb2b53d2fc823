"""How each set is scored on Detectron2's engine: evaluators by evaluator_type, COCO's files, test-time augmentation."""
