_base_ = './default_runtime.py'

default_scope = 'mmpretrain'
tta_model = dict(type='mmpretrain.AverageClsScoreTTA')

default_hooks = dict(
    checkpoint=dict(max_keep_ckpts=3),
    visualization=dict(type='VisualizationHook', enable=False))
visualizer = dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)
