"""Files of annotation tools that are neither COCO's nor Pascal VOC's, each read into an `AnnotatedSet`."""
