# Mask R-CNN with FPN as in the COCO papers: mmdet's own without its ResNet. Backbone,
# `neck.in_channels` and the classes come from the experiment.
_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

model = dict(
    _delete_=True,
    **{key: part for key, part in _base_.model.items() if key not in ('backbone', '_scope_')})
