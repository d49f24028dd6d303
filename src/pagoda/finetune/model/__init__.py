"""transformers' modelling code over Pagoda's packed weights. Importing these files imports torch."""
