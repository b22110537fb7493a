"""What the models share on the PreTrainedModel API: loading, what is frozen, and how fresh weights start."""

from contextvars import ContextVar

import torch
from huggingface_hub import HfApi
from torch import nn
from transformers import PreTrainedModel, initialization

from .checkpoints.card_facts import card_facts
from .checkpoints.model_card import model_card
from .configuration_detr import DetrConfig
from .nn.frozen_norm import FrozenBatchNorm2d

# While a checkpoint is being loaded, the backbone's published weights are not wanted: it brings its own.
loading_checkpoint: ContextVar[bool] = ContextVar("loading_checkpoint", default=False)


class DetrPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation, shared by the models."""

    config_class = DetrConfig
    config: DetrConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["ConvEncoder", "EncoderLayer", "DecoderLayer"]  # noqa: RUF012
    # counters of live batch norms, which some files hold, and what only a training's checkpoint holds
    _keys_to_ignore_on_load_unexpected = [r"num_batches_tracked$", r"^training_only\."]  # noqa: RUF012
    _keys_to_ignore_on_load_missing = [r"^training_only\."]  # noqa: RUF012

    def __init__(self, config: DetrConfig, *inputs, **kwargs):
        config.check()  # fields may have been set since it was made
        super().__init__(config, *inputs, **kwargs)
        self.register_load_state_dict_post_hook(_ignore_batch_counters)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As in Transformers. The backbone's weights come from the checkpoint alone: nothing else is opened."""
        token = loading_checkpoint.set(True)
        try:
            loaded = super().from_pretrained(*args, **kwargs)
        finally:
            loading_checkpoint.reset(token)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with output_loading_info
        # loading makes new parameters, all of which would train
        model.base_model.backbone.conv_encoder.freeze(model.config.freeze_backbone_until)
        return loaded

    def get_input_embeddings(self) -> None:
        """None: pictures are not tokens. Accelerate's FSDP asks."""
        return

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, token: bool | str | None = None, **kwargs
    ) -> str:
        """As in Transformers. A repository without a README.md gets this package's model card first; its classes and
        sizes are known here, what it was trained on is not: `hf-detr train` and `DetrTrainer` write fuller ones."""
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if not api.file_exists(repo_id, "README.md"):
            # not by ModelCard: older clients validate at huggingface.co, wherever HF_ENDPOINT points
            card = model_card(card_facts(self, repo_id)).encode()
            api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id=repo_id)
        return super().push_to_hub(repo_id, private=private, token=token, **kwargs)

    def freeze_backbone(self, until: str | int | None = "all") -> None:
        """Afterwards exactly the backbone's parameters up to and including a stage are frozen: a stage's name or index,
        "all", or None for none. Call it before the optimizer is made. ValueError for an unknown stage."""
        self.base_model.backbone.conv_encoder.freeze(until)
        self.config.freeze_backbone_until = until

    def unfreeze_backbone(self) -> None:
        """Trains all parameters of the backbone. Frozen norms stay frozen: see `unfreeze_norms`."""
        self.freeze_backbone(until=None)

    @torch.no_grad()
    def resize_queries(self, num_queries: int) -> None:
        """Takes another number of object queries: the first ones stay, further ones start from N(0, 1). Call it before
        the optimizer is made. Raises ValueError for less than 1."""
        if num_queries < 1:
            raise ValueError(f"num_queries={num_queries} must be at least 1.")
        old = self.base_model.query_position_embeddings.weight
        new = nn.Embedding(num_queries, old.shape[1], device=old.device, dtype=old.dtype)
        kept = min(num_queries, len(old))
        new.weight[:kept] = old[:kept]
        self.base_model.query_position_embeddings = new
        self.config.num_queries = num_queries

    def freeze_norms(self) -> None:
        """Runs the backbone's batch norms as fixed affine maps. Call it before the optimizer is made."""
        self.base_model.backbone.conv_encoder.freeze_norms()
        self.config.freeze_backbone_norms = True

    def unfreeze_norms(self) -> None:
        """Lets the backbone's batch norms train: for backbones from random weights. Call it before the optimizer is
        made."""
        self.base_model.backbone.conv_encoder.unfreeze_norms()
        self.config.freeze_backbone_norms = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The original's: Xavier in the transformer, PyTorch's own in projection and heads, queries N(0, 1).

        Transformers calls it for every module with tensors of its own that no checkpoint brought, and for no other; the
        functions of `initialization` leave those tensors alone that a checkpoint did bring.
        """
        if isinstance(module, nn.Linear) and hasattr(module, "xavier_gain"):
            initialization.xavier_uniform_(module.weight, gain=module.xavier_gain)
            if module.starts_without_bias:
                initialization.zeros_(module.bias)
            else:
                initialization.uniform_(module.bias, *_pytorch_bounds(module))
        elif isinstance(module, nn.Conv2d) and module.bias is None:  # a backbone's, missing in the checkpoint
            initialization.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            initialization.uniform_(module.weight, *_pytorch_bounds(module))
            if module.bias is not None:
                initialization.uniform_(module.bias, *_pytorch_bounds(module))
        elif isinstance(module, nn.Embedding):
            if getattr(module, "notes_start", False):
                module.started_fresh = True
            if getattr(module, "starts_uniform", False):
                initialization.uniform_(module.weight)
            else:
                initialization.normal_(module.weight)
        elif isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d, FrozenBatchNorm2d)):
            if module.weight is not None:
                initialization.ones_(module.weight)
                initialization.zeros_(module.bias)
            if getattr(module, "running_mean", None) is not None:
                initialization.zeros_(module.running_mean)
                initialization.ones_(module.running_var)
        if hasattr(module, "init_non_persistent_buffers"):  # timm's tables, which no checkpoint holds
            module.init_non_persistent_buffers()


def _ignore_batch_counters(module: nn.Module, incompatible_keys) -> None:
    incompatible_keys.unexpected_keys[:] = [
        key for key in incompatible_keys.unexpected_keys if not key.endswith("num_batches_tracked")
    ]


def _pytorch_bounds(layer: nn.Linear | nn.Conv2d) -> tuple[float, float]:
    """Between which `nn.Linear` and `nn.Conv2d` draw weights and biases, which the original leaves in place."""
    bound = layer.weight[0].numel() ** -0.5  # fan in
    return -bound, bound
