from tiny_run import copy_of_run, labelled, tiny_model  # noqa: F401
