"""The methods of `DetrImageProcessor` that make masks and maps of a model's outputs, and what they promise."""

from collections.abc import Collection
from typing import Any

from torch import Tensor

from .mask_post_processing import Sizes, classes_from_outputs, masks_from_outputs, segments_from_outputs
from .saved_thresholds import SAVED, SavedThresholds, Threshold


class MaskPostProcessing(SavedThresholds):
    """Post-processing of `DetrForSegmentation`: stock transformers' methods, and the masks that mask AP is made of.

    `outputs` have `logits` (B, Q, C + 1), the last class being "no object", `pred_masks` (B, K, h, w), logits at a
    quarter of the processed size, and, where the model decoded some queries only, `mask_queries` (B, K): the query of
    each mask, -1 for none. `target_sizes` are (height, width) of each image, a list or a (B, 2) tensor: maps have that
    size; without, the size of the decoded masks. `processed_sizes` are (height, width) of each image after resizing
    (`labels[i]["size"]`), needed where images of several sizes were padded into one batch: the padding is cut off
    first. (Stock, which does not know them, stretches the padded canvas over the image.)

    Results are on the host. Queries with NaN or infinite logits or masks give nothing, and are warned of. ValueError
    for sizes that do not match the batch and for thresholds outside [0, 1].
    """

    label_ids_to_fuse: list[int] | None

    def post_process_instance_segmentation(
        self,
        outputs: Any,
        threshold: Threshold = SAVED,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        target_sizes: Sizes | None = None,
        return_coco_annotation: bool | None = False,
        *,
        processed_sizes: Sizes | None = None,
    ) -> list[dict[str, Any]]:
        """One dict an image: a map of segments that do not overlap, and what each is.

        Args:
            threshold: keeps the queries whose best class, "no object" among them, is an object above it. "saved", the
                default: above its class's of the processor's `class_thresholds`, 0.5 for classes without one.
            mask_threshold: where a mask's probability times its score is at least this, it reaches.
            overlap_mask_area_threshold: drops a segment that keeps no more than this share of that region, because
                better masks cover it.
            return_coco_annotation: the map as stock's run lengths: one list for each value in it, in ascending order
                and 0 included, [start, length, ...] with starts counted from 1 along the rows; [] where nothing was
                found. COCO's own encodings are those of `post_process_masks`.

        Returns:
            segmentation (H, W) int32, ids of segments, 0 for none; all -1 (float32) where no query was kept, as in
            stock. segments_info: a list of {"id", "label_id", "was_fused", "score"}, in the order of the queries.
        """
        return segments_from_outputs(
            outputs,
            *self._thresholds_of_call(threshold, None, outputs.logits.shape[-1] - 1),
            mask_threshold,
            overlap_mask_area_threshold,
            (),
            target_sizes,
            processed_sizes,
            bool(return_coco_annotation),
        )

    def post_process_panoptic_segmentation(
        self,
        outputs: Any,
        threshold: Threshold = SAVED,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        label_ids_to_fuse: Collection[int] | None = None,
        target_sizes: Sizes | None = None,
        *,
        processed_sizes: Sizes | None = None,
    ) -> list[dict[str, Any]]:
        """As `post_process_instance_segmentation`, with one segment an image for each class to fuse.

        Args:
            label_ids_to_fuse: the classes whose queries become one segment (stuff, such as sky). None: the
                processor's own `label_ids_to_fuse`; where that is None too, no class.

        Returns:
            as there. Queries that were fused keep a dict each, with the same "id" and "was_fused" true.
        """
        fused = self.label_ids_to_fuse if label_ids_to_fuse is None else label_ids_to_fuse
        return segments_from_outputs(
            outputs,
            *self._thresholds_of_call(threshold, None, outputs.logits.shape[-1] - 1),
            mask_threshold,
            overlap_mask_area_threshold,
            fused or (),
            target_sizes,
            processed_sizes,
        )

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: Sizes | None = None,
        return_segmentation_scores: bool = False,
        *,
        processed_sizes: Sizes | None = None,
    ) -> list[Any]:
        """One map (H, W) int64 of classes an image: where all queries' masks, times their class, add up to the most.

        With `return_segmentation_scores`, transformers' `SemanticSegmentationPostProcessorOutput`: `segmentation`, and
        `segmentation_scores` (C, H, W), the sums.
        """
        return classes_from_outputs(outputs, target_sizes, processed_sizes, return_segmentation_scores)

    def post_process_masks(
        self,
        outputs: Any,
        threshold: Threshold = 0.0,
        mask_threshold: float = 0.5,
        target_sizes: Sizes | None = None,
        top_k: int | None = None,
        *,
        processed_sizes: Sizes | None = None,
    ) -> list[dict[str, Tensor | list[dict[str, Any]]]]:
        """One dict an image: scores, labels and boxes as `post_process_object_detection` has them, and `masks`.

        These may overlap, as COCO's mask AP counts them, which wants every score: so the threshold is 0 unless given
        ("saved": see `post_process_object_detection`). `masks` is a list of COCO's compressed run-length encodings,
        {"size": [H, W], "counts": str}: where the probability of a mask is above `mask_threshold`. With
        `processed_sizes` the numbers are the original's (`PostProcessSegm`): bilinear to the processed size, cut at
        the threshold, nearest to the target's; without, bilinear to the target size at once. Boxes are xyxy in pixels
        of the masks.
        """
        thresholds = self._thresholds_of_call(threshold, None, outputs.logits.shape[-1] - 1)
        return masks_from_outputs(outputs, *thresholds, mask_threshold, target_sizes, top_k, processed_sizes)
