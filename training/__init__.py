"""The pipeline of the paper: from labelled recordings to a ranked ensemble."""
