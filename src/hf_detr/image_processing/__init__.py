"""The steps of `DetrImageProcessor`, from loading to post-processing."""
