"""Settings of a training: those of Transformers, with the paper's values as defaults, and a few of our own."""

from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from ..data.box_policy import ON_BAD_BOX
from ..data.verification import ON_BAD_IMAGE
from .recipes import RECIPES, averages_weights, class_head_rate_of, uses_muon

_ADAMW = ("adamw_torch", "adamw_torch_fused")  # whose place MuonAdamW can take


@dataclass
class DetrTrainingArguments(TrainingArguments):
    """`TrainingArguments` whose defaults are the paper's (Carion et al. 2020, A.4) and DETR's own needs.

    From the paper: AdamW, learning rates 1e-4 and 1e-5 (backbone), weight decay 1e-4, gradients clipped at 0.1, 300
    epochs with the rates divided by 10 after two thirds, two images a device. Ours: COCO AP after every epoch, the best
    checkpoint by AP loaded at the end, the best and the last one kept, losses logged every 50 steps, two workers.

    Without evaluation (`eval_strategy="no"`) or without checkpoints (`save_strategy="no"`) there is no best one, and
    `load_best_model_at_end` is turned off.

    Fields of this class:
        recipe: "paper", or "fast" for the best combination of training-only parts that was measured (docs/results.md);
            None leaves the model as its configuration says. What it sets, the fields below can set otherwise.
        denoising_queries, query_groups, encoder_auxiliary_loss, iou_aware_classification: as in `DetrConfig`; None: as
            the recipe says.
        muon: move the transformer's linear layers by orthogonal steps (`MuonAdamW`), in place of AdamW's; it goes with
            `optim` "adamw_torch" and "adamw_torch_fused". None: as the recipe says, or not with another `optim`.
        backbone_learning_rate: of all parameters of the backbone that train.
        class_head_learning_rate: of the class head, which starts afresh where the classes are new. None: as the recipe
            says, ten times `learning_rate` with "fast", `learning_rate` otherwise.
        lr_drop_at: the share of the training, in (0, 1), after which all rates fall to a tenth; None for never. Only
            with `lr_scheduler_type` "constant" or "constant_with_warmup"; other schedules are as in Transformers.
        ema_decay: in (0, 1), such as 0.9997: an exponential moving average of the weights is kept, and is what is
            evaluated, saved and left in the model. 0 for none. None: as the recipe says; the one of "fast" averages
            over a share of the steps so far (see `WeightAverage`).
        teacher: a folder or Hub name of a trained detector, any that `AutoModelForObjectDetection` loads, with an image
            processor and classes of the same names: what it sees in each training image is a further target (see
            `loss.distillation`). It looks at every batch, which takes its time; what is saved knows nothing of it.
        early_stopping_patience: stop after so many evaluations in a row without a better `metric_for_best_model`.
        early_stopping_threshold: what counts as better, in units of the metric.
        on_bad_box: what to do with boxes that are not finite, have no area or leave their image: "error" (before the
            first step, naming the image), "drop" or "clip", both with a count.
        on_bad_image: what to do with images that are missing, damaged or not of the size their row says: "error" when
            one is read, or "drop" before the first step, with a count; for that all images are opened, and those found
            good are remembered in the user's cache.
        group_by_aspect_ratio: batches of images of like shape, so that less is padded; the data set needs the columns
            width and height. Alike are the images as they will be after augmentation, in ratio and size, if every
            augmentation tells that beforehand, as the paper's does (`DetectionTransform.tells_final_hw`); else only
            the ratios before it.
        augment_until: the share of the training, in (0, 1], after which augmentations that say so ("strong", which then
            flips alone; see `DetectionTransform`) end; 1 for never. Of a stream they go on.
        repeated_augmentation: how often an epoch has every image, one after the other, each time augmented otherwise.
        eval_score_threshold: detections below it do not count for AP; 0, as COCO has it, keeps all.
        eval_max_detections: per image and class; the largest holds for AP, each gives an average recall `mar_n`.

    Raises:
        ValueError: an impossible value, or `remove_unused_columns=True`, which would drop the image.
    """

    learning_rate: float = field(default=1e-4, metadata={"help": "Of everything but the backbone."})
    backbone_learning_rate: float = field(default=1e-5, metadata={"help": "Of the backbone."})
    class_head_learning_rate: float | None = field(default=None, metadata={"help": "Of the class head."})
    weight_decay: float = field(default=1e-4, metadata={"help": "Of every parameter, norms and biases as well."})
    max_grad_norm: float = field(default=0.1, metadata={"help": "Largest norm of the gradient."})
    num_train_epochs: float = field(default=300.0, metadata={"help": "Passes over the training set."})
    per_device_train_batch_size: int = field(default=2, metadata={"help": "Images of one forward pass of a device."})
    lr_scheduler_type: str = field(default="constant", metadata={"help": "See also lr_drop_at."})
    lr_drop_at: float | None = field(default=2 / 3, metadata={"help": "Share of the training before rates / 10."})

    recipe: str | None = field(default=None, metadata={"help": f"One of {', '.join(RECIPES)}."})
    denoising_queries: int | None = field(default=None, metadata={"help": "Noised copies of each target."})
    query_groups: int | None = field(default=None, metadata={"help": "Groups of object queries, matched each."})
    encoder_auxiliary_loss: bool | None = field(default=None, metadata={"help": "A loss for the encoder's cells."})
    iou_aware_classification: bool | None = field(default=None, metadata={"help": "Classes owed as boxes fit."})
    muon: bool | None = field(default=None, metadata={"help": "Orthogonal steps for the transformer's matrices."})
    ema_decay: float | None = field(default=None, metadata={"help": "Average the weights, with this decay a step."})
    teacher: str | None = field(default=None, metadata={"help": "A trained detector to learn from as well."})
    early_stopping_patience: int | None = field(default=None, metadata={"help": "Evaluations without a better AP."})
    early_stopping_threshold: float = field(default=0.0, metadata={"help": "By how much AP must be better."})
    on_bad_box: str = field(default="error", metadata={"help": f"One of {', '.join(ON_BAD_BOX[:3])}."})
    on_bad_image: str = field(default="error", metadata={"help": f"One of {', '.join(ON_BAD_IMAGE)}."})
    group_by_aspect_ratio: bool = field(default=False, metadata={"help": "Batches of images of like shape."})
    augment_until: float = field(default=0.9, metadata={"help": "Share of the training before strong ones end."})
    repeated_augmentation: int = field(default=1, metadata={"help": "Times that an epoch has every image."})

    eval_strategy: str = field(default="epoch", metadata={"help": "When to compute COCO AP."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to write a checkpoint."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep; the best is among them."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "End with the weights of the best AP."})
    metric_for_best_model: str | None = field(default="map", metadata={"help": "What the best is best at."})
    greater_is_better: bool | None = field(default=None, metadata={"help": "True but for losses."})
    eval_score_threshold: float = field(default=0.0, metadata={"help": "Detections below it do not count."})
    eval_max_detections: list[int] = field(
        default_factory=lambda: [1, 10, 100], metadata={"help": "Per image and class; the largest holds for AP."}
    )

    logging_steps: float = field(default=50, metadata={"help": "Steps between two entries of the log."})
    # Transformers would look at every step's loss on the host, and leave bad ones out of the mean without a word
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Leave NaN out of logged losses."})
    dataloader_num_workers: int = field(default=2, metadata={"help": "Processes that load images, for each device."})
    dataloader_persistent_workers: bool = field(default=True, metadata={"help": "Keep the workers between epochs."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must be False: the image would go."})
    # every parameter takes part in every step; looking for unused ones costs a walk through the graph
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "See PyTorch."})

    @property
    def averages_weights(self) -> bool:
        """Whether a moving average of the weights is kept."""
        return averages_weights(self.recipe, self.ema_decay)

    @property
    def uses_muon(self) -> bool:
        """Whether the optimizer is `MuonAdamW` with orthogonal steps."""
        return uses_muon(self.recipe, self.muon) and _text(self.optim) in _ADAMW

    @property
    def class_head_rate(self) -> float | None:
        """The class head's learning rate, None where it is that of the rest."""
        return class_head_rate_of(self.recipe, self.learning_rate, self.class_head_learning_rate)

    @property
    def rates_text(self) -> str:
        """The learning rates in words, for cards."""
        rates = f"{self.learning_rate:g}, backbone {self.backbone_learning_rate:g}"
        return rates if self.class_head_rate is None else f"{rates}, class head {self.class_head_rate:g}"

    def __post_init__(self):
        _check(self)
        if self.accelerator_config is None and torch.cuda.is_available() and not self.use_cpu:
            # out of pinned memory, so that the host need not wait for the copy
            self.accelerator_config = {"non_blocking": self.dataloader_pin_memory}
        if "no" in (_text(self.eval_strategy), _text(self.save_strategy)):
            self.load_best_model_at_end = False
        super().__post_init__()


def _text(strategy) -> str:
    return str(getattr(strategy, "value", strategy))


def _check(args: DetrTrainingArguments) -> None:
    if args.remove_unused_columns:
        raise ValueError(
            "remove_unused_columns=True drops the column 'image' before the transform sees it; leave it False."
        )
    if not args.backbone_learning_rate >= 0:
        raise ValueError(f"backbone_learning_rate={args.backbone_learning_rate!r} is not a number of at least 0.")
    if args.class_head_learning_rate is not None and not args.class_head_learning_rate >= 0:
        raise ValueError(
            f"class_head_learning_rate={args.class_head_learning_rate!r} is not a number of at least 0; None leaves it "
            "to the recipe."
        )
    if args.muon and _text(args.optim) not in _ADAMW:
        raise ValueError(f"muon=True goes with optim={' or '.join(_ADAMW)}, not {_text(args.optim)!r}.")
    if args.lr_drop_at is not None and not 0 < args.lr_drop_at < 1:
        raise ValueError(f"lr_drop_at={args.lr_drop_at!r} is not between 0 and 1; None turns it off.")
    if not 0 < args.augment_until <= 1:
        raise ValueError(f"augment_until={args.augment_until!r} is not above 0 and at most 1; 1 turns it off.")
    if args.repeated_augmentation < 1:
        raise ValueError(f"repeated_augmentation={args.repeated_augmentation!r} is not a number of at least 1.")
    if args.ema_decay is not None and not 0 <= args.ema_decay < 1:
        raise ValueError(f"ema_decay={args.ema_decay!r} is not between 0 and 1; 0 turns it off.")
    if args.recipe not in (None, *RECIPES):
        raise ValueError(f"recipe={args.recipe!r} is none of {', '.join(map(repr, RECIPES))}.")
    if args.early_stopping_patience is not None:
        if args.early_stopping_patience < 1:
            raise ValueError(
                f"early_stopping_patience={args.early_stopping_patience!r} is not a number of evaluations of at least "
                "1; None turns it off."
            )
        if _text(args.eval_strategy) == "no":
            raise ValueError("early_stopping_patience needs evaluations; set eval_strategy='epoch'.")
    if args.on_bad_box not in ON_BAD_BOX[:3]:
        raise ValueError(f"on_bad_box={args.on_bad_box!r} is none of {ON_BAD_BOX[:3]}.")
    if args.on_bad_image not in ON_BAD_IMAGE:
        raise ValueError(f"on_bad_image={args.on_bad_image!r} is none of {ON_BAD_IMAGE}.")
    if not 0 <= args.eval_score_threshold <= 1:
        raise ValueError(f"eval_score_threshold={args.eval_score_threshold!r} is not between 0 and 1.")
    if args.label_smoothing_factor:
        raise ValueError("label_smoothing_factor has no meaning for a set loss; leave it 0.")
