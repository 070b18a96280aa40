_base_ = './default_runtime.py'

default_scope = 'mmdet'

# Provides `vig_mm.InstanceTTAModel`, which needs mmdet and so is no part of `vig_mm.models`.
custom_imports = dict(imports=['vig_mm.models.test_time_augs'], allow_failed_imports=False)
tta_model = dict(
    type='vig_mm.InstanceTTAModel',
    tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100))

default_hooks = dict(visualization=dict(type='DetVisualizationHook'))
visualizer = dict(
    type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer')
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)
