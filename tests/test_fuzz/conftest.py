"""Hypothesis profiles: ``suite`` is the default, ``long`` is for runs by hand.

    python -m pytest tests/test_fuzz --hypothesis-profile=long

``suite`` draws the same examples in every run. ``long`` draws others in every run, fifty times as
many, makes what fails small, and keeps it in `.hypothesis`, so that the next run starts with it;
name one test (``-k triton``) to give it all the time. Whatever it finds becomes an ``@example`` of
its test.
"""

from hypothesis import HealthCheck, Phase, settings

COMMON = dict(
    deadline=None,  # the largest sizes take a hundred times as long as the smallest
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile(
    "suite",
    max_examples=20,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate, Phase.target],  # to make a failure small takes minutes
    **COMMON,
)
settings.register_profile("long", max_examples=1000, derandomize=False, **COMMON)
settings.load_profile("suite")  # --hypothesis-profile is read after this
