# mask-rcnn_vig-h-s_fpn_1x_coco.py in mixed precision (fp16).
_base_ = './mask-rcnn_vig-h-s_fpn_1x_coco.py'

optim_wrapper = dict(type='AmpOptimWrapper', dtype='float16', loss_scale='dynamic')
