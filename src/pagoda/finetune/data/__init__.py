"""Training data without torch: files → records → token ids with what is trained marked."""
