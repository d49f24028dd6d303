"""LoRA on the weights that are served: data → examples with masks → adapters over packed, frozen linears."""
