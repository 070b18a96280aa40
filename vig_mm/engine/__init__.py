"""What surrounds the models: loading, checks before a run, and what train and test share.

Nothing is imported here, so that `vig_mm.registry` can take single modules without the rest.
"""
