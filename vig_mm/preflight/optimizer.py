"""Check that the optimizer that a config names exists."""

import difflib

from mmengine.config import Config
from mmengine.registry import OPTIMIZERS

from .user_input import UsageError


def check_optimizer(cfg: Config) -> None:
    """See that the optimizer's type is known; what mmengine says otherwise does not name it.

    Raises:
        UsageError: it is not; names one that comes close.
    """
    kind = cfg.get("optim_wrapper", {}).get("optimizer", {}).get("type")
    with OPTIMIZERS.switch_scope_and_registry(cfg.default_scope) as registry:
        if not isinstance(kind, str) or registry.get(kind) is not None:
            return
        known = {x.lower(): x for x in (*registry.module_dict, *OPTIMIZERS.module_dict)}
    close = difflib.get_close_matches(kind.lower(), known, 1)
    raise UsageError(
        f"optim_wrapper.optimizer.type: there is no optimizer {kind!r}"
        + (f", did you mean {known[close[0]]!r}?" if close else "; correct it or import its module")
    )
