"""A transform after which its data worker is gone."""

import os
import signal

from mmcv.transforms import TRANSFORMS, BaseTransform
from torch.utils.data import get_worker_info


@TRANSFORMS.register_module()
class KillWorker(BaseTransform):
    """Kills the worker that loads it, as the system does when memory runs out.

    Args:
        after: samples that pass first.
    """

    def __init__(self, after: int) -> None:
        self.left = after

    def transform(self, results: dict) -> dict:
        if self.left == 0 and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1
        return results
